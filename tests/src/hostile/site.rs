// SPDX-License-Identifier: Apache-2.0

//! Two nodes joined by VXLAN, with workloads that attack and workloads that are attacked.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case,
    attacker::{Attacker, Family, Who},
    encapsulation, fragments, offload, routing, solicitation, status, tunnel_peer, uplink, vlan,
    witness::Mark,
};
use crate::{
    bed::{Bed, Outside},
    binaries::Binaries,
    container::Container,
    manifest,
    node::{Mode, Node},
    shell::Shell as _,
    vm::Vm,
    wait::until_ok,
};

/// The port where honest packets go to.
pub(super) const PORT: u16 = 7001;
/// UDP port of every bed's VXLAN.
pub(super) const VXLAN: u16 = 8472;
/// Network identifier of every bed.
pub(super) const VNI: u32 = 7765;
/// How long changes of manifests may take.
const SOON: Duration = Duration::from_secs(20);

/// The site of the attacks on isolation.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agents are there.
    guest: OnceCell<Vm>,
    machine: OnceCell<Vm>,
    /// On node 1; nothing restricts it.
    pub(super) hostile: Container,
    /// On node 1 and 2; only friends may reach them.
    pub(super) victims: [Container; 2],
    /// On node 1 and 2; the victims' friends.
    pub(super) friends: [Container; 2],
    /// On node 1 and 2; everybody may reach them.
    pub(super) open: [Container; 2],
    /// On node 1; nobody may reach it.
    pub(super) sealed: Container,
    pub(super) bed: Bed,
}

/// Every case of this site.
pub(super) fn cases() -> Vec<Case<Site>> {
    let groups = [
        encapsulation::cases(),
        tunnel_peer::cases(),
        uplink::cases(),
        offload::cases(),
        solicitation::cases(),
        vlan::cases(),
        routing::cases(),
        fragments::cases(),
        status::cases(),
    ];
    groups.into_iter().flatten().collect()
}

impl Site {
    /// The site, with its policies in force.
    pub(super) fn new(binaries: &Binaries) -> Result<Self> {
        Self::with(Mode::Vxlan, binaries)
    }

    /// The site with routed pod CIDRs.
    pub(super) fn native(binaries: &Binaries) -> Result<Self> {
        Self::with(Mode::Native, binaries)
    }

    fn with(mode: Mode, binaries: &Binaries) -> Result<Self> {
        let bed = super::bed(2, mode, Value::Null, binaries)?;
        let both = |name: &str, labels: &[(&str, &str)]| -> Result<[Container; 2]> {
            let of = |number: usize| bed.container(number, &format!("default/{name}{number}"), labels);
            Ok([of(1)?, of(2)?])
        };
        let victims = both("victim", &[("app", "victim")])?;
        let friends = both("friend", &[("role", "friend")])?;
        let open = both("open", &[("app", "open")])?;
        let sealed = bed.container(1, "default/sealed", &[("app", "sealed")])?;
        let hostile = bed.container(1, "default/hostile", &[])?;
        bed.apply(&manifest::ingress_policy("default/friends-only", &[("app", "victim")], &[("role", "friend")]))?;
        bed.apply(&manifest::ingress_policy("default/nobody", &[("app", "sealed")], &[("role", "nobody")]))?;
        bed.apply(&manifest::service("default/sealed", SEALED, PORT, PORT, &[("app", "sealed")]))?;
        let protected = [victims[0].v4()?, victims[0].v6()?].map(|address| (address, PORT));
        for object in leads_to("protected", PROTECTED, PORT, protected) {
            bed.apply(&object)?;
        }
        for node in bed.nodes() {
            // As a node of Kubernetes has it.
            node.sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?.ok()?;
        }
        let site =
            Self { guest: OnceCell::new(), machine: OnceCell::new(), hostile, victims, friends, open, sealed, bed };
        site.settled(&["friends-only", "nobody"])?;
        Ok(site)
    }

    /// Node 1: the attackers' own.
    pub(super) fn own(&self) -> &Node {
        self.bed.node(1)
    }

    /// Node 2.
    pub(super) fn peer(&self) -> &Node {
        self.bed.node(2)
    }

    /// The machine beyond the nodes: also a neighbour on their wire that is no node.
    pub(super) fn outside(&self) -> &Outside {
        self.bed.outside()
    }

    /// The attacker of a kind, on node 1; a guest is booted when it is wanted first.
    pub(super) fn attacker(&self, who: Who) -> Result<Attacker<'_>> {
        match who {
            Who::Pod => Attacker::pod(&self.hostile),
            guest => Attacker::guest(self.vm(guest)?),
        }
    }

    /// The guest of a kind.
    pub(super) fn vm(&self, who: Who) -> Result<&Vm> {
        match who {
            Who::VhostGuest => once(&self.machine, || self.bed.vhost_vm(1, "default/machine", GUEST)),
            _ => once(&self.guest, || self.bed.vm(1, "default/guest", GUEST)),
        }
    }

    /// Waits until both nodes have exactly these policies.
    pub(super) fn settled(&self, policies: &[&str]) -> Result<()> {
        for node in self.bed.nodes() {
            until_ok("the policies", SOON, || {
                let reports: Vec<weft_api::PolicyReport> = node.weft_json("policies")?;
                let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
                ensure!(
                    names.len() == policies.len() && policies.iter().all(|policy| names.contains(policy)),
                    "{} has {names:?}",
                    node.name()
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sends an honest datagram with `mark` from a pod's own socket.
    pub(super) fn honest(&self, from: &Container, to: SocketAddr, mark: &Mark) -> Result<()> {
        datagram(from, to, mark)
    }
}

/// Labels of the guests.
const GUEST: &[(&str, &str)] = &[("app", "guest")];

/// Addresses of the Service of the pod that nobody may reach.
pub(super) const SEALED: [&str; 2] = ["10.96.0.40", "fd00:96::40"];

/// Addresses of the Service of the victim on node 1.
pub(super) const PROTECTED: [&str; 2] = ["10.96.0.42", "fd00:96::42"];

/// The value in the cell; made by the first who wants it.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if cell.get().is_none() {
        drop(cell.set(make()?));
    }
    cell.get().context("the cell was just filled")
}

/// Sends a datagram from a socket of its own at `from`.
pub(super) fn datagram(from: &impl super::net::Place, to: SocketAddr, payload: &[u8]) -> Result<()> {
    let any = if to.is_ipv4() { Family::V4.any() } else { Family::V6.any() };
    let socket = from.udp(SocketAddr::new(any, 0))?;
    // A refusal by ICMP of what was sent before is no failure of this one.
    drop(socket.send_to(payload, to));
    Ok(())
}

/// A Service without selector, and the slices that make it lead to `targets` (one per family).
pub(super) fn leads_to(name: &str, addresses: [&str; 2], port: u16, targets: [(IpAddr, u16); 2]) -> Vec<Value> {
    let mut service = manifest::service(&format!("default/{name}"), addresses, port, port, &[]);
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.remove("selector");
    }
    let slice = |(address, port): (IpAddr, u16)| {
        let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": format!("{name}-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": kind,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": port},
                {"name": "udp", "protocol": "UDP", "port": port},
            ],
        })
    };
    vec![service, slice(targets[0]), slice(targets[1])]
}
