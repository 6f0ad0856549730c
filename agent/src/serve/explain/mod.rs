// SPDX-License-Identifier: Apache-2.0
//! `weft explain`: the programs' own logic, run on the programs' own maps for a packet that nobody has sent.

mod ends;
mod recorder;
mod tables;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use weft_abi::{Addr, CLUSTER_NET, ConnectionFlags, DROP_REASONS, Deliver, DropReason, Flow, Owner, rule};
use weft_api::{ApiError, ErrorCode, ExplainQuery, Explanation};
use weft_logic::{
    Tables as _, admit, decide, plan,
    walk::{Decision, Sender, Walk},
};

use self::recorder::Recorder;
use super::flows;
use crate::{model::Attachment, plan::Planner};

/// Read access to the maps, and to a fake of them in tests.
pub(crate) use self::recorder::Reads;

/// Decides on the packet of `query` as the programs would.
///
/// # Errors
/// [`ErrorCode::Invalid`] for ends that are not known, with the field and the fix; [`ErrorCode::Io`] for a map that cannot be read.
pub(crate) fn explain(query: &ExplainQuery, known: &Known<'_>, maps: &impl Reads) -> Result<Explanation, ApiError> {
    let names = Names { known };
    let mut walk = ends::walk(query, known.planner, maps)?;
    let recorder = Recorder::new(maps, known.planner);
    let outcome = run(&recorder, &mut walk);
    let (steps, differences) = recorder.finish().map_err(unreadable)?;
    let (forwarded, verdict) = match outcome {
        Ok(Way::Decided) => (true, format!("{}{}", names.way(&walk), names.allowed_by(&walk))),
        Ok(Way::HostStack) => {
            (true, "goes on to the host's own IP stack: it is for no workload of this node".to_owned())
        }
        Err(reason) => (false, names.refusal(reason, &walk)),
    };
    let packet = names.ends(
        query.protocol,
        (walk.question.key.src, walk.question.key.sport),
        (walk.question.key.dst, walk.question.key.dport),
    );
    Ok(Explanation { packet, hook: hook(&walk).to_owned(), steps, forwarded, verdict, differences })
}

/// What the agent knows.
pub(crate) struct Known<'a> {
    /// The plan, and names.
    pub(crate) planner: &'a Planner,
    /// Workloads of this node.
    pub(crate) attachments: &'a [Arc<Attachment>],
}

/// How a packet goes on.
enum Way {
    /// As the entries of the walk say.
    Decided,
    /// No program has an opinion.
    HostStack,
}

/// As the slow path does it for a flow that answers no other one.
fn run<R: Reads>(recorder: &Recorder<'_, R>, walk: &mut Walk) -> Result<Way, DropReason> {
    if walk.question.sender == Sender::Uplink as u32
        && !recorder.owner(CLUSTER_NET, &walk.question.key.dst).is_some_and(Owner::is_workload)
    {
        return admit::admit_for_host(recorder, &walk.question, &mut walk.decision.client).map(|()| Way::HostStack);
    }
    decide::decide(recorder, &walk.question, &walk.forward, &mut walk.decision)?;
    let config = recorder.config().ok_or(DropReason::UnknownPort)?;
    plan::plan(walk, config);
    Ok(Way::Decided)
}

const fn hook(walk: &Walk) -> &'static str {
    match walk.question.sender {
        sender if sender == Sender::Workload as u32 => "from_workload",
        sender if sender == Sender::Host as u32 => "from_host",
        sender if sender == Sender::Overlay as u32 => "from_overlay",
        _ => "from_uplink",
    }
}

/// Names for people.
struct Names<'k> {
    known: &'k Known<'k>,
}

impl Names<'_> {
    fn end(&self, (addr, port): (Addr, u16)) -> String {
        let ip = IpAddr::from(addr);
        let name = self.known.planner.name(addr).map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}{name}", std::net::SocketAddr::new(ip, u16::from_be(port)))
    }

    fn ends(&self, protocol: u8, from: (Addr, u16), to: (Addr, u16)) -> String {
        format!("{} {} -> {}", flows::protocol(protocol), self.end(from), self.end(to))
    }

    /// Where a decided packet goes, and as what.
    fn way(&self, walk: &Walk) -> String {
        let flow = &walk.forward;
        let place = self.place(walk, flow);
        let becomes = &flow.connection;
        let has = |flags| becomes.flags & flags != 0;
        if !has(ConnectionFlags::REWRITE_SRC | ConnectionFlags::REWRITE_DST) {
            return place;
        }
        let source = if has(ConnectionFlags::REWRITE_SRC) {
            (becomes.src, becomes.sport)
        } else {
            (walk.question.key.src, walk.question.key.sport)
        };
        let target = if has(ConnectionFlags::REWRITE_DST) {
            (becomes.dst, becomes.dport)
        } else {
            (walk.question.key.dst, walk.question.key.dport)
        };
        let free = if source.1 == 0 && walk.question.key.sport != 0 { ", under a port that is free there" } else { "" };
        format!("{place}, as {}{free}", self.ends(walk.question.key.protocol.try_into().unwrap_or(0), source, target))
    }

    fn place(&self, walk: &Walk, flow: &Flow) -> String {
        let device = flows::Ifnames::default().of(flow.way.ifindex);
        let target = named(self.known.planner, &walk.decision.target);
        let remote = IpAddr::from(flow.way.remote);
        match flow.way.deliver {
            kind if kind == Deliver::Peer as u8 || kind == Deliver::Port as u8 => {
                format!("delivered to {target} by {device}")
            }
            kind if kind == Deliver::Host as u8 => format!("delivered to this node itself, {target}, by {device}"),
            kind if kind == Deliver::Tunnel as u8 => format!("encapsulated to node {remote} by {device}, for {target}"),
            kind if kind == Deliver::Neighbour as u8 => format!("routed to {remote} by {device}, for {target}"),
            _ => format!("leaves the cluster as the host routes it, if it does, for {target}"),
        }
    }

    fn refusal(&self, reason: DropReason, walk: &Walk) -> String {
        let (name, help) = DROP_REASONS[reason as usize];
        let (rule, policies) = match reason {
            DropReason::PolicyEgress => (
                walk.decision.rules[Decision::EGRESS],
                self.policies(walk.decision.client.is_here(), &walk.question.key.src, |(_, egress)| egress),
            ),
            DropReason::PolicyIngress => (
                walk.decision.rules[Decision::INGRESS],
                self.policies(walk.decision.server.is_here(), &walk.decision.target, |(ingress, _)| ingress),
            ),
            _ => (rule::NONE, None),
        };
        let isolated = policies.map(|policies| format!(": isolated by {policies}")).unwrap_or_default();
        let decided = self.known.planner.rule_name(rule).map(|rule| format!("; {rule}")).unwrap_or_default();
        format!("dropped, {name}: {help}{isolated}{decided}")
    }

    /// The rules that let it through.
    fn allowed_by(&self, walk: &Walk) -> String {
        let names = walk.decision.rules.iter().filter_map(|rule| self.known.planner.rule_name(*rule));
        let names: Vec<String> = names.collect();
        if names.is_empty() { String::new() } else { format!("; allowed by {}", names.join(" and ")) }
    }

    /// The policies that isolate the workload of this node with that address.
    fn policies(
        &self,
        here: bool,
        addr: &Addr,
        direction: impl Fn((Vec<String>, Vec<String>)) -> Vec<String>,
    ) -> Option<String> {
        let ip = IpAddr::from(*addr);
        let mut attachments = self.known.attachments.iter().filter(|_| here);
        let own =
            |attachment: &&Arc<Attachment>| attachment.allocation.addresses.iter().any(|own| own.address.addr() == ip);
        let id = attachments.find(own)?.spec.id.to_string();
        let policies = direction(self.known.planner.isolated_by(&id));
        (!policies.is_empty()).then(|| policies.join(", "))
    }
}

/// An address, with the name of its pod.
fn named(planner: &Planner, addr: &Addr) -> String {
    let ip = IpAddr::from(*addr);
    planner.name(*addr).map_or_else(|| ip.to_string(), |name| format!("{ip} ({name})"))
}

fn unreadable(error: String) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error }
}
