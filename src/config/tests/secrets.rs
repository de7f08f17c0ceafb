//! No message, no debug output and no effective configuration shows a secret.

use super::*;

#[test]
fn a_secret_is_never_printed() {
    let config = parse(&uncommented()).unwrap();
    for text in [format!("{config:#?}"), config.to_toml()] {
        assert!(!text.contains("hunter2") && !text.contains("AAAA"), "{text}");
    }
    let bad = r#"
        [database]
        url = "hunter2 $"
        [handler.a]
        topics = ["x"]
        [handler.a.http]
        url = "hunter2 ${TWO_LINES}"
        secret = ["hunter2"]
        headers = { A = "hunter2 ${TWO_LINES} é", B = "hunter2${MISSING}" }
        [handler.b]
        topics = ["x"]
        http = { url = "https://hunter2:hunter2@example.com", secret = "hunter2", headers = "hunter2" }
        [handler.c]
        topics = ["x"]
        http = { url = "https://[hunter2", secret = "whsec_hunter2-", secret = "hunter2" }
        [handler.d]
        topics = ["x"]
        command = ["x"]
        env = { A = "hunter2\u0000", B = "${hunter2", C = 'hunter2
        hunter2' }
        [handler.e]
        topics = ["x"]
        http = { secret "hunter2" }
        secret hunter2
        hunter2
        [handler.f]
        topics = ["x"]
        http = "https://hunter2:hunter2@example.com"
        [handler.f.http.headers]
        Authorization = "Bearer
        hunter2=="
        [handler."g h"]
        http.secret = "whsec_
        hunter2"
        "#;
    let errors = parse(bad).unwrap_err();
    assert!(errors.errors.len() > 10, "{errors}");
    assert_eq!(errors.to_string().find("hunter2"), None, "{errors}");
}

#[test]
fn no_slip_of_a_finger_prints_a_secret() {
    let good = r#"[database]
url = "postgresql://app:hunter2@localhost/app"
[handler.a]
topics = ["x"]
http = { url = "https://example.com/hunter2", secret = "whsec_hunter2xhunter2xhunter2xhunter2x", headers = { A = "hunter2" } }
[handler.b]
topics = ["x"]
command = ["x"]
[handler.b.env]
TOKEN = """hunter2
hunter2="""
"#;
    parse(good).unwrap();
    for at in 0..good.len() {
        for slip in ["", "\"", "\n", " ", "=", "]", "$", "é"] {
            for rest in [&good[at..], &good[at + 1..]] {
                let bad = [&good[..at], slip, rest].concat();
                if let Err(errors) = parse(&bad) {
                    assert!(!errors.to_string().contains("hunter2"), "{bad}\n{errors}");
                }
            }
        }
    }
}

#[test]
fn a_header_that_is_not_closed_shows_no_more_than_its_path() {
    for rest in
        [" secret = \"hunter2\" =", "\"hunter2\" = \"hunter2\"", ", \0hunter2 = 'hunter2', x = 1", ".\" hunter2"]
    {
        let errors = parse(&format!("[handler.mail{rest}\n")).unwrap_err();
        assert!(errors.errors.iter().all(|error| error.key == "handler.mail"), "{errors}");
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
    }
}
