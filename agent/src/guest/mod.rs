// SPDX-License-Identifier: Apache-2.0
//! Tells the guest behind a tap its address: DHCPv4 (RFC 2131), DHCPv6 (RFC 8415) and router advertisements (RFC 4861).
//!
//! One task per port with one packet socket per family. There is one client and one lease per port, so nothing is stored:
//! every answer follows from the [`GuestPort`] alone. What a guest is told:
//!
//! | | DHCPv4 | RA and DHCPv6 |
//! |---|---|---|
//! | address | `yiaddr` with the mask of [`GuestPort::addresses`] | IA_NA, /128 by nature |
//! | default route | options 3 and, when asked, 121 | RA from `fe80::1` with the gateway's MAC |
//! | MTU | option 26 | RA |
//! | DNS | options 6, 15 and, when asked, 119 | RDNSS and DNSSL in the RA; options 23 and 24 |
//! | host name | option 12 | - |
//!
//! The IPv4 mask should be that of the node's pod CIDR: its first address is the gateway, and Weft answers ARP for every
//! address, so that any DHCP client finds its gateway on-link. With /32 only clients that understand option 121 do.
//!
//! A guest is hostile: frames are limited in length, answers in number, options are picked out by their lengths before they are
//! decoded, and nothing that a guest sends is kept. A service that fails all the same is started again and told in
//! `weft status`.

mod dhcp4;
mod dhcp6;
mod frame;
mod lease;
mod names;
mod options;
mod respond;
mod router;
mod socket;
mod supervise;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::Ipv6Addr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use weft_api::{AssignedAddress, DnsSettings, Mac};

pub use self::supervise::Counters;
use self::{
    lease::Lease,
    respond::{advertise, respond},
    socket::{MAX_FRAME, PortSocket},
    supervise::{Health, Pauses, supervise},
};

/// The IPv6 gateway of every port: Weft answers neighbour solicitations for it with the gateway's MAC.
pub const LINK_LOCAL_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// RFC 4861, section 10: a few soon after the start, then slowly.
const INITIAL_ADVERTISEMENTS: u32 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const INTERVAL: Duration = Duration::from_secs(600);

/// A guest that asks more often waits; its packet socket's buffer then fills up and drops.
const ANSWERS_PER_SECOND: u32 = 50;
/// So many it may save up.
const BURST: u32 = 100;

/// A tap port and what its guest is to be told.
#[derive(Clone, Debug)]
pub struct GuestPort {
    /// Index of the tap in the agent's network namespace.
    pub ifindex: u32,
    /// The guest's Ethernet address: frames from another are ignored.
    pub mac: Mac,
    /// At most one address per family. The IPv4 prefix length is the mask that the guest is told.
    pub addresses: Vec<AssignedAddress>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Name service.
    pub dns: DnsSettings,
    /// The guest's host name; left out where it is not one.
    pub hostname: Option<String>,
}

/// Serves as long as it lives; dropping it ends the task and closes the sockets.
#[derive(Debug)]
#[must_use = "dropping the handle ends the service"]
pub struct GuestHandle {
    task: JoinHandle<()>,
    health: Arc<Health>,
}

impl GuestHandle {
    /// What failed lately, if anything did.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.health.problem()
    }
}

impl Drop for GuestHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to serve the guest of a port, counted by `counters`; must run inside a tokio runtime, in the network namespace of the
/// tap.
///
/// # Errors
/// No packet socket on that interface: it is absent, or `CAP_NET_RAW` or (for the mark) `CAP_NET_ADMIN` is missing.
pub fn serve(port: &GuestPort, counters: &Arc<Counters>) -> io::Result<GuestHandle> {
    let (ifindex, lease) = (port.ifindex, Lease::new(port));
    let health = Arc::new(Health::new(counters.clone()));
    let mut first = Some(Server::open(ifindex, &lease, &health)?);
    let start = {
        let health = health.clone();
        move || {
            let server = match first.take() {
                Some(server) => server,
                None => Server::open(ifindex, &lease, &health)?,
            };
            Ok(server.run())
        }
    };
    Ok(GuestHandle { task: tokio::spawn(supervise(start, health.clone(), Pauses::default())), health })
}

struct Server {
    ifindex: u32,
    lease: Lease,
    health: Arc<Health>,
    v4: PortSocket,
    v6: PortSocket,
}

impl Server {
    fn open(ifindex: u32, lease: &Lease, health: &Arc<Health>) -> io::Result<Self> {
        let v4 = PortSocket::open(ifindex, libc::ETH_P_IP)?;
        let v6 = PortSocket::open(ifindex, libc::ETH_P_IPV6)?;
        Ok(Self { ifindex, lease: lease.clone(), health: health.clone(), v4, v6 })
    }

    async fn run(self) {
        let (mut v4, mut v6) = ([0; MAX_FRAME], [0; MAX_FRAME]);
        let mut pace = Pace::new();
        let mut advertised = 0;
        let mut next_advertisement = Instant::now();
        loop {
            tokio::select! {
                received = self.v4.receive(&mut v4) => self.handle(received, &v4, &self.v4),
                received = self.v6.receive(&mut v6) => self.handle(received, &v6, &self.v6),
                () = sleep_until(next_advertisement) => {
                    self.send(&self.v6, advertise(&self.lease));
                    advertised += 1;
                    next_advertisement += if advertised < INITIAL_ADVERTISEMENTS { INITIAL_INTERVAL } else { INTERVAL };
                }
            }
            if pace.wait().await {
                self.health.counters().limited.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn handle(&self, received: io::Result<usize>, buffer: &[u8; MAX_FRAME], socket: &PortSocket) {
        match received {
            // Longer than the buffer: nothing of ours.
            Ok(len) => self.send(socket, buffer.get(..len).and_then(|frame| respond(&self.lease, frame))),
            // A tap that goes down says so once; it may come up again.
            Err(error) => tracing::debug!(ifindex = self.ifindex, %error, "receiving from a guest"),
        }
    }

    fn send(&self, socket: &PortSocket, frame: Option<Vec<u8>>) {
        let Some(frame) = frame else { return };
        if let Err(error) = socket.send(&frame) {
            tracing::debug!(ifindex = self.ifindex, %error, "answering a guest");
        }
    }
}

/// Tokens of a port: [`ANSWERS_PER_SECOND`] come, [`BURST`] are kept, each round takes one.
struct Pace {
    tokens: u32,
    since: Instant,
}

impl Pace {
    const INTERVAL: Duration = Duration::from_millis(1000 / ANSWERS_PER_SECOND as u64);

    fn new() -> Self {
        Self { tokens: BURST, since: Instant::now() }
    }

    /// Takes a token; whether it had to be waited for.
    async fn wait(&mut self) -> bool {
        let Some(until) = self.take(Instant::now()) else { return false };
        sleep_until(until).await;
        true
    }

    /// Takes a token; where there is none, the next one, which comes at the time given.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        let intervals = now.saturating_duration_since(self.since).as_millis() / Self::INTERVAL.as_millis();
        let whole = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(whole).min(BURST);
        self.since = if whole >= BURST { now } else { self.since + Self::INTERVAL * whole };
        if let Some(left) = self.tokens.checked_sub(1) {
            self.tokens = left;
            return None;
        }
        self.since += Self::INTERVAL;
        Some(self.since)
    }
}
