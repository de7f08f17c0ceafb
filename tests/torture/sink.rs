//! The receiving side: HTTP by hand, so that it can fail in ways a framework does not offer, and a receipt for everything.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::ledger::{Ledger, Number, Receipt, Verdict, payload};

/// After so many attempts it answers with "done", so that everything ends.
const MOODY_ATTEMPTS: u32 = 6;
/// The topic of events that a handler never takes.
pub(crate) const POISON: &str = "picky.poison";

/// The endpoints, by their handler.
pub(crate) type Sinks = BTreeMap<&'static str, Sink>;

/// One endpoint.
pub(crate) struct Sink {
    pub(crate) port: u16,
    down: Arc<AtomicBool>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Endpoint {
    handler: &'static str,
    /// Whether it is slow, refuses, hangs and loses answers now and then.
    moody: bool,
    seed: u64,
    ledger: Ledger,
    down: Arc<AtomicBool>,
}

/// What it does with an attempt.
#[derive(Clone, Copy)]
enum Mood {
    Done(Duration),
    Status(&'static str),
    Hang,
    /// Does the work and loses the answer.
    Lose,
}

impl Sink {
    pub(crate) async fn start(handler: &'static str, moody: bool, seed: u64, ledger: &Ledger) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let down = Arc::new(AtomicBool::new(false));
        let endpoint = Endpoint { handler, moody, seed, ledger: ledger.clone(), down: Arc::clone(&down) };
        let accepting = async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (client, _) = accepted.unwrap();
                        connections.spawn(endpoint.clone().serve(client));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        Self { port, down, _accepting: AbortOnDropHandle::new(tokio::spawn(accepting)) }
    }

    /// Resets every connection from now on, or no longer.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

/// What matters of a request.
struct Request {
    event: i64,
    topic: String,
    attempt: u32,
    idempotency_key: String,
    daemon: String,
    body: Value,
}

impl Endpoint {
    async fn serve(self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut unread = Vec::new();
        while let Some(request) = read_request(&mut client, &mut unread).await? {
            if self.down.load(Ordering::Relaxed) {
                return client.set_zero_linger();
            }
            if !self.answer(&mut client, request).await? {
                return client.set_zero_linger();
            }
        }
        Ok(())
    }

    /// Takes one attempt; `false` if the connection is to be reset.
    async fn answer(&self, client: &mut TcpStream, request: Request) -> io::Result<bool> {
        let began = self.ledger.now();
        let number = request.body["n"].as_u64().unwrap_or(0);
        let mood = self.mood(number, &request);
        let mut gone = [0];
        let end = async {
            match mood {
                Mood::Done(pause) => tokio::select! {
                    biased;
                    () = tokio::time::sleep(pause) => respond(client, "200 OK").await.map(|()| Verdict::Ok),
                    // Nobody sends a second request before the answer to the first: the other side has given up.
                    _ = client.read(&mut gone) => Err(io::ErrorKind::ConnectionAborted.into()),
                },
                Mood::Status(status) => respond(client, status).await.map(|()| Verdict::Failed),
                Mood::Lose => Ok(Verdict::Unanswered),
                Mood::Hang => {
                    // Until the other side gives up.
                    let _ = client.read(&mut gone).await?;
                    Ok(Verdict::Failed)
                }
            }
        };
        let end = end.await;
        let intact = request.body == payload(number);
        let Request { event, attempt, idempotency_key, daemon, .. } = request;
        let verdict = *end.as_ref().unwrap_or(&Verdict::Failed);
        let ended = self.ledger.now();
        let receipt = Receipt { event, attempt, idempotency_key, daemon, began, ended, verdict, intact };
        self.ledger.receive(self.handler, number, receipt);
        end.map(|_| matches!(mood, Mood::Done(_) | Mood::Status(_)))
    }

    fn mood(&self, number: Number, request: &Request) -> Mood {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ number.rotate_left(20) ^ u64::from(request.attempt));
        if request.topic == POISON && self.handler == "picky" {
            return Mood::Status("500 Internal Server Error");
        }
        if !self.moody || request.attempt > MOODY_ATTEMPTS {
            return Mood::Done(Duration::ZERO);
        }
        match rng.u32(..1000) {
            ..40 => Mood::Done(Duration::from_millis(rng.u64(50..500))),
            40..45 => Mood::Done(Duration::from_millis(rng.u64(1000..1600))),
            45..65 => Mood::Status("500 Internal Server Error"),
            65..75 => Mood::Status("429 Too Many Requests"),
            75..90 => Mood::Lose,
            90..93 => Mood::Hang,
            _ => Mood::Done(Duration::ZERO),
        }
    }
}

async fn respond(client: &mut TcpStream, status: &str) -> io::Result<()> {
    client.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await
}

/// The next request on a connection, whole; `None` at its end.
async fn read_request(client: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Request>> {
    const END: &[u8] = b"\r\n\r\n";
    let head = loop {
        if let Some(at) = unread.windows(END.len()).position(|window| window == END) {
            break at + END.len();
        }
        if client.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&unread[..head]).into_owned();
    let header = |name: &str| {
        let line = text.lines().find_map(|line| line.split_once(": ").filter(|(of, _)| of.eq_ignore_ascii_case(name)));
        line.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let length: usize = header("content-length").parse().map_err(|_| io::ErrorKind::InvalidData)?;
    while unread.len() < head + length {
        if client.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
    let body = serde_json::from_slice(&unread[head..head + length])?;
    unread.drain(..head + length);
    let number = |name| header(name).parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok(Some(Request {
        event: number("ce-id")?,
        topic: header("ce-type"),
        attempt: u32::try_from(number("outbox-attempt")?).unwrap(),
        idempotency_key: header("idempotency-key"),
        daemon: header("torture-daemon"),
        body,
    }))
}
