//! A URL from an event leads to nothing that not everybody can reach.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::guard::{Guard, SystemNames, refusal};
use super::super::http::{Clients, HttpHandler, client};
use super::{dead, event, retried, run};
use crate::config::{HttpConfig, IpNet};
use crate::event::Event;
use crate::outcome::{Fault, Outcome};

/// What people try who look for something behind the daemon: a URL, and what is said of its host.
const ADDRESSES: [(&str, &str); 96] = [
    // Loopback, in all its spellings.
    ("http://127.0.0.1/", "loopback"),
    ("http://127.0.0.1:22/", "loopback"),
    ("https://127.0.0.1:443/", "loopback"),
    ("http://127.1/", "loopback"),
    ("http://127.0.1/", "loopback"),
    ("http://127.127.127.127/", "loopback"),
    ("http://127.0.0.1./", "loopback"),
    ("http://2130706433/", "loopback"),
    ("http://2130706433./", "loopback"),
    ("http://0x7f000001/", "loopback"),
    ("http://0X7F000001/", "loopback"),
    ("http://0x7f.0x0.0x0.0x1/", "loopback"),
    ("http://0x7f.1/", "loopback"),
    ("http://0x7f.0.1/", "loopback"),
    ("http://017700000001/", "loopback"),
    ("http://0177.0.0.1/", "loopback"),
    ("http://0177.0.0.01/", "loopback"),
    ("http://00000177.0.0.1/", "loopback"),
    ("http://0177.0x0.1/", "loopback"),
    ("http://127.0x1/", "loopback"),
    ("http://%31%32%37.0.0.1/", "loopback"),
    ("http://%30x7f000001/", "loopback"),
    ("http://127%2e0%2e0%2e1/", "loopback"),
    ("http://①②⑦.⓪.⓪.①/", "loopback"),
    ("http://127。0。0。1/", "loopback"),
    ("http://127．0．0．1/", "loopback"),
    ("http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/", "loopback"),
    ("http://[::1]/", "loopback"),
    ("http://[::1]:6379/", "loopback"),
    ("http://[0:0:0:0:0:0:0:1]/", "loopback"),
    ("http://[0000:0000:0000:0000:0000:0000:0000:0001]/", "loopback"),
    ("http://[::ffff:127.0.0.1]/", "loopback"),
    ("http://[::ffff:7f00:1]/", "loopback"),
    ("http://[0:0:0:0:0:ffff:127.0.0.1]/", "loopback"),
    ("http://[::FFFF:127.0.0.1]:80/", "loopback"),
    // What is on this machine, too.
    ("http://0/", "this network"),
    ("http://0.0.0.0/", "this network"),
    ("http://0x0/", "this network"),
    ("http://0.0.0.0:8080/", "this network"),
    ("http://0.1.2.3/", "this network"),
    ("http://[::]/", "unspecified"),
    ("http://[::ffff:0.0.0.0]/", "this network"),
    // Metadata of clouds.
    ("http://169.254.169.254/latest/meta-data/iam/security-credentials/", "link-local"),
    ("http://2852039166/", "link-local"),
    ("http://0xa9fea9fe/", "link-local"),
    ("http://0xA9.0xFE.0xA9.0xFE/", "link-local"),
    ("http://0251.0376.0251.0376/", "link-local"),
    ("http://025177524776/", "link-local"),
    ("http://169.254.43518/", "link-local"),
    ("http://169.16689662/", "link-local"),
    ("http://[::ffff:169.254.169.254]/", "link-local"),
    ("http://[::ffff:a9fe:a9fe]/", "link-local"),
    ("http://[0:0:0:0:0:ffff:169.254.169.254]/", "link-local"),
    ("http://169.254.170.2/v2/credentials/", "link-local"),
    ("http://[64:ff9b::169.254.169.254]/", "translated to 169.254.169.254, link-local"),
    ("http://[64:ff9b::a9fe:a9fe]/", "translated to 169.254.169.254, link-local"),
    ("http://[fd00:ec2::254]/latest/", "private"),
    ("http://[fd20:ce::254]/", "private"),
    ("http://100.100.100.200/latest/meta-data/", "shared between customers"),
    ("http://192.0.0.192/latest/", "reserved for protocols"),
    ("http://168.63.129.16/machine?comp=goalstate", "the platform of a cloud"),
    // Networks of somebody's own.
    ("http://10.0.0.1/", "private"),
    ("http://10.255.255.255/", "private"),
    ("http://167772161/", "private"),
    ("http://012.0.0.1/", "private"),
    ("http://172.16.0.1/", "private"),
    ("http://172.31.255.255/", "private"),
    ("http://192.168.0.1/", "private"),
    ("http://192.168.1/", "private"),
    ("http://3232235521/", "private"),
    ("http://[::ffff:10.0.0.1]/", "private"),
    ("http://[::ffff:c0a8:1]/", "private"),
    ("http://[64:ff9b::10.0.0.1]/", "translated to 10.0.0.1, private"),
    ("http://[64:ff9b:1::1]/", "translated to a private network's"),
    ("http://100.64.0.1/", "shared between customers"),
    ("http://100.127.255.255/", "shared between customers"),
    ("http://[fc00::1]/", "private"),
    ("http://[fdff:ffff::1]/", "private"),
    ("http://[fe80::1]/", "link-local"),
    ("http://[febf::1]/", "link-local"),
    ("http://[fec0::1]/", "private"),
    // Tunnels, translations, old forms.
    ("http://[2002:7f00:1::]/", "6to4"),
    ("http://[2002:a9fe:a9fe::1]/", "6to4"),
    ("http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/", "Teredo"),
    ("http://[::127.0.0.1]/", "an IPv4 address in an old form"),
    ("http://[::ffff:0:127.0.0.1]/", "not given out"),
    ("http://192.88.99.1/", "6to4"),
    // What nobody has.
    ("http://192.0.2.1/", "documentation"),
    ("http://198.51.100.1/", "documentation"),
    ("http://[2001:db8::1]/", "documentation"),
    ("http://198.19.255.255/", "benchmarking"),
    ("http://224.0.0.1/", "multicast"),
    ("http://240.0.0.1/", "reserved"),
    ("http://255.255.255.255/", "broadcast"),
    ("http://[ff02::1]/", "multicast"),
    ("http://[5f00::1]/", "not given out"),
];

/// These are no URLs at all, so nothing is sent either.
const NO_URLS: [&str; 14] = [
    "http://256.256.256.256/",
    "http://127.0.0.1.1.1/",
    "http://0x7f000001x.0x1/",
    "http://0x100000000/",
    "http://08.0.0.1/",
    "http://[::1%25lo]/",
    "http://[fe80::1%25eth0]/",
    "http://[::ffff:127.0.0.256]/",
    "http://[127.0.0.1]/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1:80\\@@127.2.2.2:80/",
    "http://127.0.0.1 .example.com/",
    "http:127.0.0.1/",
];

/// What everybody can reach, close to what is refused.
const REACHABLE: [&str; 21] = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
];

fn config(url: &str, allow: &[&str]) -> HttpConfig {
    let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
    HttpConfig { url: url.parse().unwrap(), allow, secrets: Vec::new(), headers: BTreeMap::new() }
}

/// An event that wants to be posted there.
fn to(url: &str) -> Event {
    Event { payload: json!({ "url": url, "tenant": "a" }).to_string(), ..event() }
}

fn handler(allow: &[&str], names: &Arc<Names>) -> HttpHandler {
    let names: Arc<dyn Resolve> = Arc::clone(names) as _;
    HttpHandler::new(&config("{payload.url}", allow), &Clients::with_names(client().unwrap(), names)).unwrap()
}

/// A name server that one of the parties has.
#[derive(Default)]
struct Names {
    /// What a question is answered with, in turn; the last answer is for all that follow.
    answers: Mutex<Vec<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Names {
    fn answering(answers: &[&[&str]]) -> Arc<Self> {
        let answers = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect());
        Arc::new(Self { answers: Mutex::new(answers.collect()), asked: AtomicUsize::new(0) })
    }
}

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let answers = self.answers.lock().unwrap();
        let answer: Vec<SocketAddr> =
            answers[asked.min(answers.len() - 1)].iter().map(|&ip| SocketAddr::new(ip, 0)).collect();
        Box::pin(async move { Ok(Box::new(answer.into_iter()) as Addrs) })
    }
}

/// A server that says how many connections it was given.
async fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                    if request.ends_with(b"}") {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                        request.clear();
                    }
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn every_address_that_is_not_for_everybody_is_refused_however_it_is_written() {
    let names = Names::answering(&[&["127.0.0.1"]]);
    let handler = handler(&[], &names);
    for (url, what) in ADDRESSES {
        let failure = dead(run(&handler, to(url)).await);
        assert!(failure.error.contains(&format!(" is {what}")), "{url}: {}", failure.error);
        assert!(failure.error.ends_with("only if `allow` has it"), "{url}: {}", failure.error);
    }
    for url in NO_URLS {
        let failure = dead(run(&handler, to(url)).await);
        assert!(failure.error.starts_with("{payload.url} is \""), "{url}: {}", failure.error);
    }
    assert_eq!(names.asked.load(Ordering::SeqCst), 0, "none of these is a name");
}

#[test]
fn what_everybody_can_reach_is_not_refused() {
    for address in REACHABLE {
        assert_eq!(refusal(address.parse().unwrap(), &[]), None, "{address}");
    }
}

#[tokio::test]
async fn a_name_is_judged_by_all_the_addresses_it_leads_to() {
    for (addresses, error) in [
        (&["127.0.0.1"][..], "tenant.example leads to 127.0.0.1, which is loopback (127.0.0.0/8)"),
        (&["::1"], "tenant.example leads to ::1, which is loopback"),
        (&["169.254.169.254"], "which is link-local, where clouds keep their metadata"),
        (&["::ffff:10.0.0.1"], "which is private"),
        (&["64:ff9b::7f00:1"], "which is translated to 127.0.0.1, loopback"),
        (&["1.1.1.1", "10.0.0.1"], "tenant.example leads to 10.0.0.1, which is private"),
        (&["2606:4700::1111", "1.1.1.1", "fe80::1"], "tenant.example leads to fe80::1, which is link-local"),
    ] {
        let handler = handler(&[], &Names::answering(&[addresses]));
        let failure = dead(run(&handler, to("http://tenant.example:9/hooks?token=s3cret")).await);
        assert!(
            failure.error.starts_with("POST http://tenant.example:9/hooks: tenant.example leads to"),
            "{}",
            failure.error
        );
        assert!(failure.error.contains(error), "{}", failure.error);
    }
}

#[tokio::test]
async fn the_names_of_this_machine_lead_nowhere() {
    let clients = Clients::new(client().unwrap());
    let handler = HttpHandler::new(&config("{payload.url}", &[]), &clients).unwrap();
    for url in ["http://localhost/", "https://LOCALHOST:8080/hooks"] {
        let failure = dead(run(&handler, to(url)).await);
        assert!(failure.error.contains("is loopback"), "{url}: {}", failure.error);
    }
}

#[tokio::test]
async fn a_host_of_which_one_label_comes_from_the_event_is_a_host_from_the_event() {
    let names: Arc<dyn Resolve> = Names::answering(&[&["10.0.0.1"]]);
    let config = config("http://{payload.tenant}.hooks.example/{id}", &[]);
    let handler = HttpHandler::new(&config, &Clients::with_names(client().unwrap(), names)).unwrap();
    let failure = dead(run(&handler, to("")).await);
    assert!(failure.error.contains("a.hooks.example/42: a.hooks.example leads to 10.0.0.1"), "{}", failure.error);
}

#[tokio::test]
async fn what_is_configured_in_full_is_the_operators_choice() {
    let (address, connections) = counting().await;
    for url in [format!("http://{address}/"), format!("http://{address}/{{key}}?tenant={{payload.tenant}}")] {
        let handler = HttpHandler::new(&config(&url, &[]), &Clients::new(client().unwrap())).unwrap();
        assert_eq!(run(&handler, to("http://10.0.0.1/")).await, Outcome::done());
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_allowed_net_is_reached_and_no_connection_is_kept() {
    let (address, connections) = counting().await;
    let names = Names::answering(&[&["127.0.0.1"]]);
    let handler = handler(&["127.0.0.0/8"], &names);
    let urls = [
        format!("http://{address}/"),
        format!("http://0x7f000001:{}/", address.port()),
        format!("http://[::ffff:127.0.0.1]:{}/", address.port()),
        format!("http://tenant.example:{}/", address.port()),
        format!("http://tenant.example:{}/", address.port()),
    ];
    for url in &urls {
        assert_eq!(run(&handler, to(url)).await, Outcome::done(), "{url}");
    }
    assert_eq!(names.asked.load(Ordering::SeqCst), 2, "a name is asked for every time");
    assert_eq!(connections.load(Ordering::SeqCst), urls.len(), "each call has a connection of its own");
    let failure = dead(run(&handler, to("http://10.0.0.1/")).await);
    assert!(failure.error.contains("10.0.0.1 is private"), "{}", failure.error);
}

/// A name whose second answer leads to this machine. Whoever checks with one question and connects with another is deceived.
#[tokio::test]
async fn a_name_that_changes_between_two_questions_leads_nowhere() {
    let (address, connections) = counting().await;
    // Reserved for nobody, and let through here, so that a connection to it fails at once or is refused by nobody.
    let good = "127.0.0.2";
    for answers in [[&[good][..], &["127.0.0.1"]], [&["127.0.0.1"], &[good]]] {
        let names = Names::answering(&answers);
        let handler = handler(&["127.0.0.2/32"], &names);
        let url = format!("http://tenant.example:{}/", address.port());
        let first = run(&handler, to(&url)).await;
        assert_eq!(names.asked.load(Ordering::SeqCst), 1, "one question for one call");
        let second = run(&handler, to(&url)).await;
        let (reached, refused) = if answers[0] == [good] { (first, second) } else { (second, first) };
        // Nobody listens at the good address, so what was called there is seen.
        let (_, failure) = retried(reached);
        assert_eq!(failure.fault, Fault::Unreachable, "{}", failure.error);
        assert!(failure.error.contains("Connection refused"), "{}", failure.error);
        assert!(dead(refused).error.contains("tenant.example leads to 127.0.0.1"));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0, "nobody was connected to what was not allowed");
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_unreachable_and_a_redirect_is_not_followed() {
    let nobody = Arc::new(Names { answers: Mutex::new(vec![Vec::new()]), asked: AtomicUsize::new(0) });
    let (_, failure) = retried(run(&handler(&[], &nobody), to("http://tenant.example/")).await);
    assert_eq!(failure.fault, Fault::Unreachable);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_buf(&mut Vec::new()).await.unwrap();
        let response = "HTTP/1.1 307 Moved\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(response.as_bytes()).await.unwrap();
    });
    let failure = dead(run(&handler(&["127.0.0.0/8"], &Names::answering(&[&["127.0.0.1"]])), to(&url)).await);
    assert!(failure.error.contains("redirects are not followed"), "{}", failure.error);
}

#[tokio::test]
async fn what_is_gone_for_one_event_is_dead_and_pauses_nobody() {
    for from_event in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
            stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        });
        let url =
            if from_event { format!("http://{address}/{{payload.tenant}}") } else { format!("http://{address}/") };
        let handler = HttpHandler::new(&config(&url, &[]), &Clients::new(client().unwrap())).unwrap();
        match run(&handler, to("")).await {
            Outcome::Dead { failure } => {
                assert!(from_event && failure.error.ends_with("/a: 410 Gone"), "{}", failure.error);
            }
            other => assert!(!from_event && matches!(other, Outcome::Gone { .. }), "{other:?}"),
        }
    }
}

/// The nets of the registries, written once more by hand.
const REFUSED: [&str; 34] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
];

fn addresses() -> impl Strategy<Value = (IpNet, IpAddr)> {
    let net = prop::sample::select(REFUSED.to_vec()).prop_map(|net| net.parse::<IpNet>().unwrap());
    (net, any::<u128>()).prop_map(|(net, random)| {
        let address = match net {
            IpNet::V4(net) => {
                let host = u32::try_from(random & 0xffff_ffff).unwrap() & !u32::from(net.netmask());
                Ipv4Addr::from(u32::from(net.network()) | host).into()
            }
            IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) | (random & !u128::from(net.netmask()))).into(),
        };
        (net, address)
    })
}

/// The ways to write one address in a URL.
fn spellings(address: IpAddr) -> Vec<String> {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets().map(u32::from);
            let number = u32::from(v4);
            vec![
                format!("{v4}"),
                format!("{v4}."),
                format!("{number}"),
                format!("{number:#x}"),
                format!("0{number:o}"),
                format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("{a}.{b}.{}", c << 8 | d),
                format!("{a}.{}", b << 16 | c << 8 | d),
                format!("[::ffff:{v4}]"),
                format!("[0:0:0:0:0:ffff:{:x}:{:x}]", a << 8 | b, c << 8 | d),
                format!("[64:ff9b::{v4}]"),
            ]
        }
        IpAddr::V6(v6) => {
            let groups = v6.segments().map(|group| format!("{group:04X}")).join(":");
            vec![format!("[{v6}]"), format!("[{groups}]")]
        }
    }
}

proptest! {
    #[test]
    fn an_address_of_a_refused_net_is_refused_in_every_spelling_unless_its_net_is_allowed((net, address) in addresses()) {
        let guard = |allow: &[IpNet]| Guard::new(allow, Arc::new(SystemNames));
        for spelling in spellings(address) {
            let url = Url::parse(&format!("https://{spelling}:8443/hooks")).unwrap();
            prop_assert!(guard(&[]).check_url(&url).is_err(), "{}", url);
            prop_assert!(guard(&["1.0.0.0/8".parse().unwrap(), "2600::/12".parse().unwrap()]).check_url(&url).is_err(), "{}", url);
            prop_assert!(guard(&[net]).check_url(&url).is_ok(), "{} with {}", url, net);
            let only = IpNet::new(address, if address.is_ipv4() { 32 } else { 128 }).unwrap();
            prop_assert!(guard(&[only]).check_url(&url).is_ok(), "{} with {}", url, only);
        }
    }

    #[test]
    fn what_is_in_none_of_the_nets_is_not_refused(random: u32, high in 0x2002_0001_0000_0000u64..0x3ffe_ffff_ffff_ffff, low: u64) {
        let refused: Vec<IpNet> = REFUSED.iter().map(|net| net.parse().unwrap()).collect();
        for address in [IpAddr::from(Ipv4Addr::from(random)), Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into()] {
            let expected = refused.iter().any(|net| net.contains(&address));
            prop_assert_eq!(refusal(address, &[]).is_some(), expected, "{}", address);
        }
    }
}
