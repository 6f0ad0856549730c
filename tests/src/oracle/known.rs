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

/// Two connections of one source port that look alike once they are translated, by one Service and another or to the backend itself,
/// share the entry of their answers: those of the first are lost to the second. No verdict on a packet, so that grounds find it: see
/// [`Lookalikes`].
pub(super) const CLASH: Known = Known {
    name: "C3: connections that look alike once they are translated share their answers",
    quirk: Quirks::default,
};

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

    /// Whether another one has arrived the same way that was meant for somebody else.
    pub(super) fn clash(&self, packet: &Packet, client: Socket, receiver: Socket) -> bool {
        self.0.get(&(packet.protocol, client, receiver)).is_some_and(|meant| meant.len() > 1)
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The list.
pub(super) const KNOWN: &[Known] = &[
    Known {
        name: "C1: UDP and SCTP through a Service choose another backend when anything changes",
        quirk: || Quirks { udp_moves: true, ..Quirks::default() },
    },
    Known {
        name: "C5: established TCP ends when its Service or port is deleted",
        quirk: || Quirks { tcp_ends_with_service: true, ..Quirks::default() },
    },
    Known {
        name: "B2: established TCP whose backend's pod is gone from this node moves to another backend",
        quirk: || Quirks { tcp_leaves_gone_pod: true, ..Quirks::default() },
    },
    Known {
        name: "C7: a connection from the wire goes on after a node has come whose pods have its source",
        quirk: || Quirks { wire_stays: true, ..Quirks::default() },
    },
    Known {
        name: "SCTP to an endpoint with another port is refused (`unrewritable`)",
        quirk: || Quirks { sctp_keeps_port: true, ..Quirks::default() },
    },
];
