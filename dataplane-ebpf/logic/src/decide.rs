// SPDX-License-Identifier: Apache-2.0
//! The decision on a connection: admit, translate, locate, judge. One for both of its directions: what answers is the opener's
//! question, turned round.

use weft_abi::{
    Addr, AddressKey, Algorithm, BackendFlags, BackendKey, Clients, ConnectionFlags, DropReason, Flow, Frontend,
    FrontendKey, RemoteKind, generation,
};

use crate::{
    Tables, address, admit, affinity, flow, frontend, locate, policy, protocol, select,
    walk::{Decision, GenerationRef, Question, Sender},
};

/// A part of a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Whether the sender is who it says.
    Admit,
    /// Which backend of a Service.
    Translate,
    /// Where the ends are.
    Locate,
    /// What policy says.
    Judge,
}

impl Step {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Translate => "translate",
            Self::Locate => "locate",
            Self::Judge => "judge",
        }
    }
}

/// Decides on a question; `standing` is the entry for its key, where its connection stands. On success [`crate::plan::plan`]
/// makes entries of it.
///
/// # Errors
/// The reason to drop the packet; nothing may be inserted then.
#[inline(always)]
pub fn decide<T: Tables>(
    tables: &T,
    question: &Question,
    standing: &Flow,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    decision.epoch = tables.generation(generation::EPOCH);
    decision.rules = [0; 2];
    (decision.keeps_client, decision.counts_load) = (0, 0);
    let config = tables.config().ok_or(DropReason::UnknownPort)?;
    tables.enter(Step::Admit);
    if question.answers() {
        turn_round(question, standing, decision);
        let Decision { server, net, own_host, .. } = decision;
        admit::admit(tables, config, question, server, net, own_host)?;
        decision.own_host = (standing.connection.flags & ConnectionFlags::FROM_HOST != 0).into();
        tables.enter(Step::Locate);
        locate::client(tables, config, decision)?;
    } else {
        if address::is_unroutable(&question.key.dst) {
            return Err(DropReason::Multicast);
        }
        decision.opener = question.key;
        let Decision { client, net, own_host, .. } = decision;
        admit::admit(tables, config, question, client, net, own_host)?;
        tables.enter(Step::Translate);
        translate(tables, question, standing, decision)?;
        tables.enter(Step::Locate);
        locate::server(tables, config, question, decision)
            .map_err(|reason| refusal(tables, decision.net, question, reason))?;
        locate::bring_answers_back(config, question, decision)?;
    }
    tables.enter(Step::Judge);
    judge(tables, decision)
}

/// The connection whose answers are asked about, from the entry that they have.
#[inline(always)]
fn turn_round(question: &Question, standing: &Flow, decision: &mut Decision) {
    decision.opener = flow::answer_key(standing, question.key.protocol);
    (decision.target, decision.target_port) = (question.key.src, question.key.sport);
    decision.translated = (standing.connection.flags & ConnectionFlags::REWRITE_SRC != 0).into();
    decision.service = GenerationRef::default();
    decision.masquerade = crate::masquerade::NONE;
}

/// Whether something changed since the decision began: it must not stand then, see [`flow::void`].
#[inline(always)]
pub fn moved<T: Tables>(tables: &T, decision: &Decision) -> bool {
    tables.generation(generation::EPOCH) != decision.epoch
}

/// Load balancing: sets `target`, `target_port` and the Service's generation.
#[inline(always)]
fn translate<T: Tables>(
    tables: &T,
    question: &Question,
    standing: &Flow,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    decision.target = question.key.dst;
    decision.target_port = question.key.dport;
    decision.translated = 0;
    decision.service = GenerationRef::default();
    if began_without_service(question, standing) {
        return Ok(());
    }
    let frontend = frontend::find(tables, decision.net, &question.key);
    if let Some(frontend) = frontend {
        let generation = tables.service_generation(frontend.service);
        decision.service = GenerationRef { slot: frontend.service, generation };
        decision.translated = 1;
    }
    if keeps_backend(tables, question, standing, frontend) {
        decision.translated = 1;
        (decision.target, decision.target_port) = (standing.connection.dst, standing.connection.dport);
        return Ok(());
    }
    let Some(frontend) = frontend else { return Ok(()) };
    // A set may go between the two look-ups: by then the balancer leads to the next one.
    choose(tables, question, frontend, decision).or_else(|_| choose(tables, question, frontend, decision))?;
    // After it: where nobody serves, that is what everybody hears.
    if frontend.is_limited() && !tables.admits(frontend.service, client_of(tables, question, decision)) {
        return Err(DropReason::SourceRange);
    }
    Ok(())
}

/// The address that a client is known by: the host has many, and is the node.
#[inline(always)]
fn client_of<'t, T: Tables>(tables: &'t T, question: &'t Question, decision: &Decision) -> &'t Addr {
    match tables.config() {
        Some(config) if decision.own_host != 0 => admit::known_address(config, question.is_v6 != 0),
        _ => &question.key.src,
    }
}

/// A member of the set for such clients of this frontend: sets `target` and `target_port`. It is the one that the client had last,
/// where the Service keeps clients.
///
/// # Errors
/// [`DropReason::NoBackend`]: nobody serves; [`DropReason::NoLocalBackend`]: nobody on this node, where a traffic policy wants that.
#[inline(always)]
fn choose<T: Tables>(
    tables: &T,
    question: &Question,
    frontend: &Frontend,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    let balancer = tables.balancer(&frontend.service).ok_or(DropReason::NoBackend)?;
    let of_node = question.is_from(Sender::Workload) || decision.own_host != 0;
    let clients = Clients::of(frontend.flags, of_node);
    let set = balancer.set_of(clients);
    if set.count == 0 && balancer.cluster.count != 0 {
        return Err(DropReason::NoLocalBackend);
    }
    decision.counts_load = (balancer.algorithm == Algorithm::LeastLoaded as u32).into();
    // By its address alone a client has its place on the ring everywhere.
    if balancer.affinity != 0
        && balancer.algorithm != Algorithm::Consistent as u32
        && set.count != 0
        && affinity::recall(tables, question, (frontend.service, clients), balancer, decision)
    {
        return Ok(());
    }
    let member = select::member(tables, question, frontend.service, (balancer, set)).ok_or(DropReason::NoBackend)?;
    decision.target = member.addr;
    decision.target_port = member.port;
    Ok(())
}

/// A connection stays with its backend: TCP while backends and the Service itself come and go (Kubernetes' contract), any other
/// protocol as long as the backend serves the Service.
#[inline(always)]
fn keeps_backend<T: Tables>(tables: &T, question: &Question, standing: &Flow, frontend: Option<&Frontend>) -> bool {
    if !question.stands() || standing.connection.flags & ConnectionFlags::REWRITE_DST == 0 {
        return false;
    }
    question.key.protocol == u32::from(protocol::TCP)
        || frontend.is_some_and(|frontend| {
            let backend = BackendKey::new(frontend.service, standing.connection.dst, standing.connection.dport);
            tables.backend(&backend) & BackendFlags::SERVING != 0
        })
}

/// Established TCP that no Service led when it began is led by none that comes to have its address: a backend would not know it.
#[inline(always)]
const fn began_without_service(question: &Question, standing: &Flow) -> bool {
    question.stands()
        && question.answered != 0
        && question.key.protocol == protocol::TCP as u32
        && standing.connection.flags & ConnectionFlags::REWRITE_DST == 0
}

/// A port of a ClusterIP that no Service port defines is refused aloud, as by a host on whose port nobody listens; an address that no
/// Service has is not.
#[inline(always)]
fn refusal<T: Tables>(tables: &T, net: u32, question: &Question, reason: DropReason) -> DropReason {
    if reason as u8 == DropReason::NoService as u8
        && protocol::names_ports(question.key.protocol as u8)
        && tables.frontend(&FrontendKey::of_address(net, question.key.dst)).is_some()
    {
        return DropReason::NoServicePort;
    }
    reason
}

/// Egress after DNAT, ingress by the original source; a workload reaches itself, the host reaches its own workloads.
#[inline(always)]
fn judge<T: Tables>(tables: &T, decision: &mut Decision) -> Result<(), DropReason> {
    let Decision { client, server, net, .. } = *decision;
    let peer = AddressKey { net, addr: decision.opener.src };
    let target = AddressKey { net, addr: decision.target };
    let protocol = decision.opener.protocol as u8;
    let port = u16::from_be(decision.target_port);
    if client.is_here() && target == peer {
        return Ok(());
    }
    if client.is_here()
        && !policy::allows(tables, client.list, &target, protocol, port, &mut decision.rules[Decision::EGRESS])
    {
        return Err(DropReason::PolicyEgress);
    }
    let judged = server.is_here() && decision.own_host == 0;
    if judged && !policy::allows(tables, server.list, &peer, protocol, port, &mut decision.rules[Decision::INGRESS]) {
        return Err(DropReason::PolicyIngress);
    }
    Ok(())
}

/// Whether `dst` of the network `net` is where a guest's DHCP client sends to: everybody on its link, its server, which is a gateway or the host.
/// Workloads, Services and whatever lies beyond the node are not: towards them the ports are like any other.
#[inline(always)]
pub fn is_configuration_server<T: Tables>(tables: &T, net: u32, dst: &Addr) -> bool {
    if address::is_unroutable(dst) || address::is_link_local_v4(dst) {
        return true;
    }
    if let Some(owner) = tables.owner(net, dst) {
        return owner.is_host();
    }
    tables.remote(net, dst).is_some_and(|remote| remote.kind == RemoteKind::OwnPods as u32)
}
