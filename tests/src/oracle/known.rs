// SPDX-License-Identifier: Apache-2.0

//! Where Weft is known not to do what the oracle says. Each entry is one way to be wrong, it is counted in every run, and it goes
//! with the change that mends it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    model::Quirks,
    world::{Packet, Protocol},
};

/// One entry.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) quirk: fn() -> Quirks,
}

/// Connections of a chain by what they look like once they are translated: protocol, client, receiver.
#[derive(Debug, Default)]
pub(super) struct Lookalikes(BTreeMap<(Protocol, Socket, Socket), BTreeSet<Socket>>);

type Socket = (IpAddr, u16);

impl Lookalikes {
    /// The packet has arrived so, for this receiver.
    pub(super) fn note(&mut self, packet: &Packet, client: Socket, receiver: Socket) {
        let meant = (packet.destination, packet.dport);
        self.0.entry((packet.protocol, client, receiver)).or_default().insert(meant);
    }

    /// Whether a connection that was meant for somebody else looks so: `packet` has to leave under another port.
    pub(super) fn has(&self, packet: &Packet, client: Socket, receiver: Socket) -> bool {
        let meant = (packet.destination, packet.dport);
        self.0
            .get(&(packet.protocol, client, receiver))
            .is_some_and(|others| others.iter().any(|other| *other != meant))
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The list.
pub(super) const KNOWN: &[Known] = &[
    Known {
        name: "B2: a connection whose backend's pod is gone from this node, and listed still, moves to another backend",
        quirk: || Quirks { leaves_gone_pod: true, ..Quirks::default() },
    },
    // Nobody sends from such an address but the node that has the CIDR.
    Known {
        name: "an address in another node's pod CIDR that no pod has, and not that node, counts as any pod's",
        quirk: || Quirks { pods_by_prefix: true, ..Quirks::default() },
    },
];
