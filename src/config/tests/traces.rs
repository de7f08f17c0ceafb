//! Where spans are sent.

use super::*;

#[test]
fn v1_traces_is_appended_to_the_endpoint() {
    let url = |endpoint: &str| {
        let config = parse(&format!("[traces]\nendpoint = \"{endpoint}\"\n")).unwrap();
        config.traces.unwrap().url().to_string()
    };
    assert_eq!(url("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(url("http://127.0.0.1:4318/"), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(url("https://otlp.example.com/of/${TENANT}/"), "https://otlp.example.com/of/hunter2/v1/traces");
    assert_eq!(parse("").unwrap().traces, None);
}

#[test]
fn what_is_wrong_with_it_is_told() {
    check(
        r#"[traces]
endpoint = "localhost:4318"
sample = 1.5
headers = { Content-Type = "x" }
protocol = "grpc"
"#,
        &expect![[r#"
            outboxd.toml:2: traces.endpoint: the URL has no host; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:2: traces.endpoint: the scheme is neither http nor https; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:3: traces.sample: this is out of range; write a number from 0 to 1, such as 0.1
            outboxd.toml:4: traces.headers.Content-Type: "Content-Type" is set by outboxd; remove it
            outboxd.toml:5: traces.protocol: this key is unknown; known here: endpoint, headers, sample"#]],
    );
    check(
        "[traces]\nsample = \"all\"\n",
        &expect![[r#"
        outboxd.toml:1: traces: `endpoint` is missing; write where a receiver of OTLP over HTTP is, such as "http://127.0.0.1:4318"
        outboxd.toml:2: traces.sample: this is no number; write a number from 0 to 1, such as 0.1"#]],
    );
    check(
        "[traces]\nendpoint = \"http://a/v1/traces\"\nsample = nan\n",
        &expect![[r"
        outboxd.toml:2: traces.endpoint: the URL ends with /v1/traces, which is appended; remove it
        outboxd.toml:3: traces.sample: this is out of range; write a number from 0 to 1, such as 0.1"]],
    );
    check(
        "[traces]\nendpoint = \"http://a?token=hunter2\"\nsample = -1\n",
        &expect![[r"
        outboxd.toml:2: traces.endpoint: the URL has a query (?...); send tokens in `headers`
        outboxd.toml:3: traces.sample: this is out of range; write a number from 0 to 1, such as 0.1"]],
    );
}

#[test]
fn a_part_is_any_number_from_0_to_1() {
    for (text, sample) in [("0", 0.0_f64), ("1", 1.0), ("0.25", 0.25), ("1e-3", 0.001), ("0.000_1", 0.0001)] {
        let config = parse(&format!("[traces]\nendpoint = \"http://a\"\nsample = {text}\n")).unwrap();
        assert_eq!(config.traces.unwrap().sample.to_bits(), sample.to_bits(), "{text}");
    }
}
