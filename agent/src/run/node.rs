// SPDX-License-Identifier: Apache-2.0
//! This node's side of every turn: attachments, programs, maps, routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::task::block_in_place;
use weft_api::{AttachmentId, SourceState};
use weft_dataplane::{Dataplane, Maps, Program};

use super::{
    memory::{self, Memory},
    repair::mended,
};
use crate::{
    apply::Applier,
    attachment::{Attachments, Pool, pending},
    config::{Config, Source},
    device::{self, DeviceConfig, Observation},
    event::Events,
    file,
    guest::{self, GuestHandle},
    model::{Desired, HostRoute, Mode, NextHop, Snapshot},
    plan::plan,
    serve::{
        Shared,
        metrics::{Mended, Work},
    },
    vhost::Devices,
    watch::{NodeRecord, dir},
};

/// See the module.
pub(super) struct Node {
    pub(super) config: Arc<Config>,
    pub(super) device_config: DeviceConfig,
    pub(super) observation: Observation,
    pub(super) dataplane: Dataplane,
    pub(super) attachments: Attachments,
    pub(super) devices: Devices,
    pub(super) guest_counters: Arc<guest::Counters>,
    pub(super) memory: Memory,
    pub(super) applier: Applier,
    pub(super) events: Events,
    pub(super) state: State,
}

/// A problem of the node, and the port that has it, if one has.
pub(super) type Broken = (Option<AttachmentId>, String);

/// What follows from the work so far.
#[derive(Default)]
pub(super) struct State {
    pub(super) guests: BTreeMap<AttachmentId, GuestHandle>,
    pub(super) desired: Arc<Desired>,
    /// What it was made of.
    pub(super) planned: Option<Arc<Snapshot>>,
    /// Nodes that next hops were looked up for (native mode).
    pub(super) neighbours: Vec<IpAddr>,
    /// The routes of the last pass.
    planned_routes: Option<Vec<HostRoute>>,
    /// They were all set when they were last looked at.
    pub(super) routes_stand: bool,
    /// A pass has worked.
    pub(super) ready: bool,
    /// Nothing stands against being told ready any more: programs are attached, the network configuration is written.
    pub(super) announced: bool,
    /// What the last pass could not do.
    problems: Vec<String>,
    /// What the last look at the node could not mend.
    pub(super) broken: Vec<Broken>,
    /// Those of them that were logged.
    pub(super) told: BTreeSet<String>,
    /// Passes that broke off: the next repair tries again.
    broken_off: BrokenOff,
}

/// Passes in a row that broke off.
#[derive(Default)]
struct BrokenOff {
    passes: u32,
    /// Why the last one did.
    error: String,
}

/// Passes in a row that may break off before the node is told to be not ready.
const BROKEN_PASSES: u32 = 3;

impl BrokenOff {
    fn count(&mut self, result: &Result<()>) {
        *self = match result {
            Ok(()) => Self::default(),
            Err(error) => Self { passes: self.passes + 1, error: format!("{error:#}") },
        };
    }

    /// Why the node is not ready for it.
    fn failing(&self) -> Option<String> {
        self.problem().filter(|_| self.passes >= BROKEN_PASSES)
    }

    fn problem(&self) -> Option<String> {
        let Self { passes, error } = self;
        let times = format!("{passes} {} in a row", if *passes == 1 { "pass" } else { "passes" });
        (*passes > 0).then(|| format!("{times} over the dataplane broke off, it is as it was before: {error}"))
    }
}

impl Node {
    pub(super) fn maps(&self) -> &Arc<Maps> {
        self.dataplane.maps()
    }

    pub(super) fn pending_dir(&self) -> PathBuf {
        pending::folder(&self.config.state_dir)
    }

    /// Plans and applies everything. Where something was closed only because what goes with the plan stood in its way, once
    /// more, so that nobody waits for the next change.
    pub(super) async fn pass(&mut self, snapshot: &Snapshot, work: &Work) -> Result<()> {
        let result = self.try_pass(snapshot, work).await;
        if result.is_err() {
            work.failed();
        }
        self.state.broken_off.count(&result);
        result
    }

    async fn try_pass(&mut self, snapshot: &Snapshot, work: &Work) -> Result<()> {
        self.state.problems.clear();
        let followed = self.follow_pod_cidrs(snapshot).await;
        self.note(followed);
        let found = self.find_next_hops(snapshot).await;
        self.note(found);
        block_in_place(|| self.plan_and_apply(snapshot, work))?;
        if self.state.desired.crowded {
            block_in_place(|| self.plan_and_apply(snapshot, work))?;
        }
        // What follows is no part of what workloads here need: it is told, and tried again at the next repair.
        let routes = self.put_routes(work).await;
        self.note(routes);
        // A folder that is away is nobody's but its owner's to make.
        let told = if snapshot.remembered.is_none() { self.publish_to_folder() } else { Ok(()) };
        self.note(told);
        self.announce().await
    }

    /// Keeps what went wrong as a problem.
    fn note(&mut self, result: Result<()>) {
        self.state.problems.extend(result.err().map(|error| format!("{error:#}")));
    }

    fn plan_and_apply(&mut self, snapshot: &Snapshot, work: &Work) -> Result<()> {
        let started = Instant::now();
        let before = self.memory.clone();
        let attached = self.attachments.attached();
        let maps = self.dataplane.maps().clone();
        let room = self.applier.room(&*maps).context("cannot read the dataplane's maps")?;
        let desired = plan(snapshot, &self.observation.facts, &attached, &room, &mut self.memory.numbers);
        work.planned(started.elapsed());
        // Numbers are kept before they stand in the maps, digests after the generations have moved. Where they cannot be kept
        // a restart has more to do; that is no reason to hold up policy.
        let kept = self.remember(&before);
        self.note(kept);
        let started = Instant::now();
        let summary = self.applier.apply(&*maps, &desired).context("cannot write the dataplane's maps")?;
        work.applied(started.elapsed(), summary.written + summary.removed);
        let before = self.memory.clone();
        self.memory.digests = self.applier.digests().clone();
        let kept = self.remember(&before);
        self.note(kept);
        if !summary.is_unchanged() {
            tracing::debug!(?summary, "applied a plan");
        }
        self.state.problems.extend(summary.problems);
        self.state.desired = Arc::new(desired);
        Ok(())
    }

    fn remember(&self, before: &Memory) -> Result<()> {
        if self.memory != *before {
            file::save(&memory::numbers_path(&self.config.run_dir), &self.memory)?;
        }
        Ok(())
    }

    /// Native mode: routers between nodes, if any. Looked up when the nodes change, and at every look at the node.
    async fn find_next_hops(&mut self, snapshot: &Snapshot) -> Result<()> {
        if self.config.mode == Mode::Native {
            let neighbours = node_addresses(snapshot);
            if self.state.neighbours != neighbours {
                self.observation.facts.next_hops = self.look_up_next_hops(&neighbours).await?;
                self.state.neighbours = neighbours;
            }
        }
        Ok(())
    }

    /// How these nodes are reached now.
    pub(super) async fn look_up_next_hops(&self, nodes: &[IpAddr]) -> Result<BTreeMap<IpAddr, NextHop>> {
        let Observation { facts, uplink, .. } = &self.observation;
        let hops = device::next_hops(uplink.index, nodes, &facts.next_hops).await;
        hops.context("cannot look for the way to other nodes")
    }

    async fn put_routes(&mut self, work: &Work) -> Result<()> {
        let wanted = &self.state.desired.host_routes;
        let same = self.state.planned_routes.as_ref() == Some(wanted);
        if self.state.routes_stand && same {
            return Ok(());
        }
        let (changes, result) = device::repair_routes(&self.observation, wanted).await;
        if same {
            mended(work, Mended::Routes, changes.count());
        }
        self.state.planned_routes = Some(wanted.clone());
        self.state.routes_stand = result.is_ok();
        result.context("cannot set the host's routes")
    }

    /// Where no API server does it: the other agents learn of this node's workloads.
    fn publish_to_folder(&self) -> Result<()> {
        let Source::Dir(folder) = &self.config.source else { return Ok(()) };
        let Observation { node_v4, node_v6, .. } = &self.observation;
        let record = NodeRecord {
            name: self.config.node_name.clone(),
            pod_cidrs: self.device_config.all_pod_cidrs().copied().collect(),
            addresses: node_v4.map(IpAddr::from).into_iter().chain(node_v6.map(IpAddr::from)).collect(),
        };
        dir::publish(folder, &record, &self.attachments.attached()).context("cannot tell the other nodes")
    }

    /// After the first pass: the node's own programs, then the runtime may come.
    async fn announce(&mut self) -> Result<()> {
        self.state.ready = true;
        if self.state.announced {
            return Ok(());
        }
        self.take_over_other_versions().await?;
        self.attach_node_programs()?;
        device::open_overlay(&self.device_config).await.context("cannot bring the overlay up")?;
        self.detach_strays()?;
        if self.config.cni.install {
            let path = super::install::install_conflist(&self.config)?;
            tracing::info!(path = %path.display(), "wrote the network configuration");
        }
        self.state.announced = true;
        tracing::info!("ready");
        Ok(())
    }

    /// The programs of the node's own devices, with name and index of each.
    pub(super) fn node_programs(&self) -> Vec<(Program, String, u32)> {
        let config = self.observation.facts.config;
        let devices = [
            (Program::FromHost, device::HOST_PORT.to_owned(), config.host_ifindex),
            (Program::FromUplink, self.observation.uplink.name.clone(), config.uplink_ifindex),
            (Program::FromOverlay, device::OVERLAY.to_owned(), config.overlay_ifindex),
        ];
        devices.into_iter().filter(|(_, _, ifindex)| *ifindex != 0).collect()
    }

    pub(super) fn attach_node_programs(&mut self) -> Result<()> {
        for (program, ifname, ifindex) in self.node_programs() {
            self.dataplane
                .attach(program, &ifname, ifindex)
                .with_context(|| format!("cannot attach {program} to {ifname}"))?;
        }
        Ok(())
    }

    /// Programs on devices that are the node's, or a workload's, no more.
    fn detach_strays(&mut self) -> Result<()> {
        let config = self.observation.facts.config;
        let links = self.attachments.all().filter_map(|record| Some(record.link.as_ref()?.ifindex));
        let wanted: BTreeSet<u32> =
            links.chain([config.host_ifindex, config.uplink_ifindex, config.overlay_ifindex]).collect();
        let attached: BTreeSet<u32> = self.dataplane.attachments()?.into_iter().map(|found| found.ifindex).collect();
        for ifindex in attached.difference(&wanted) {
            tracing::info!(ifindex, "detaching programs from a device that is not ours any more");
            self.dataplane.detach(*ifindex)?;
        }
        Ok(())
    }

    /// Whether the last pass, or the last look at the node, has left something to do.
    pub(super) fn wants_pass(&self) -> bool {
        self.state.broken_off.passes > 0 || !self.state.problems.is_empty()
    }

    /// Everything that wants the operator's eye, each once.
    fn problems(&self, snapshot: &Snapshot) -> Vec<String> {
        let State { desired, problems, broken, guests, .. } = &self.state;
        let failed = |(id, guest): (&AttachmentId, &GuestHandle)| {
            Some(format!("DHCP and router advertisements of {id}: {}", guest.problem()?))
        };
        let guests: Vec<String> = guests.iter().filter_map(failed).collect();
        // A pod that was deleted since leaves none.
        let is_attached = |id: &AttachmentId| self.attachments.get(id).is_some_and(|record| record.link.is_some());
        let stands = |(port, _): &&Broken| port.as_ref().is_none_or(is_attached);
        let broken = broken.iter().filter(stands).map(|(_, problem)| problem);
        let mut seen = BTreeSet::new();
        let unchecked = self.dataplane.report().offload_unchecked.as_ref().map(|reason| {
            format!("checksum offload fields of workloads are not checked: {reason}; see docs/security.md")
        });
        let broken_off = self.state.broken_off.problem();
        let old = self.old_addresses();
        let all = broken_off
            .iter()
            .chain(&snapshot.problems)
            .chain(&self.observation.problems)
            .chain(&desired.problems)
            .chain(problems);
        let all = all.chain(broken).chain(&guests).chain(&unchecked).chain(&old);
        all.filter(|problem| seen.insert(*problem)).cloned().collect()
    }

    /// Publishes what readers see.
    pub(super) fn publish(&self, shared: &Shared, snapshot: &Snapshot) {
        let pools = self.attachments.pools();
        self.events.tell(&self.state.desired.refusals);
        let problems = self.problems(snapshot);
        let passes = &self.state.broken_off;
        shared.publish(|view| {
            view.uplink.clone_from(&self.observation.uplink.name);
            view.pod_cidrs = pools.iter().map(Pool::cidr).collect();
            view.addresses_used = pools.iter().map(|pool| (pool.used(), pool.size())).collect();
            view.source = Some(source_state(&self.config, snapshot));
            view.not_ready = self.not_ready(snapshot);
            view.broken_passes = passes.passes;
            view.failing = passes.failing();
            view.problems = problems;
            view.attachments = self.attachments.all().cloned().collect();
            view.desired = self.state.desired.clone();
            view.planned.clone_from(&self.state.planned);
        });
    }

    fn not_ready(&self, snapshot: &Snapshot) -> Option<String> {
        if self.state.ready && self.state.announced {
            return None;
        }
        if let Some(error) = &snapshot.error {
            return Some(format!("{} does not answer: {error}", self.config.source));
        }
        let why =
            if snapshot.synced { "the first pass over the dataplane has not succeeded" } else { "not synced yet" };
        Some(format!("{}: {why}", self.config.source))
    }
}

/// The state of the source, for readers.
pub(super) fn source_state(config: &Config, snapshot: &Snapshot) -> SourceState {
    SourceState {
        name: config.source.to_string(),
        synced: snapshot.synced && snapshot.remembered.is_none(),
        error: snapshot.error.clone(),
        remembered_since: snapshot.remembered,
    }
}

/// Internal addresses of all nodes.
fn node_addresses(snapshot: &Snapshot) -> Vec<IpAddr> {
    let statuses = snapshot.nodes.values().filter_map(|node| node.status.as_ref());
    let addresses = statuses.flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::BrokenOff;

    #[test]
    fn a_pass_that_breaks_off_is_a_problem_at_once_and_three_in_a_row_end_readiness() {
        let mut broken = BrokenOff::default();
        assert!(broken.problem().is_none() && broken.failing().is_none());
        for passes in 1..=4 {
            broken.count(&Err(anyhow!("map PORTS: refused").context("cannot write the dataplane's maps")));
            let problem = broken.problem().unwrap();
            assert!(problem.starts_with(&passes.to_string()), "{problem}");
            assert!(problem.ends_with("cannot write the dataplane's maps: map PORTS: refused"), "{problem}");
            assert_eq!(broken.failing().is_some(), passes >= 3);
        }
        broken.count(&Ok(()));
        assert!(broken.problem().is_none() && broken.failing().is_none());
    }
}
