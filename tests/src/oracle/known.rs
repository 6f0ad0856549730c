// SPDX-License-Identifier: Apache-2.0

//! Where Weft is known not to do what the oracle says. Each entry is one way to be wrong, it is counted in every run, and it goes
//! with the change that mends it.

use super::model::Quirks;

/// One entry.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) quirk: fn() -> Quirks,
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
