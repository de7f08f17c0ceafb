//! Where a URL from an event must not lead (server-side request forgery): to anything that not everybody can reach, unless the
//! configuration allows it.
//!
//! The list is that of IANA's registries of special-purpose addresses
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>), of
//! multicast, and of the IPv6 space that is not given out (<https://www.iana.org/assignments/ipv6-address-space>).
//!
//! What is checked are the addresses that the connection is made to: a [`Guard`] is the client's resolver, and what it gives back is
//! what it has checked. So a name that leads elsewhere a moment later leads nowhere. An address in the URL itself is never
//! resolved; [`Guard::check_url`] sees it before.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// IPv4 addresses that not everybody can reach, or that lead to whoever asks.
const V4: [(Ipv4Net, &str); 17] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "shared between customers of a carrier"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    // A public address that only the machines of that cloud reach.
    (v4([168, 63, 129, 16], 32), "the platform of a cloud"),
    (v4([169, 254, 0, 0], 16), "link-local, where clouds keep their metadata"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "reserved for protocols"),
    (v4([192, 0, 2, 0], 24), "documentation"),
    (v4([192, 88, 99, 0], 24), "6to4 relays"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([198, 18, 0, 0], 15), "benchmarking"),
    (v4([198, 51, 100, 0], 24), "documentation"),
    (v4([203, 0, 113, 0], 24), "documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
];

/// The same of IPv6.
const V6: [(Ipv6Net, &str); 14] = [
    (v6(0, 0, 128), "unspecified"),
    (v6(0, 1, 128), "loopback"),
    (v6(0, 0, 96), "an IPv4 address in an old form"),
    (v6(0x0064_ff9b_0001_0000, 0, 48), "translated to a private network's IPv4"),
    (v6(0x0100_0000_0000_0000, 0, 64), "discarded"),
    (v6(0x2001_0000_0000_0000, 0, 32), "Teredo, a tunnel to IPv4"),
    (v6(0x2001_0000_0000_0000, 0, 23), "reserved for protocols"),
    (v6(0x2001_0db8_0000_0000, 0, 32), "documentation"),
    (v6(0x2002_0000_0000_0000, 0, 16), "6to4, a tunnel to IPv4"),
    (v6(0x3fff_0000_0000_0000, 0, 20), "documentation"),
    (v6(0xfc00_0000_0000_0000, 0, 7), "private"),
    (v6(0xfe80_0000_0000_0000, 0, 10), "link-local"),
    (v6(0xfec0_0000_0000_0000, 0, 10), "private"),
    (v6(0xff00_0000_0000_0000, 0, 8), "multicast"),
];

/// All that is given out to be reached by everybody.
const GLOBAL: Ipv6Net = v6(0x2000_0000_0000_0000, 0, 3);
/// IPv4 addresses behind a translator that everybody may run (RFC 6052).
const TRANSLATED: Ipv6Net = v6(0x0064_ff9b_0000_0000, 0, 96);

const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(high: u64, low: u64, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits((high as u128) << 64 | low as u128), bits)
}

/// A host that a URL from an event must not lead to.
#[derive(Debug, thiserror::Error)]
#[error("{host} is {what}; a URL from an event leads there only if `allow` has it")]
pub(super) struct Refused {
    /// The address in the URL, or the name and the address it leads to.
    host: String,
    what: String,
}

impl Refused {
    /// Whether this is why a request was not sent.
    pub(super) fn among(error: &reqwest::Error) -> Option<&Self> {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref() {
                return Some(refused);
            }
            cause = error.source();
        }
        None
    }
}

/// What is refused, but for these nets.
#[derive(Clone)]
pub(super) struct Guard {
    allow: Arc<[IpNet]>,
    names: Arc<dyn Resolve>,
}

impl Guard {
    pub(super) fn new(allow: &[IpNet], names: Arc<dyn Resolve>) -> Self {
        Self { allow: allow.into(), names }
    }

    /// Refuses a URL whose host is an address. The URL standard knows many ways to write one; here they are all read.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), Refused> {
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        address.map_or(Ok(()), |address| self.check(host, address))
    }

    fn check(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        match refusal(address, &self.allow) {
            None => Ok(()),
            Some(what) => Err(Refused { host: host.to_owned(), what }),
        }
    }
}

impl Resolve for Guard {
    /// The addresses of a name, if there is no bad one among them: who has both is about to lead somebody astray.
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, host) = (self.clone(), name.as_str().to_owned());
        let resolving = self.names.resolve(name);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = resolving.await?.collect();
            for address in &addresses {
                let address = address.ip();
                guard.check(&format!("{host} leads to {address}, which"), address)?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The names as this machine knows them.
pub(super) struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts the port in.
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Why nothing from an event leads to this address, if that is so.
pub(super) fn refusal(address: IpAddr, allow: &[IpNet]) -> Option<String> {
    // The same address for the system.
    let address = address.to_canonical();
    if allow.iter().any(|net| net.contains(&address)) {
        return None;
    }
    match address {
        IpAddr::V4(address) => {
            let (net, what) = V4.iter().find(|(net, _)| net.contains(&address))?;
            Some(format!("{what} ({net})"))
        }
        IpAddr::V6(address) if TRANSLATED.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            let inside = Ipv4Addr::new(a, b, c, d);
            refusal(inside.into(), allow).map(|what| format!("translated to {inside}, {what}"))
        }
        IpAddr::V6(address) => match V6.iter().find(|(net, _)| net.contains(&address)) {
            Some((net, what)) => Some(format!("{what} ({net})")),
            None if GLOBAL.contains(&address) => None,
            None => Some(format!("not given out to be reached by everybody (only {GLOBAL} is)")),
        },
    }
}
