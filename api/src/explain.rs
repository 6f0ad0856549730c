// SPDX-License-Identifier: Apache-2.0
//! `weft explain`: what happens to the first packet of a flow.

use serde::{Deserialize, Serialize};

/// A packet to decide on, as if it arrived at this node now. Nothing is sent and nothing is remembered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExplainQuery {
    /// Who sends it: an address, `NAMESPACE/NAME` of a pod, or `host` for this node itself.
    pub from: String,
    /// Where to: an address, `NAMESPACE/NAME` of a pod, `svc/NAMESPACE/NAME` for a Service, or `host`.
    pub to: String,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// Source port.
    pub source_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// What was decided, and by what.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// The packet: protocol, addresses and ports with names where they are known.
    pub packet: String,
    /// The hook that it arrives at: `from_workload`, `from_host`, `from_overlay` or `from_uplink`.
    pub hook: String,
    /// Every look-up, in the order of the decision.
    pub steps: Vec<ExplainStep>,
    /// The packet goes on.
    pub forwarded: bool,
    /// Where it goes and as what, or why it is dropped.
    pub verdict: String,
    /// Look-ups for which the maps have something else than the plan. A change that is being written shows here for a moment.
    pub differences: Vec<String>,
}

/// One look-up.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExplainStep {
    /// `admit`, `translate`, `locate` or `judge`.
    pub step: String,
    /// The map.
    pub map: String,
    /// What was looked up.
    pub key: String,
    /// What it has; `-`: nothing.
    pub value: String,
}
