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

use super::repair::mended;
use crate::{
    apply::Applier,
    attachment::{Attachments, Pool, pending},
    config::{Config, Source},
    device::{self, DeviceConfig, Observation},
    event::Events,
    guest::{self, GuestHandle},
    model::{HostRoute, Mode, NextHop, Snapshot, Standing},
    plan::Versions,
    serve::{Shared, metrics::Mended},
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
    /// Which state of the cluster was applied last.
    pub(super) planned: Option<Versions>,
    /// Nodes that next hops were looked up for (native mode), and as of when.
    pub(super) neighbours: Vec<IpAddr>,
    neighbours_of: Option<u64>,
    /// The routes of the last pass.
    pub(super) planned_routes: Option<Vec<HostRoute>>,
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
    pub(super) async fn pass(&mut self, shared: &Shared) -> Result<()> {
        let result = self.try_pass(shared).await;
        if result.is_err() {
            shared.work.failed();
        }
        self.state.broken_off.count(&result);
        result
    }

    async fn try_pass(&mut self, shared: &Shared) -> Result<()> {
        self.state.problems.clear();
        let followed = self.follow_pod_cidrs(shared).await;
        self.note(followed);
        let found = self.find_next_hops(shared).await;
        self.note(found);
        block_in_place(|| self.plan_and_apply(shared))?;
        if shared.planner().desired().crowded {
            block_in_place(|| self.plan_and_apply(shared))?;
        }
        // What follows is no part of what workloads here need: it is told, and tried again at the next repair.
        let routes = self.put_routes(shared).await;
        self.note(routes);
        // A folder that is away is nobody's but its owner's to make.
        let is_remembered = shared.planner().snapshot().remembered.is_some();
        let told = if !is_remembered { self.publish_to_folder() } else { Ok(()) };
        self.note(told);
        self.announce().await
    }

    /// Keeps what went wrong as a problem.
    fn note(&mut self, result: Result<()>) {
        self.state.problems.extend(result.err().map(|error| format!("{error:#}")));
    }

    fn plan_and_apply(&mut self, shared: &Shared) -> Result<()> {
        let started = Instant::now();
        let maps = self.dataplane.maps().clone();
        let follows = self.applier.follows();
        let room = self.applier.room(&*maps).context("cannot read the dataplane's maps")?;
        let patch = {
            let mut planner = shared.planner_mut();
            planner.observe(&self.observation.facts, self.attachments.attached());
            if !follows {
                planner.distrust();
            }
            planner.patch(&room)
        };
        shared.work.planned(started.elapsed());
        let started = Instant::now();
        let planner = shared.planner();
        let summary =
            self.applier.patch(&*maps, planner.desired(), &patch).context("cannot write the dataplane's maps")?;
        self.state.planned = Some(planner.versions());
        drop(planner);
        shared.work.applied(started.elapsed(), summary.written + summary.removed);
        if !summary.is_unchanged() {
            tracing::debug!(?summary, "applied a plan");
        }
        self.state.problems.extend(summary.problems);
        Ok(())
    }

    /// Native mode: routers between nodes, if any. Looked up when the nodes change, and at every look at the node.
    async fn find_next_hops(&mut self, shared: &Shared) -> Result<()> {
        if self.config.mode != Mode::Native {
            return Ok(());
        }
        let (nodes, neighbours) = {
            let planner = shared.planner();
            let nodes = planner.versions().nodes;
            if self.state.neighbours_of == Some(nodes) {
                return Ok(());
            }
            (nodes, node_addresses(planner.snapshot()))
        };
        if self.state.neighbours != neighbours {
            self.observation.facts.next_hops = self.look_up_next_hops(&neighbours).await?;
            self.state.neighbours = neighbours;
        }
        self.state.neighbours_of = Some(nodes);
        Ok(())
    }

    /// How these nodes are reached now.
    pub(super) async fn look_up_next_hops(&self, nodes: &[IpAddr]) -> Result<BTreeMap<IpAddr, NextHop>> {
        let Observation { facts, uplink, .. } = &self.observation;
        let hops = device::next_hops(uplink.index, nodes, &facts.next_hops).await;
        hops.context("cannot look for the way to other nodes")
    }

    async fn put_routes(&mut self, shared: &Shared) -> Result<()> {
        let (wanted, same) = {
            let planner = shared.planner();
            let wanted = &planner.desired().host_routes;
            let same = self.state.planned_routes.as_ref() == Some(wanted);
            if self.state.routes_stand && same {
                return Ok(());
            }
            (wanted.clone(), same)
        };
        let (changes, result) = device::repair_routes(&self.observation, &wanted).await;
        if same {
            mended(&shared.work, Mended::Routes, changes.count());
        }
        self.state.planned_routes = Some(wanted);
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

    /// What is wrong with the node and what could not be applied, each once.
    fn problems(&self) -> Vec<String> {
        let State { problems, broken, guests, .. } = &self.state;
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
        let all = broken_off.iter().chain(&self.observation.problems).chain(problems);
        let all = all.chain(broken).chain(&guests).chain(&unchecked).chain(&old);
        all.filter(|problem| seen.insert(*problem)).cloned().collect()
    }

    /// Publishes what readers see.
    pub(super) fn publish(&self, shared: &Shared) {
        let pools = self.attachments.pools();
        let standing = {
            let planner = shared.planner();
            self.events.tell(&planner.desired().refusals);
            planner.snapshot().standing()
        };
        let problems = self.problems();
        let passes = &self.state.broken_off;
        shared.publish(|view| {
            view.uplink.clone_from(&self.observation.uplink.name);
            view.pod_cidrs = pools.iter().map(Pool::cidr).collect();
            view.addresses_used = pools.iter().map(|pool| (pool.used(), pool.size())).collect();
            view.source = Some(source_state(&self.config, &standing));
            view.not_ready = self.not_ready(&standing);
            view.broken_passes = passes.passes;
            view.failing = passes.failing();
            view.problems = problems;
            view.attachments = self.attachments.all().cloned().collect();
            view.planned = self.state.planned;
        });
    }

    fn not_ready(&self, snapshot: &Standing) -> Option<String> {
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
pub(super) fn source_state(config: &Config, snapshot: &Standing) -> SourceState {
    SourceState {
        name: config.source.to_string(),
        synced: snapshot.synced && snapshot.remembered.is_none(),
        error: snapshot.error.clone(),
        remembered_since: snapshot.remembered,
    }
}

/// The first internal address of each family of all nodes: those that lead to their pods.
fn node_addresses(snapshot: &Snapshot) -> Vec<IpAddr> {
    let statuses = snapshot.nodes.values().filter_map(|node| node.status.as_ref());
    let of_node = statuses.flat_map(|status| {
        let all = status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP");
        let mut all = all.filter_map(|address| address.address.parse().ok());
        let first: Option<IpAddr> = all.next();
        let other = all.find(|address| Some(address.is_ipv4()) != first.map(|first| first.is_ipv4()));
        first.into_iter().chain(other)
    });
    of_node.collect()
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
