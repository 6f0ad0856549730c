// SPDX-License-Identifier: Apache-2.0

//! B5: nobody keeps the kubelet's probes from the agent.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Case, net::Place};
use crate::{bed::Bed, binaries::Binaries, container::Container, node::Mode, wait::until_ok};

/// The port of health.
const PORT: u16 = 9_911;
/// Connections of one attack.
const CONNECTIONS: usize = 200;

/// One node whose agent serves health where it does by default.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    hostile: Container,
    bed: Bed,
}

impl Site {
    /// The site.
    pub(super) fn new(binaries: &Binaries) -> Result<Self> {
        let bed = super::bed(1, Mode::Vxlan, Value::Null, binaries)?;
        Ok(Self { hostile: bed.container(1, "default/hostile", &[])?, bed })
    }
}

pub(super) fn cases() -> Vec<Case<Site>> {
    vec![
        Case::new("B5/idle-connections-leave-probes/pod/ipv4", |site: &Site| {
            by_a_pod(site, site.bed.node(1).v4().into())
        }),
        Case::new("B5/idle-connections-leave-probes/pod/ipv6", |site: &Site| {
            by_a_pod(site, site.bed.node(1).v6().into())
        }),
        Case::new("B5/idle-connections-leave-probes/local-user/ipv4", by_a_local_user),
        Case::new("B5/metrics-are-not-a-pods/pod/ipv4", |site: &Site| not_a_pods(site, site.bed.node(1).v4().into())),
        Case::new("B5/metrics-are-not-a-pods/pod/ipv6", |site: &Site| not_a_pods(site, site.bed.node(1).v6().into())),
    ]
}

/// As many connections as are accepted; nothing is sent on them.
fn idle(place: &impl Place, to: SocketAddr) -> Result<Vec<TcpStream>> {
    place.inside(|| {
        let connect = |_| TcpStream::connect_timeout(&to, Duration::from_millis(200));
        // The first that is refused or dropped shows that the others would be.
        Ok((0..CONNECTIONS).map(connect).map_while(Result::ok).collect())
    })
}

/// A probe is answered within the time that it has.
fn probed(site: &Site) -> Result<()> {
    let node = site.bed.node(1);
    until_ok("a probe of the kubelet to be answered", Duration::from_secs(4), || {
        let said = get(node.as_ref(), (Ipv4Addr::LOCALHOST, PORT).into(), "/healthz")?;
        ensure!(said.starts_with("HTTP/1.1 200"), "{said}");
        Ok(())
    })
}

/// What is answered to an HTTP request from `place` within the second that a probe has by default.
fn get(place: &impl Place, to: SocketAddr, path: &str) -> Result<String> {
    let patience = Duration::from_secs(1);
    let mut stream = place.inside(|| TcpStream::connect_timeout(&to, patience)).context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

fn by_a_pod(site: &Site, node: IpAddr) -> Result<()> {
    probed(site).context("before the attack")?;
    let held = idle(&site.hostile, SocketAddr::new(node, PORT))?;
    probed(site).with_context(|| format!("beside {} idle connections", held.len()))
}

fn by_a_local_user(site: &Site) -> Result<()> {
    probed(site).context("before the attack")?;
    let held = idle(site.bed.node(1).as_ref(), (Ipv4Addr::LOCALHOST, PORT).into())?;
    ensure!(!held.is_empty(), "nothing is shown: no connection was accepted");
    probed(site).with_context(|| format!("beside {} idle connections", held.len()))
}

/// What the agent counts is for the operator.
fn not_a_pods(site: &Site, node: IpAddr) -> Result<()> {
    probed(site)?;
    let answered = get(&site.hostile, SocketAddr::new(node, PORT), "/metrics").is_ok_and(|text| text.contains("weft_"));
    ensure!(!answered, "a pod reads the agent's metrics");
    Ok(())
}
