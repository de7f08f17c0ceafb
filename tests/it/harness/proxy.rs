//! A network that fails on demand: a TCP proxy in front of PostgreSQL that knows what each session is for.
//!
//! A session says its role in `application_name` (`outboxd leader`, `outboxd tail`, …), so a fault can hit one of them.
//! Messages are understood as far as their boundaries, so that a listener can be deaf and otherwise well.

#![allow(dead_code, reason = "two test binaries share this file, and each uses a part of it")]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outboxd::postgres::Target;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::config::Host;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// What is wrong between a client and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing arrives in this direction, and the end of the connection does not either. Nothing is lost: when the fault is
    /// lifted, what was sent arrives, as it does after an interruption of a network that is shorter than TCP's patience.
    Hold(Way),
    /// What is sent in this direction is taken and lost, and so is the end of the connection: a half-open connection, which
    /// the kernel takes for a good one. When the fault is lifted, connections that lost something are reset.
    Swallow(Way),
    /// Notifications do not arrive; everything else does.
    Deaf,
    /// So many bytes more from the server, then a reset.
    CutAfter(u64),
    /// Everything takes so much longer in both directions.
    Delay(Duration),
    /// Connections are reset, those that come, too.
    Reset,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
    Both,
}

impl Way {
    fn includes(self, way: Self) -> bool {
        self == Self::Both || self == way
    }
}

/// Faults by role; the one for `""` is for all others.
type Rules = BTreeMap<String, Fault>;

/// The proxy. Ends, with every connection through it, when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _listener: AbortOnDropHandle<()>,
    _stop: DropGuard,
}

struct Shared {
    upstream: Mutex<Upstream>,
    rules: watch::Sender<Rules>,
    connections: Mutex<BTreeMap<u64, Handle>>,
    next: AtomicU64,
}

/// What can be done to a connection.
#[derive(Clone)]
struct Handle {
    role: String,
    reset: CancellationToken,
    /// Hears no notifications any more, for the rest of its life.
    deaf: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
enum Upstream {
    Unix(PathBuf),
    Tcp(String, u16),
}

impl Upstream {
    fn of(target: &Target) -> Self {
        let config = target.config();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        match config.get_hosts().first().expect("a target names its host") {
            Host::Unix(folder) => Self::Unix(folder.join(format!(".s.PGSQL.{port}"))),
            Host::Tcp(host) => Self::Tcp(host.clone(), port),
        }
    }
}

impl Proxy {
    /// Listens on a port of its own, in front of the server of this target.
    pub(crate) async fn start(target: &Target) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(Upstream::of(target)),
            rules: watch::Sender::new(Rules::new()),
            connections: Mutex::default(),
            next: AtomicU64::new(1),
        });
        let stop = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(&shared), stop.clone());
        let listener = AbortOnDropHandle::new(tokio::spawn(accepting));
        Self { address, shared, _listener: listener, _stop: stop.drop_guard() }
    }

    /// The URL of a database behind it, for this user.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@{}/{database}", self.address)
    }

    /// The same server and database as this target, through the proxy.
    pub(crate) fn target(&self, target: &Target) -> Target {
        let config = target.config();
        let (user, database) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        Target::resolve(Some(&self.url(user, database)), None, &|_| None).unwrap()
    }

    /// New connections go to another server.
    pub(crate) fn point_to(&self, target: &Target) {
        *lock(&self.shared.upstream) = Upstream::of(target);
    }

    /// A fault for the sessions of this role (`leader`, `tail`, `bell`, `janitor`, `pool`, …), present and future; for all
    /// that have none of their own with `""`.
    pub(crate) fn set(&self, role: &str, fault: Fault) {
        self.shared.rules.send_modify(|rules| {
            rules.insert(role.to_owned(), fault);
        });
    }

    /// Lifts the fault of this role.
    pub(crate) fn lift(&self, role: &str) {
        self.shared.rules.send_if_modified(|rules| rules.remove(role).is_some());
    }

    /// Resets the present connections of this role, of all with `""`; those to come are well. Returns how many.
    pub(crate) fn reset(&self, role: &str) -> usize {
        self.each(role, |connection| connection.reset.cancel())
    }

    /// The present connections of this role hear no notification for the rest of their lives. Returns how many.
    pub(crate) fn deafen(&self, role: &str) -> usize {
        self.each(role, |connection| connection.deaf.store(true, Ordering::Relaxed))
    }

    /// How many connections of this role there are, of all with `""`.
    pub(crate) fn connections(&self, role: &str) -> usize {
        self.each(role, |_| {})
    }

    fn each(&self, role: &str, act: impl Fn(&Handle)) -> usize {
        let connections = lock(&self.shared.connections);
        connections.values().filter(|handle| role.is_empty() || handle.role == role).inspect(|hit| act(hit)).count()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Without a free descriptor there is nothing to do but to try again.
                let Ok((client, _)) = accepted else { tokio::task::yield_now().await; continue };
                connections.spawn(serve(client, Arc::clone(&shared), stop.child_token()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its first byte to its end. An error is the end of it, as everywhere in a network.
async fn serve(mut client: TcpStream, shared: Arc<Shared>, reset: CancellationToken) -> io::Result<()> {
    client.set_nodelay(true)?;
    let startup = startup_packet(&mut client).await?;
    let role = role(&startup);
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let handle = Handle { role, reset, deaf: Arc::default() };
    lock(&shared.connections).insert(id, handle.clone());
    let connection = Connection {
        handle,
        rules: shared.rules.subscribe(),
        lossy: AtomicBool::new(false),
        left: AtomicU64::new(u64::MAX),
    };
    let upstream = lock(&shared.upstream).clone();
    let served = async {
        match upstream {
            Upstream::Unix(path) => connection.relay(client, UnixStream::connect(path).await?, &startup).await,
            Upstream::Tcp(host, port) => {
                let server = TcpStream::connect((host, port)).await?;
                server.set_nodelay(true)?;
                connection.relay(client, server, &startup).await
            }
        }
    };
    let served = served.await;
    lock(&shared.connections).remove(&id);
    served
}

/// The first message that is not a question for encryption; those are answered with "no".
async fn startup_packet(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    const SSL: u32 = 80_877_103;
    const GSS: u32 = 80_877_104;
    loop {
        let length = client.read_u32().await?;
        if !(8..=10_000).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut packet = length.to_be_bytes().to_vec();
        packet.resize(length as usize, 0);
        client.read_exact(&mut packet[4..]).await?;
        let code = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        if code != SSL && code != GSS {
            return Ok(packet);
        }
        client.write_all(b"N").await?;
    }
}

/// What follows `outboxd ` in `application_name`, else all of it.
fn role(startup: &[u8]) -> String {
    let mut words = startup[8..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
    while let Some(name) = words.next() {
        let value = words.next().unwrap_or_default();
        if name == "application_name" {
            return value.strip_prefix("outboxd ").unwrap_or(&value).to_owned();
        }
    }
    String::new()
}

struct Connection {
    handle: Handle,
    rules: watch::Receiver<Rules>,
    /// Something was swallowed: the two ends do not agree any more.
    lossy: AtomicBool,
    /// Bytes the server may still send; the least that any cut said.
    left: AtomicU64,
}

impl Connection {
    async fn relay<S: AsyncRead + AsyncWrite>(
        &self,
        mut client: TcpStream,
        server: S,
        startup: &[u8],
    ) -> io::Result<()> {
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let ended = {
            let (mut from_client, mut to_client) = client.split();
            let there = async {
                to_server.write_all(startup).await?;
                self.pump(Way::ToServer, &mut from_client, &mut to_server).await
            };
            let back = self.pump(Way::ToClient, &mut from_server, &mut to_client);
            let both = async { tokio::try_join!(there, back) };
            tokio::select! {
                ended = both => ended.map(|_| ()),
                () = self.handle.reset.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
            }
        };
        if ended.is_err() {
            // The client finds a reset and not an orderly end.
            client.set_zero_linger()?;
        }
        ended
    }

    fn fault(&self, rules: &mut watch::Receiver<Rules>) -> Option<Fault> {
        let rules = rules.borrow_and_update();
        rules.get(&self.handle.role).or_else(|| rules.get("")).copied()
    }

    async fn pump(
        &self,
        way: Way,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut rules = self.rules.clone();
        let mut buffer = vec![0; 16 * 1024];
        let mut messages = Messages::default();
        let mut ended = false;
        loop {
            let fault = self.fault(&mut rules);
            let holds = matches!(fault, Some(Fault::Hold(held)) if held.includes(way));
            let swallows = matches!(fault, Some(Fault::Swallow(lost)) if lost.includes(way));
            if fault == Some(Fault::Reset) || (self.lossy.load(Ordering::Relaxed) && !is_swallow(fault)) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            match fault {
                Some(Fault::CutAfter(bytes)) => drop(self.left.fetch_min(bytes, Ordering::Relaxed)),
                _ => self.left.store(u64::MAX, Ordering::Relaxed),
            }
            if ended && swallows {
                self.lossy.store(true, Ordering::Relaxed);
            } else if ended && !holds {
                return to.shutdown().await;
            }
            // What is held waits in the sockets, and the sender learns that when they are full.
            let read = tokio::select! {
                biased;
                _ = rules.changed() => continue,
                read = from.read(&mut buffer), if !holds && !ended => read?,
            };
            if read == 0 {
                ended = true;
                continue;
            }
            if swallows {
                self.lossy.store(true, Ordering::Relaxed);
                continue;
            }
            let bytes = &buffer[..read];
            if let Some(Fault::Delay(pause)) = fault {
                tokio::time::sleep(pause).await;
            }
            if way == Way::ToServer {
                to.write_all(bytes).await?;
                continue;
            }
            let deaf = fault == Some(Fault::Deaf) || self.handle.deaf.load(Ordering::Relaxed);
            self.answer(&messages.pass(bytes, deaf), to).await?;
        }
    }

    /// Hands the client what the server says, up to a cut.
    async fn answer(&self, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == u64::MAX {
            return to.write_all(bytes).await;
        }
        let length = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        to.write_all(&bytes[..length]).await?;
        self.left.store(left - length as u64, Ordering::Relaxed);
        if length < bytes.len() {
            // What was written before must arrive before the reset does.
            to.flush().await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

fn is_swallow(fault: Option<Fault>) -> bool {
    matches!(fault, Some(Fault::Swallow(_)))
}

/// Where the server's messages begin and end: a letter, a length of four bytes that counts itself, and the rest.
#[derive(Default)]
struct Messages {
    head: Vec<u8>,
    body_left: usize,
    dropping: bool,
}

impl Messages {
    /// The bytes to hand on. The head of a message waits until it is whole.
    fn pass(&mut self, mut bytes: &[u8], deaf: bool) -> Vec<u8> {
        const NOTIFICATION: u8 = b'A';
        let mut passed = Vec::with_capacity(bytes.len() + self.head.len());
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let length = self.body_left.min(bytes.len());
                let (body, rest) = bytes.split_at(length);
                if !self.dropping {
                    passed.extend_from_slice(body);
                }
                self.body_left -= length;
                bytes = rest;
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let [letter, a, b, c, d] = self.head[..] {
                self.dropping = deaf && letter == NOTIFICATION;
                self.body_left = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                if !self.dropping {
                    passed.extend_from_slice(&self.head);
                }
                self.head.clear();
            }
        }
        passed
    }
}
