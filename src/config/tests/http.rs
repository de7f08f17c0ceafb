//! What an HTTP handler posts to, what it may reach, and what it signs with.

use super::*;

/// The HTTP handler that this line makes, with more lines of its table.
fn of(http: &str, more: &str) -> (HttpConfig, DeliveryConfig) {
    let config = parse(&format!("[handler.a]\ntopics = [\"x\"]\nhttp = {{ {http} }}\n{more}")).unwrap();
    let HandlerConfig { kind: Kind::Http(http), delivery, .. } = config.handlers.into_iter().next().unwrap() else {
        panic!("it is an HTTP handler");
    };
    (http, delivery)
}

#[test]
fn a_url_may_take_parts_from_the_event() {
    for (url, host) in [
        ("https://h.example/{topic}/{key}/{id}", Some("h.example:443")),
        ("http://h.example:81/a?b={payload.a-1._b.0}&c={headers.X-Tenant}", Some("h.example:81")),
        ("http://[::1]:81/{key}", Some("[::1]:81")),
        ("https://{payload.tenant}.hooks.example/", None),
        ("https://eu-{payload.tenant}-{id}.hooks.example:8443/", None),
        ("{payload.endpoint}", None),
        ("{headers.endpoint}", None),
    ] {
        let (http, delivery) = of(&format!("url = \"{url}\""), "");
        assert_eq!((http.url.host().as_deref(), http.url.takes_host()), (host, host.is_none()), "{url}");
        assert_eq!((http.url.fixed(), http.url.to_string()), (None, url.to_owned()));
        assert_eq!(delivery.breaker, host.is_some(), "one host says nothing about another: {url}");
    }
    let (http, delivery) = of("url = \"https://h.example\"", "");
    assert_eq!((http.url.fixed().unwrap().as_str(), delivery.breaker), ("https://h.example/", true));
    // It may be said, too.
    assert!(!of("url = \"{key}\"", "breaker = \"off\"").1.breaker);
}

#[test]
fn a_url_that_takes_parts_is_checked_like_any_other() {
    let urls = [
        "https://h.example/{}",
        "https://h.example/{payload}",
        "https://h.example/{payload.}",
        "https://h.example/{payload.a..b}",
        "https://h.example/{headers.a.b}",
        "https://h.example/{+key}/{Key}",
        "https://h.example/{key",
        "https://h.example/key}",
        "https://h.example/{{key}}",
        "{payload.scheme}://h.example/",
        "ftp://h.example/{key}",
        "{payload.endpoint}/hooks",
        "https://{payload.host}/hooks",
        "https://h.{payload.tld}:80/hooks",
        "https://{payload.a}{payload.b}",
        "https://h.example:{payload.port}/",
        "https://{payload.user}:{payload.password}@h.example/",
        "https://{payload.user}@h.example/",
        "https://h.example/#{key}",
        "https://h.example\\\\{key}",
        "https://h.example/a b/{key}",
        "https://h.example/a/%2E./{key}",
        "https://[{key}::1]/",
    ];
    let handlers = urls.iter().enumerate();
    let file: Vec<String> =
        handlers.map(|(i, url)| format!("[handler.h{i:02}]\ntopics = [\"x\"]\nhttp.url = \"{url}\"\n")).collect();
    let long =
        format!("[handler.long]\ntopics = [\"x\"]\nhttp.url = \"https://h.example/{{key}}{}\"\n", "x".repeat(1978));
    check(
        &(file.concat() + &long),
        &expect![[r"
            outboxd.toml:3: handler.h00.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:6: handler.h01.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:9: handler.h02.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:12: handler.h03.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:15: handler.h04.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:18: handler.h05.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:18: handler.h05.http.url: placeholder 2 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:21: handler.h06.http.url: a brace of the URL has no partner; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:24: handler.h07.http.url: a brace of the URL has no partner; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:27: handler.h08.http.url: a brace of the URL has no partner; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:27: handler.h08.http.url: placeholder 1 is not known; write {topic}, {key}, {id}, {payload.NAME} or {headers.NAME}, or %7B and %7D for the characters
            outboxd.toml:30: handler.h09.http.url: a URL with placeholders does not say its scheme; begin with http:// or https://, or let one placeholder be the whole URL
            outboxd.toml:33: handler.h10.http.url: a URL with placeholders does not say its scheme; begin with http:// or https://, or let one placeholder be the whole URL
            outboxd.toml:36: handler.h11.http.url: a URL with placeholders does not say its scheme; begin with http:// or https://, or let one placeholder be the whole URL
            outboxd.toml:39: handler.h12.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:42: handler.h13.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:45: handler.h14.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:48: handler.h15.http.url: a placeholder stands where the port is; write the port itself
            outboxd.toml:51: handler.h16.http.url: a placeholder stands where the port is; write the port itself
            outboxd.toml:51: handler.h16.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:54: handler.h17.http.url: the URL holds credentials, which logs would show (send them in `headers`); write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:57: handler.h18.http.url: the URL has a fragment (#...), which is never sent; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:60: handler.h19.http.url: the URL holds a backslash, which some take for a slash; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:60: handler.h19.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:63: handler.h20.http.url: the URL holds white space or control characters; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:66: handler.h21.http.url: the path of the URL has . or .. between slashes; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:69: handler.h22.http.url: the host ends with a placeholder; write the end of the host itself, or take the whole URL from the event
            outboxd.toml:72: handler.long.http.url: the URL has 2001 bytes; write at most 2000"]],
    );
}

#[test]
fn what_does_not_go_together_with_a_url_from_the_event_is_refused() {
    check(
        r#"[handler.a]
topics = ["x"]
http = { url = "https://h.example/{key}", allow = ["10.0.0.0/8"] }
batch = { max = 2 }

[handler.b]
topics = ["x"]
http = { url = "https://h.example/", allow = [] }

[handler.c]
topics = ["x"]
http = { url = "{payload.endpoint}", allow = ["10.0.0.1/8", "10.0.0.0", "any", "::ffff:10.0.0.0/104", "fd00::/8", "fd00::/8", 7, "1.2.3.4/33"] }
breaker = "on"
batch = { max = 2 }

[flow.f]
on = "x"
[flow.f.step.s]
http = { url = "{payload.endpoint}" }
breaker = "on"
compensate = { http = { url = "{payload.endpoint}", allow = "10.0.0.0/8" }, breaker = "on" }
"#,
        &expect![[r#"
            outboxd.toml:3: handler.a.http.allow: the host of the URL is written here and is never refused; it concerns hosts that an event names; remove it
            outboxd.toml:4: handler.a.batch: the URL takes something from each event: a batch is one call, to one URL; remove `batch`, or write the URL in full
            outboxd.toml:8: handler.b.http.allow: the host of the URL is written here and is never refused; it concerns hosts that an event names; remove it
            outboxd.toml:12: handler.c.http.allow: "1.2.3.4/33" is not a net; write an array of nets such as ["10.0.0.0/8", "fd00::/8"]
            outboxd.toml:12: handler.c.http.allow: "10.0.0.0" is not a net; write an array of nets such as ["10.0.0.0/8", "fd00::/8"]
            outboxd.toml:12: handler.c.http.allow: "10.0.0.1/8" is an address in the net 10.0.0.0/8; write "10.0.0.0/8"
            outboxd.toml:12: handler.c.http.allow: "::ffff:10.0.0.0/104" is a net of IPv4 addresses in IPv6; these are checked as the IPv4 addresses in them; write the IPv4 net
            outboxd.toml:12: handler.c.http.allow: "any" is not a net; write an array of nets such as ["10.0.0.0/8", "fd00::/8"]
            outboxd.toml:12: handler.c.http.allow: "fd00::/8" is there already; write each net once
            outboxd.toml:12: handler.c.http.allow: 7 is an integer; write an array of nets such as ["10.0.0.0/8", "fd00::/8"]
            outboxd.toml:13: handler.c.breaker: each event names the host: one host that is away says nothing about the others; remove `breaker`, or write "off"
            outboxd.toml:14: handler.c.batch: the URL takes something from each event: a batch is one call, to one URL; remove `batch`, or write the URL in full
            outboxd.toml:20: flow.f.step.s.breaker: each event names the host: one host that is away says nothing about the others; remove `breaker`, or write "off"
            outboxd.toml:21: flow.f.step.s.compensate.breaker: each event names the host: one host that is away says nothing about the others; remove `breaker`, or write "off"
            outboxd.toml:21: flow.f.step.s.compensate.http.allow: "10.0.0.0/8" is a string; write an array of nets such as ["10.0.0.0/8", "fd00::/8"]"#]],
    );
    let nets = (0..=100).map(|net| format!("\"10.{net}.0.0/16\"")).collect::<Vec<_>>().join(", ");
    check(
        &format!("[handler.a]\ntopics = [\"x\"]\nhttp = {{ url = \"{{key}}\", allow = [{nets}] }}"),
        &expect!["outboxd.toml:3: handler.a.http.allow: 101 nets are too many; write at most 100"],
    );
}

#[test]
fn keys_are_exchanged_by_a_list_of_them() {
    let key = |byte: char| format!("\"whsec_{}\"", byte.to_string().repeat(32));
    let keys = |secret: &str| of(&format!("url = \"http://h.example\", secret = {secret}"), "").0.secrets;
    assert_eq!(keys(&key('a')).len(), 1);
    assert_eq!(keys(&format!("[{}]", key('a'))), keys(&key('a')));
    assert_eq!(keys(&format!("[{}, {}]", key('b'), key('a')))[1..], keys(&key('a')));
    let eight = "abcdefgh".chars().map(key).collect::<Vec<_>>().join(", ");
    assert_eq!(keys(&format!("[{eight}]")).len(), 8);
    let of = |secret: &str| {
        format!("[handler.a]\ntopics = [\"x\"]\nhttp = {{ url = \"http://h.example\", secret = {secret} }}\n")
    };
    let written = parse(&of(&format!("[{}, {}]", key('b'), key('a')))).unwrap().to_toml();
    assert!(written.contains("secret = [\"***\", \"***\"]"), "{written}");
    for (secret, expected) in [
        (
            "[]".to_owned(),
            expect!["outboxd.toml:3: handler.a.http.secret: there are 0 secrets; write 1 to 8, the newest first"],
        ),
        (
            format!("[{eight}, {}]", key('i')),
            expect!["outboxd.toml:3: handler.a.http.secret: there are 9 secrets; write 1 to 8, the newest first"],
        ),
        (
            format!("[{0}, {0}]", key('a')),
            expect!["outboxd.toml:3: handler.a.http.secret: the same secret is there already; write each one once"],
        ),
        (
            format!("[{}, 7, \"whsec_\", [\"hunter2\"]]", key('a')),
            expect![[r#"
            outboxd.toml:3: handler.a.http.secret: the secret has 0 bytes; write whsec_ and the base64 of 24 to 64 random bytes, best as "${NAME}"
            outboxd.toml:3: handler.a.http.secret: this is an array; write whsec_ and the base64 of 24 to 64 random bytes, best as "${NAME}"
            outboxd.toml:3: handler.a.http.secret: this is an integer; write whsec_ and the base64 of 24 to 64 random bytes, best as "${NAME}""#]],
        ),
    ] {
        check(&of(&secret), &expected);
    }
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let directory = std::env::temp_dir().join(format!("outboxd-secret-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("key"), format!("{SIGNING_SECRET}\n")).unwrap();
    std::fs::write(path("empty"), "\n").unwrap();
    let load = |secret: &str| {
        let text =
            format!("[handler.a]\ntopics = [\"x\"]\nhttp = {{ url = \"http://h.example/\", secret = \"{secret}\" }}\n");
        std::fs::write(path("outboxd.toml"), text).unwrap();
        Config::load(&directory.join("outboxd.toml"))
            .map_err(|error| error.to_string().replace(&path(""), "/DIRECTORY/"))
    };
    let config = load(&format!("${{file:{}}}", path("key"))).unwrap();
    let Kind::Http(http) = &config.handlers[0].kind else { panic!("it is an HTTP handler") };
    assert_eq!(http.secrets[0].expose(), [0; 32]);
    for (secret, expected) in [
        (
            format!("${{file:{}}}", path("absent")),
            expect![
                "/DIRECTORY/outboxd.toml:3: handler.a.http.secret: ${file:/DIRECTORY/absent} cannot be read; name a file of at most 64 KiB of text that the account of outboxd may read"
            ],
        ),
        (
            format!("${{file:{}}}", path("empty")),
            expect![
                "/DIRECTORY/outboxd.toml:3: handler.a.http.secret: ${file:/DIRECTORY/empty} is empty; give it a value"
            ],
        ),
        (
            format!("${{file:{}}}", path("")),
            expect![
                "/DIRECTORY/outboxd.toml:3: handler.a.http.secret: ${file:/DIRECTORY/} cannot be read; name a file of at most 64 KiB of text that the account of outboxd may read"
            ],
        ),
        (
            "${file:hunter2}".to_owned(),
            expect![[
                r#"/DIRECTORY/outboxd.toml:3: handler.a.http.secret: a "$" stands alone; write ${NAME} for a variable, ${file:/PATH} for a file, or "$$" for the character"#
            ]],
        ),
        (
            "${file:}".to_owned(),
            expect![[
                r#"/DIRECTORY/outboxd.toml:3: handler.a.http.secret: a "$" stands alone; write ${NAME} for a variable, ${file:/PATH} for a file, or "$$" for the character"#
            ]],
        ),
    ] {
        expected.assert_eq(&load(&secret).unwrap_err());
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn what_a_variable_stands_for_is_not_shown() {
    let url = "https://h.example/${TOKEN}/a?key=${TOKEN}&id={id}";
    let config = parse(&format!("[handler.a]\ntopics = [\"x\"]\nhttp.url = \"{url}\"\n")).unwrap();
    let Kind::Http(http) = &config.handlers[0].kind else { panic!("it is an HTTP handler") };
    assert_eq!(http.url.to_string(), "https://h.example/hunter2/a?key=hunter2&id={id}");
    assert_eq!(http.url.shown(), "https://h.example/${TOKEN}/a");
    let written = config.to_toml();
    assert!(written.contains(&format!("url = \"{url}\"")) && !written.contains("hunter2"), "{written}");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert_eq!(parse(&written).unwrap(), config);
    // A dollar is no variable.
    let config = parse("[handler.a]\ntopics = [\"x\"]\nhttp.url = \"https://h.example/$${key}\"\n").unwrap();
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
    let Kind::Http(http) = &config.handlers[0].kind else { panic!("it is an HTTP handler") };
    assert_eq!(http.url.shown(), "https://h.example/${key}");
}
