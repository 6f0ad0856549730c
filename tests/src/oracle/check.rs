// SPDX-License-Identifier: Apache-2.0

//! What was seen of a packet, beside what the oracle says of it.

use std::{net::IpAddr, ops::RangeInclusive};

use super::{
    known::{KNOWN, Known},
    model::{self, Quirks, Reason, Source, Target, Verdict},
    world::{Packet, World},
};

/// `masqueradePorts` by default, where the kernel gives the host's own connections the usual ports.
const MASQUERADE_PORTS: RangeInclusive<u16> = 1024..=29_999;

/// What a packet did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    /// It was dropped, for the reason of this name.
    Dropped(String),
    /// The node's own stack got it.
    Kernel,
    Sent(Sent),
}

/// Where a packet went, and how it looks there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Sent {
    pub(super) to: Target,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) source: IpAddr,
    pub(super) sport: u16,
}

/// How what was seen stands to what may be.
#[derive(Debug)]
pub(super) enum Outcome {
    Right(Verdict),
    /// Not as it should be, and on the list.
    Known(&'static Known, Verdict),
    Wrong {
        expected: Vec<Verdict>,
    },
}

/// Compares `seen` with what `oracle` says, first without what is known to be wrong.
pub(super) fn judge(
    seen: &Seen,
    packet: &Packet,
    world: &World,
    here: &str,
    oracle: impl Fn(Quirks) -> Vec<Verdict>,
) -> Outcome {
    let expected = oracle(Quirks::default());
    let fits = |verdicts: Vec<Verdict>| verdicts.into_iter().find(|verdict| fits(seen, verdict, packet, world, here));
    if let Some(verdict) = fits(expected.clone()) {
        return Outcome::Right(verdict);
    }
    // One alone first, then two together.
    for known in KNOWN {
        if let Some(verdict) = fits(oracle((known.quirk)())) {
            return Outcome::Known(known, verdict);
        }
    }
    for (at, known) in KNOWN.iter().enumerate() {
        for other in &KNOWN[at + 1..] {
            if let Some(verdict) = fits(oracle((known.quirk)().and((other.quirk)()))) {
                return Outcome::Known(known, verdict);
            }
        }
    }
    Outcome::Wrong { expected }
}

/// Whether what was seen is what `verdict` says.
fn fits(seen: &Seen, verdict: &Verdict, packet: &Packet, world: &World, here: &str) -> bool {
    match (seen, verdict) {
        (Seen::Dropped(name), Verdict::Dropped(reason)) => class(name) == Some(*reason),
        (Seen::Kernel, Verdict::Kernel) => true,
        (Seen::Sent(sent), Verdict::Delivered { to, address, port, source }) => {
            let source_fits = source_fits(*source, (sent.source, sent.sport), packet, world, here);
            (&sent.to, sent.address, sent.port) == (to, *address, *port) && source_fits
        }
        _ => false,
    }
}

/// Whether a receiver may see this sender; `here`: the node that masquerades.
pub(super) fn source_fits(source: Source, seen: (IpAddr, u16), packet: &Packet, world: &World, here: &str) -> bool {
    let (address, port) = seen;
    match source {
        Source::Kept => seen == (packet.source, packet.sport),
        Source::Masqueraded => {
            world.node(here).is_some_and(|node| node.addresses.contains(&address)) && MASQUERADE_PORTS.contains(&port)
        }
        Source::Hairpin => address == model::hairpin(address.is_ipv4()),
        Source::NotItself => address != packet.source,
    }
}

/// The oracle's word for a counter of drops.
pub(super) fn class(name: &str) -> Option<Reason> {
    Some(match name {
        "source-address" | "source-mac" | "tunnel-peer" => Reason::Source,
        "policy-egress" => Reason::Egress,
        "policy-ingress" => Reason::Ingress,
        "no-backend" => Reason::NoBackend,
        "no-local-backend" => Reason::NoLocalBackend,
        "source-range" => Reason::SourceRange,
        "no-service" => Reason::NoService,
        "no-service-port" => Reason::NoServicePort,
        "no-endpoint" | "no-route" => Reason::Unreachable,
        _ => return None,
    })
}
