// SPDX-License-Identifier: Apache-2.0

//! What a client sees: connections of this process in a pod's network namespace.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use weft_testbed::{in_network, load};

use super::super::statistic::{Pair, Side, in_turn};

/// One attempt to connect.
const ATTEMPT: Duration = Duration::from_millis(200);
/// Between two attempts: well below what is measured, and little of a processor.
const PAUSE: Duration = Duration::from_micros(50);
/// Measurements of a figure in one round.
const SLICES: usize = 2;
const CONNECTIONS: Duration = Duration::from_millis(120);
/// Where client and server run: they take turns, and no wake-up of another processor is in the figure.
pub(super) const TURNS: Option<usize> = Some(1);

/// A client and the server that it asks.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) client: &'a dyn weft_testbed::Shell,
    pub(super) to: SocketAddr,
}

/// Microseconds of a short connection (TCP_CRR, median) of both sides, right after one another, several times.
pub(super) fn short_connections(round: usize, ends: Pair<End<'_>>) -> Result<Pair<f64>> {
    let mut mean = Pair { value: 0.0, baseline: 0.0 };
    for slice in 0..SLICES {
        let pair = in_turn(round + slice, |side| {
            let End { client, to } = if side == Side::Baseline { ends.baseline } else { ends.value };
            Ok(load::latency(client, load::Kind::Connections, to, CONNECTIONS, TURNS)?.p50)
        })?;
        mean.value += pair.value / SLICES as f64;
        mean.baseline += pair.baseline / SLICES as f64;
    }
    Ok(mean)
}

/// Whether somebody accepts a connection to `to`.
pub(super) fn is_served(network: &Path, to: SocketAddr) -> Result<bool> {
    in_network(network, || Ok(TcpStream::connect_timeout(&to, ATTEMPT).is_ok()))
}

/// Waits until somebody accepts a connection to `to`; none where nobody did within `patience`.
pub(super) fn await_served(network: &Path, to: SocketAddr, patience: Duration) -> Result<Option<Instant>> {
    in_network(network, || {
        let start = Instant::now();
        while start.elapsed() < patience {
            if TcpStream::connect_timeout(&to, ATTEMPT).is_ok() {
                return Ok(Some(Instant::now()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    })
}

/// Does `change`, and connects to `to` until the server that tells `name` has answered: the moment of that.
pub(super) fn meets_after(
    network: &Path,
    to: SocketAddr,
    name: u8,
    patience: Duration,
    change: impl FnOnce() -> Result<()> + Send,
) -> Result<Instant> {
    in_network(network, || {
        change()?;
        let start = Instant::now();
        loop {
            if who(to).is_some_and(|found| found == name) {
                return Ok(Instant::now());
            }
            ensure!(start.elapsed() < patience, "{to} does not lead to the new backend");
            thread::sleep(PAUSE);
        }
    })
}

/// The name that whoever serves `to` tells.
fn who(to: SocketAddr) -> Option<u8> {
    let mut stream = TcpStream::connect_timeout(&to, ATTEMPT).ok()?;
    stream.set_read_timeout(Some(ATTEMPT)).ok()?;
    let mut name = [0];
    stream.read_exact(&mut name).ok()?;
    Some(name[0])
}

/// A server that tells everybody one byte.
pub(super) struct Named(TcpListener);

impl Named {
    /// Listens in a network namespace.
    pub(super) fn new(network: &Path, port: u16, name: u8) -> Result<Self> {
        let listener = in_network(network, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen in the network namespace")
        })?;
        let own = listener.try_clone()?;
        thread::spawn(move || {
            // The end of the listener is the end of the thread; a client that goes away is no fault.
            for mut stream in own.incoming().map_while(Result::ok) {
                drop(stream.write_all(&[name]));
            }
        });
        Ok(Self(listener))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // A listener is shut down like a connection, and its accept(2) ends.
        if let Ok(listener) = self.0.try_clone() {
            drop(TcpStream::from(OwnedFd::from(listener)).shutdown(Shutdown::Both));
        }
    }
}
