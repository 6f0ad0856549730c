// SPDX-License-Identifier: Apache-2.0
//! What is told of the node: to readers, to the log, and as Events to those whose objects do not fit.

use std::{
    collections::BTreeSet,
    time::{Instant, SystemTime},
};

use weft_api::SourceState;
use weft_dataplane::{Dataplane, OffloadCheck};

use super::{
    host::Host,
    passes::Passes,
    ports::{Broken, Ports},
    reporters::Reporters,
};
use crate::{
    attachment::Pool,
    config::Config,
    event::{Events, LONGEST_NOTE},
    model::{ObjectKey, Refusal, RefusedKind, Standing},
    plan::Planner,
    serve::{
        Shared,
        metrics::{Mended, Work},
    },
};

/// See the module.
pub(super) struct Told {
    events: Events,
    /// What the last look at the node could not mend.
    broken: Vec<Broken>,
    /// Those of them that were logged.
    logged: BTreeSet<String>,
    reporters: Reporters,
    /// See [`service_problems`], as of the pass that ended then.
    service_problems: (Option<SystemTime>, Vec<Refusal>),
}

/// What there is to tell of.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) dataplane: &'a Dataplane,
    pub(super) ports: &'a Ports,
    pub(super) host: &'a Host,
    pub(super) passes: &'a Passes,
    /// What an earlier agent has left is served.
    pub(super) goes_on: bool,
    /// See [`View::behind_since`](crate::serve::View::behind_since).
    pub(super) behind_since: Option<Instant>,
}

/// What this node tells of Services that all nodes see.
fn service_problems(planner: &Planner, reporters: &mut Reporters, own: &str) -> Vec<Refusal> {
    let named = planner.services_with_problems();
    if named.is_empty() {
        return Vec::new();
    }
    let snapshot = planner.snapshot();
    let told = reporters.own(own, snapshot.nodes.keys().map(|node| &*node.name), named.into_iter());
    let refusal = |key: &ObjectKey| {
        let service = snapshot.services.get(key);
        let uid = service.and_then(|service| service.metadata.uid.as_ref()).map(ToString::to_string);
        let why = planner.problems_of(key, LONGEST_NOTE);
        Refusal { kind: RefusedKind::WrittenService, key: key.clone(), uid, why }
    };
    told.into_iter().map(refusal).collect()
}

impl Told {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            broken: Vec::new(),
            logged: BTreeSet::new(),
            reporters: Reporters::default(),
            service_problems: (None, Vec::new()),
        }
    }

    /// Keeps what could not be mended, and logs each problem once: a port's when it is seen for the second time, because a pod
    /// that is being deleted loses its link a moment before the agent hears of it.
    pub(super) fn tell(&mut self, broken: Vec<Broken>) {
        self.logged.retain(|told| broken.iter().any(|(_, problem)| problem == told));
        for (port, problem) in &broken {
            let again = self.broken.iter().any(|(_, known)| known == problem);
            if (again || port.is_none()) && self.logged.insert(problem.clone()) {
                tracing::warn!(problem, "cannot mend the node");
            }
        }
        self.broken = broken;
    }

    /// Publishes what readers see.
    pub(super) fn publish(&mut self, parts: &Parts<'_>, shared: &Shared) {
        let Parts { config, ports, host, passes, .. } = parts;
        let pools = ports.pools();
        let (standing, leaving) = {
            let planner = shared.planner();
            if self.events.are_posted() && self.service_problems.0 != passes.updated() {
                let problems = service_problems(&planner, &mut self.reporters, &config.node_name);
                self.service_problems = (passes.updated(), problems);
            }
            let of_services = self.service_problems.1.iter().cloned();
            let others = host.refusal().into_iter().chain(shared.missing.refusals()).chain(of_services);
            self.events.tell(&planner.desired().refusals, others);
            let own = planner.snapshot().nodes.get(&ObjectKey::new("", &config.node_name));
            (planner.snapshot().standing(), own.is_some_and(|node| node.is_leaving()))
        };
        let problems = self.problems(parts);
        shared.publish(|view| {
            host.uplink().clone_into(&mut view.uplink);
            view.devices = host.devices().heard.iter().map(|heard| heard.name.clone()).collect();
            view.stack_devices.clone_from(&host.devices().by_stack);
            view.pod_cidrs = pools.iter().map(Pool::cidr).collect();
            view.addresses_used = pools.iter().map(|pool| (pool.used(), pool.size())).collect();
            view.source = Some(source_state(config, &standing));
            view.not_ready = parts.not_ready(&standing);
            view.broken_passes = passes.broken_off().passes();
            view.failing = passes.broken_off().failing();
            view.problems = problems;
            view.attachments = ports.records().cloned().collect();
            view.planned = passes.planned();
            view.updated = passes.updated();
            view.behind_since = parts.behind_since;
            view.leaving = leaving;
        });
    }

    /// What is wrong with the node and what could not be applied, each once.
    fn problems(&self, parts: &Parts<'_>) -> Vec<String> {
        let Parts { dataplane, ports, host, passes, .. } = parts;
        // A pod that was deleted since leaves none.
        let stands = |(port, _): &&Broken| port.as_ref().is_none_or(|id| ports.has_link(id));
        let broken = self.broken.iter().filter(stands).map(|(_, problem)| problem);
        let guests = ports.guest_problems();
        let unchecked = if let OffloadCheck::Unseen(reason) = &dataplane.report().offload {
            Some(format!("checksum offload fields of workloads are not checked: {reason}; see docs/security.md"))
        } else {
            None
        };
        let sockets = dataplane.report().sockets.as_ref().map(|why| {
            format!("processes of the host do not reach hostPorts, NodePorts at its own addresses, and external addresses of Services: {why}; see docs/services.md")
        });
        let api_server = host.api_server_problem();
        let old = host.old_addresses(ports);
        let broken_off = passes.broken_off().problem();
        let all = broken_off.iter().chain(host.problems()).chain(passes.problems());
        let all = all.chain(broken).chain(&guests).chain(&unchecked).chain(&sockets).chain(&api_server).chain(&old);
        let mut seen = BTreeSet::new();
        all.filter(|problem| seen.insert(*problem)).cloned().collect()
    }
}

impl Parts<'_> {
    fn not_ready(&self, standing: &Standing) -> Option<String> {
        let source = &self.config.source;
        if self.passes.ready() && self.host.is_announced() {
            return None;
        }
        if let Some(error) = &standing.error {
            return Some(format!("{source} does not answer: {error}"));
        }
        if self.goes_on && self.host.is_announced() {
            return None;
        }
        let why =
            if standing.synced { "the first pass over the dataplane has not succeeded" } else { "not synced yet" };
        Some(format!("{source}: {why}"))
    }
}

/// The state of the source, for readers.
pub(super) fn source_state(config: &Config, snapshot: &Standing) -> SourceState {
    SourceState {
        name: config.source.to_string(),
        synced: snapshot.synced && snapshot.remembered.is_none(),
        error: snapshot.error.clone(),
        remembered_since: snapshot.remembered,
    }
}

/// Counts and logs what was put back.
pub(super) fn mended(work: &Work, what: Mended, changes: usize) {
    if changes > 0 {
        tracing::warn!(what = what.name(), changes, "mended what others had changed on the node");
        work.mended(what, changes);
    }
}
