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
use ipnet::IpNet;
use tokio::task::block_in_place;
use weft_abi::Addr;
use weft_api::{Allocation, ApiError, AttachmentId, AttachmentSpec, ErrorCode, PortKind, PortLink, SourceState};
use weft_dataplane::{Dataplane, Maps, Program};

use super::memory::{self, Memory};
use crate::{
    apply::{Applier, flows},
    attachment::{Attachments, pending, unknown},
    config::{Config, Source},
    device::{self, DeviceConfig, Observation, links},
    guest::{self, GuestHandle, GuestPort},
    model::{Attachment, Desired, HostRoute, Mode, ObjectKey, Snapshot},
    plan::plan,
    serve::{Shared, metrics::Work},
    watch::{NodeRecord, dir},
};

/// See the module.
pub(super) struct Node {
    pub(super) config: Arc<Config>,
    pub(super) device_config: DeviceConfig,
    pub(super) observation: Observation,
    pub(super) dataplane: Dataplane,
    pub(super) attachments: Attachments,
    pub(super) memory: Memory,
    pub(super) applier: Applier,
    pub(super) state: State,
}

/// What follows from the work so far.
#[derive(Default)]
pub(super) struct State {
    guests: BTreeMap<AttachmentId, GuestHandle>,
    desired: Arc<Desired>,
    /// The routes of the last pass that worked.
    routes: Option<Vec<HostRoute>>,
    /// A pass has worked.
    ready: bool,
    /// Nothing stands against being told ready any more: programs are attached, the network configuration is written.
    announced: bool,
    /// What the last pass could not do.
    problems: Vec<String>,
    /// The last pass broke off: the next repair tries again.
    failed: bool,
}

impl Node {
    pub(super) fn maps(&self) -> &Arc<Maps> {
        self.dataplane.maps()
    }

    pub(super) fn pending_dir(&self) -> PathBuf {
        pending::folder(&self.config.state_dir)
    }

    /// Whether the cluster knows the pod of an attachment; true where it has none.
    pub(super) fn knows_pod(&self, id: &AttachmentId, snapshot: &Snapshot) -> bool {
        let pod = self.attachments.get(id).and_then(|record| record.spec.pod.as_ref());
        pod.is_none_or(|pod| {
            let key = ObjectKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
            let known = snapshot.pods.get(&key);
            known.is_some_and(|known| pod.uid.is_none() || known.metadata.uid.is_none() || pod.uid == known.metadata.uid)
        })
    }

    /// Reserves addresses. An attachment whose link has gone may be asked for again.
    pub(super) async fn allocate(&mut self, spec: AttachmentSpec) -> Result<Allocation, ApiError> {
        let linked = self.attachments.get(&spec.id).and_then(|record| record.link.clone());
        if let Some(link) = linked
            && !is_there(&link).await?
        {
            self.state.guests.remove(&spec.id);
            self.attachments.link(&spec.id, None)?;
        }
        self.attachments.allocate(spec)
    }

    /// Attaches the programs to a link; the entries come with the next pass, and until then everything is dropped.
    pub(super) async fn attach(&mut self, id: &AttachmentId, link: PortLink) -> Result<(), ApiError> {
        let expected = &self.attachments.get(id).ok_or_else(|| unknown(id))?.allocation.host_ifname;
        if link.ifname != *expected || !is_there(&link).await? {
            let PortLink { ifindex, ifname } = &link;
            let message = format!("link {ifname} with index {ifindex} of {id} is not there; make '{expected}' in the agent's network namespace");
            return Err(ApiError { code: ErrorCode::Invalid, message });
        }
        links::prepare_port(&link.ifname).await.map_err(refused)?;
        self.attach_programs(&link).map_err(refused)?;
        self.attachments.link(id, Some(link)).map(drop)
    }

    /// Starts to answer the guest's DHCP and router solicitations, where there is a guest.
    pub(super) fn serve_guest(&mut self, id: &AttachmentId) -> Result<(), ApiError> {
        let Attachment { spec, allocation, link } = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        let Some(link) = link.as_ref().filter(|_| spec.port != PortKind::Veth) else { return Ok(()) };
        let port = GuestPort {
            ifindex: link.ifindex,
            mac: allocation.mac,
            addresses: allocation.addresses.clone(),
            mtu: allocation.mtu,
            dns: allocation.dns.clone(),
            hostname: spec.pod.as_ref().map(|pod| pod.name.clone()),
        };
        let handle = guest::serve(&port).map_err(|error| ApiError {
            code: ErrorCode::Io,
            message: format!("cannot serve DHCP on {}: {error}", link.ifname),
        })?;
        self.state.guests.insert(id.clone(), handle);
        Ok(())
    }

    /// Takes an attachment out of the plan; whether it was in it.
    pub(super) fn begin_release(&mut self, id: &AttachmentId) -> bool {
        self.state.guests.remove(id);
        self.attachments.begin_release(id).is_some_and(|record| record.link.is_some())
    }

    /// After the pass: links, programs, flows, and at the very last the addresses. `directly`: there was no pass.
    pub(super) async fn finish_release(&mut self, ids: &[AttachmentId], directly: bool) -> Result<(), ApiError> {
        let records: Vec<Attachment> = ids.iter().filter_map(|id| self.attachments.get(id)).cloned().collect();
        for record in &records {
            if directly {
                self.remove_entries(record).map_err(refused)?;
            }
            self.remove_link(record).await?;
        }
        let ports = super::engine::indexes(records.iter().filter_map(|record| record.link.as_ref()));
        block_in_place(|| flows::forget_ports(self.maps(), &ports)).map_err(refused)?;
        ids.iter().try_for_each(|id| self.attachments.finish_release(id))
    }

    /// A link that the plugin has left goes as well: without programs it would lead past the dataplane.
    async fn remove_link(&mut self, record: &Attachment) -> Result<(), ApiError> {
        let Some(link) = &record.link else { return Ok(()) };
        if is_there(link).await? {
            links::delete(&link.ifname).await.map_err(refused)?;
        }
        self.dataplane.detach(link.ifindex).map_err(refused)
    }

    /// Takes a port's entries out without a plan: before the first one, when the applier has not read the maps.
    fn remove_entries(&self, record: &Attachment) -> Result<(), weft_dataplane::Error> {
        let Some(link) = &record.link else { return Ok(()) };
        for address in addresses(record) {
            if self.maps().locals().get(&addr(address))?.is_some_and(|local| local.ifindex == link.ifindex) {
                self.maps().locals().remove(&addr(address))?;
            }
        }
        self.maps().ports().remove(&link.ifindex).map(drop)
    }

    /// CNI CHECK: addresses as told, programs attached, entries there.
    pub(super) fn check(&self, id: &AttachmentId, told: &[IpNet]) -> Result<(), ApiError> {
        let mismatch = |what: String| {
            Err(ApiError { code: ErrorCode::Mismatch, message: format!("{what} of {id}; delete it and add it again") })
        };
        let record = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        let given: BTreeSet<IpAddr> = addresses(record).collect();
        let told: BTreeSet<IpAddr> = told.iter().map(IpNet::addr).collect();
        if given != told {
            return mismatch(format!("the agent gave the addresses {given:?}, not {told:?}, to the attachment"));
        }
        let Some(link) = &record.link else { return mismatch("the agent was told no link".to_owned()) };
        let attached = self.dataplane.attachments().map_err(refused)?;
        let missing = WORKLOAD_PROGRAMS
            .iter()
            .find(|program| !attached.iter().any(|found| found.ifindex == link.ifindex && found.program == **program));
        if let Some(program) = missing {
            return mismatch(format!("program {program} is not attached to {}", link.ifname));
        }
        if self.maps().ports().get(&link.ifindex).map_err(refused)?.is_none() {
            return mismatch(format!("the map PORTS has no entry for {}", link.ifname));
        }
        for address in given {
            let local = self.maps().locals().get(&addr(address)).map_err(refused)?;
            if local.is_none_or(|local| local.ifindex != link.ifindex) {
                return mismatch(format!("the map LOCALS does not lead {address} to {}", link.ifname));
            }
        }
        Ok(())
    }

    /// Plans and applies everything.
    pub(super) async fn pass(&mut self, snapshot: &Snapshot, work: &Work) -> Result<()> {
        self.state.failed = true;
        self.find_next_hops(snapshot).await?;
        let applied = block_in_place(|| self.plan_and_apply(snapshot, work));
        if applied.is_err() {
            work.failed();
        }
        applied?;
        self.put_routes().await?;
        self.publish_to_folder()?;
        self.announce()?;
        self.state.failed = false;
        Ok(())
    }

    fn plan_and_apply(&mut self, snapshot: &Snapshot, work: &Work) -> Result<()> {
        let started = Instant::now();
        let before = self.memory.clone();
        let attached = self.attachments.attached();
        let desired = plan(snapshot, &self.observation.facts, &attached, &mut self.memory.numbers);
        work.planned(started.elapsed());
        // Numbers are kept before they stand in the maps, digests after the generations have moved.
        self.remember(&before)?;
        let started = Instant::now();
        let maps = self.dataplane.maps().clone();
        let summary = self.applier.apply(&*maps, &desired).context("cannot write the dataplane's maps")?;
        work.applied(started.elapsed(), summary.written + summary.removed);
        let before = self.memory.clone();
        self.memory.digests = self.applier.digests().clone();
        self.remember(&before)?;
        if !summary.is_unchanged() {
            tracing::debug!(?summary, "applied a plan");
        }
        self.state.problems = summary.problems;
        self.state.desired = Arc::new(desired);
        Ok(())
    }

    fn remember(&self, before: &Memory) -> Result<()> {
        if self.memory != *before {
            memory::save(&memory::numbers_path(&self.config.run_dir), &self.memory)?;
        }
        Ok(())
    }

    /// Native mode: routers between nodes, if any.
    async fn find_next_hops(&mut self, snapshot: &Snapshot) -> Result<()> {
        if self.config.mode == Mode::Native {
            self.observation.facts.next_hops = device::next_hops(&node_addresses(snapshot)).await?;
        }
        Ok(())
    }

    async fn put_routes(&mut self) -> Result<()> {
        let wanted = &self.state.desired.host_routes;
        if self.state.routes.as_ref() != Some(wanted) {
            device::apply_routes(&self.observation, wanted).await?;
            self.state.routes = Some(wanted.clone());
        }
        Ok(())
    }

    /// Where no API server does it: the other agents learn of this node's workloads.
    fn publish_to_folder(&self) -> Result<()> {
        let Source::Dir(folder) = &self.config.source else { return Ok(()) };
        let Observation { node_v4, node_v6, .. } = &self.observation;
        let record = NodeRecord {
            name: self.config.node_name.clone(),
            pod_cidrs: self.device_config.pod_cidrs.clone(),
            addresses: node_v4.map(IpAddr::from).into_iter().chain(node_v6.map(IpAddr::from)).collect(),
        };
        dir::publish(folder, &record, &self.attachments.attached()).context("cannot tell the other nodes")
    }

    /// After the first pass: the node's own programs, then the runtime may come.
    fn announce(&mut self) -> Result<()> {
        self.state.ready = true;
        if self.state.announced {
            return Ok(());
        }
        self.attach_node_programs()?;
        if self.config.cni.install {
            let path = super::install::install_conflist(&self.config)?;
            tracing::info!(path = %path.display(), "wrote the network configuration");
        }
        self.state.announced = true;
        tracing::info!("ready");
        Ok(())
    }

    fn attach_node_programs(&mut self) -> Result<()> {
        let config = self.observation.facts.config;
        let uplink = self.observation.uplink.name.clone();
        let devices = [
            (Program::FromHost, device::HOST_PORT, config.host_ifindex),
            (Program::FromUplink, uplink.as_str(), config.uplink_ifindex),
            (Program::FromOverlay, device::OVERLAY, config.overlay_ifindex),
        ];
        for (program, ifname, ifindex) in devices.into_iter().filter(|(_, _, ifindex)| *ifindex != 0) {
            self.dataplane.attach(program, ifname, ifindex).with_context(|| format!("cannot attach {program} to {ifname}"))?;
        }
        Ok(())
    }

    fn attach_programs(&mut self, link: &PortLink) -> Result<(), weft_dataplane::Error> {
        WORKLOAD_PROGRAMS.iter().try_for_each(|program| self.dataplane.attach(*program, &link.ifname, link.ifindex))
    }

    /// Looks at the node again, mends what is gone; whether a pass is due.
    pub(super) async fn repair(&mut self) -> bool {
        match device::apply(&self.device_config).await {
            Ok(mut observation) => {
                observation.facts.next_hops.clone_from(&self.observation.facts.next_hops);
                let changed = observation != self.observation;
                if changed {
                    tracing::info!("the node's devices or addresses have changed");
                    self.observation = observation;
                    self.state.announced = false;
                    self.state.routes = None;
                }
                changed || self.state.failed || !self.state.problems.is_empty() || self.config.mode == Mode::Native
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look after the node's devices");
                self.state.failed
            }
        }
    }

    /// Adopts the attachments of an earlier run: programs, guests; detaches what has no attachment any more.
    pub(super) async fn adopt(&mut self) -> Result<()> {
        let present = links::list_weft().await.context("cannot list links")?;
        let has_link = |link: &PortLink| present.iter().any(|found| found.index == link.ifindex && found.name == link.ifname);
        let has_netns = |path: &str| std::path::Path::new(path).exists();
        let before = super::engine::indexes(self.attachments.all().filter_map(|record| record.link.as_ref()));
        for id in self.attachments.reconcile(has_link, has_netns)? {
            tracing::info!(%id, "released an attachment whose link and network namespace are gone");
        }
        let attached = self.attachments.attached();
        for record in &attached {
            if let Some(link) = &record.link {
                self.attach_programs(link).with_context(|| format!("cannot attach programs to {}", link.ifname))?;
            }
            self.serve_guest(&record.spec.id)?;
        }
        let after = super::engine::indexes(attached.iter().filter_map(|record| record.link.as_ref()));
        for ifindex in before.difference(&after) {
            self.dataplane.detach(*ifindex)?;
        }
        Ok(())
    }

    /// Publishes what readers see.
    pub(super) fn publish(&self, shared: &Shared, snapshot: &Snapshot) {
        let pools = self.attachments.pools();
        let problems = snapshot.problems.iter().chain(&self.state.desired.problems).chain(&self.state.problems);
        shared.publish(|view| {
            view.uplink.clone_from(&self.observation.uplink.name);
            view.pod_cidrs = pools.iter().map(crate::attachment::Pool::cidr).collect();
            view.addresses_used = pools.iter().map(|pool| (pool.used(), pool.size())).collect();
            view.source = Some(source_state(&self.config, snapshot));
            view.not_ready = self.not_ready(snapshot);
            view.problems = problems.cloned().collect();
            view.attachments = self.attachments.all().cloned().collect();
            view.desired = self.state.desired.clone();
        });
    }

    fn not_ready(&self, snapshot: &Snapshot) -> Option<String> {
        if self.state.ready && self.state.announced {
            return None;
        }
        if let Some(error) = &snapshot.error {
            return Some(format!("{} does not answer: {error}", self.config.source));
        }
        let why = if snapshot.synced { "the first pass over the dataplane has not succeeded" } else { "not synced yet" };
        Some(format!("{}: {why}", self.config.source))
    }
}

/// What is attached to every workload's port.
const WORKLOAD_PROGRAMS: [Program; 2] = [Program::FromWorkload, Program::ToWorkload];

/// The state of the source, for readers.
pub(super) fn source_state(config: &Config, snapshot: &Snapshot) -> SourceState {
    SourceState { name: config.source.to_string(), synced: snapshot.synced, error: snapshot.error.clone() }
}

/// Internal addresses of all nodes.
fn node_addresses(snapshot: &Snapshot) -> Vec<IpAddr> {
    let statuses = snapshot.nodes.values().filter_map(|node| node.status.as_ref());
    let addresses = statuses.flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|address| address.type_ == "InternalIP").filter_map(|address| address.address.parse().ok()).collect()
}

async fn is_there(link: &PortLink) -> Result<bool, ApiError> {
    let found = links::find(&link.ifname).await.map_err(refused)?;
    Ok(found.is_some_and(|found| found.index == link.ifindex))
}

fn addresses(record: &Attachment) -> impl Iterator<Item = IpAddr> + '_ {
    record.allocation.addresses.iter().map(|assigned| assigned.address.addr())
}

/// The programs' form of an address.
fn addr(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => Addr::v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Addr::from_octets(v6.octets()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: impl std::fmt::Display) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error.to_string() }
}
