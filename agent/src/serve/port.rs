// SPDX-License-Identifier: Apache-2.0
//! Ports that the agent can do without: where somebody else has one, that is a problem, and it is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::sleep,
};

use super::Shared;
use crate::model::{ObjectKey, Refusal, RefusedKind};

/// Between attempts.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(5) };
/// Connections that wait to be accepted.
const BACKLOG: u32 = 256;

/// Whose port it is.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Owner {
    /// A field of the configuration.
    Field(&'static str),
    /// A Service, and its uid.
    Service(ObjectKey, Option<String>),
}

impl Owner {
    /// What whoever finds the port taken does about it.
    const fn fix(&self) -> &'static str {
        match self {
            Self::Field(_) => "end what has the port, or configure another one (0: none)",
            Self::Service(..) => "end what has the port, or give the Service another one",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(field) => f.write_str(field),
            Self::Service(service, _) => write!(f, "Service {service}: healthCheckNodePort"),
        }
    }
}

type Place = (Owner, SocketAddr);

/// Ports that could not be had, and why.
#[derive(Debug, Default)]
pub struct Missing(Mutex<BTreeMap<Place, String>>);

/// Whoever gives up waiting for a port has no problem with it any more.
struct Waiting<'m> {
    missing: &'m Missing,
    place: Place,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.missing.lock().remove(&self.place);
    }
}

impl Missing {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each as a sentence that names whose port it is, the port and the fix.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let missing = self.lock();
        missing.iter().map(|((owner, _), why)| format!("{owner}: {why}")).collect()
    }

    /// Those of Services, for their Events.
    #[must_use]
    pub fn refusals(&self) -> BTreeSet<Refusal> {
        let missing = self.lock();
        let of_services = missing.iter().filter_map(|((owner, _), why)| {
            let Owner::Service(key, uid) = owner else { return None };
            Some(Refusal { kind: RefusedKind::HealthCheck, key: key.clone(), uid: uid.clone(), why: why.clone() })
        });
        of_services.collect()
    }

    /// Listens, as soon as that is possible; none: the node has no addresses of this family.
    pub(super) async fn listen(&self, owner: &Owner, address: SocketAddr) -> Option<TcpListener> {
        let waiting = Waiting { missing: self, place: (owner.clone(), address) };
        loop {
            match bind(address) {
                Ok(listener) => return Some(listener),
                Err(error) if is_switched_off(&error) => {
                    tracing::debug!(%owner, %address, %error, "this node does not have the family");
                    return None;
                }
                Err(error) => {
                    let fix = owner.fix();
                    let why = format!("cannot listen on {address}: {error}; {fix}; it is tried again every 5 s");
                    if self.lock().insert(waiting.place.clone(), why.clone()).is_none() {
                        tracing::warn!(%owner, why, "a port is missing");
                    }
                }
            }
            sleep(RETRY).await;
        }
    }
}

/// Every address of the node, by family. Apart, so that each is there whatever `net.ipv6.bindv6only` says.
pub(super) fn everywhere(port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].map(|any| SocketAddr::new(any, port))
}

/// The host's two names for itself.
pub(super) fn on_loopback(port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|own| SocketAddr::new(own, port))
}

/// Answers at both addresses of the port that `field` of the configuration names, once each can be had, for ever.
pub(super) async fn serve_both<F, Served>(
    field: &'static str,
    [v4, v6]: [SocketAddr; 2],
    shared: Arc<Shared>,
    serve_on: F,
) where
    F: Fn(TcpListener, Arc<Shared>) -> Served,
    Served: Future<Output = ()>,
{
    let owner = Owner::Field(field);
    let at = async |address| {
        if let Some(listener) = shared.missing.listen(&owner, address).await {
            serve_on(listener, shared.clone()).await;
        }
    };
    tokio::join!(at(v4), at(v6));
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, Ipv6V6Only, &true)?;
        socket
    };
    // Connections of an agent that has just ended keep nobody out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// `EADDRNOTAVAIL` and `EAFNOSUPPORT`: what a node without a family says.
pub(super) fn is_switched_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}
