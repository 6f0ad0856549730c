// SPDX-License-Identifier: Apache-2.0
//! The ports of workloads: attach, release, check, adopt.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use tokio::task::block_in_place;
use weft_api::{Allocation, ApiError, AttachmentId, AttachmentSpec, ErrorCode, PortKind, PortLink};
use weft_dataplane::{Attachment as Served, Program};

use super::node::{Broken, Node};
use crate::{
    apply::flows,
    attachment::unknown,
    config::Source,
    device::links,
    guest::{self, GuestPort},
    model::Attachment,
    plan::Planner,
};

/// What is attached to every workload's port.
pub(super) const WORKLOAD_PROGRAMS: [Program; 2] = [Program::FromWorkload, Program::ToWorkload];

impl Node {
    /// Whether there is nothing to wait for: the cluster knows the attachment's pod, or it has none, or nobody else will
    /// tell of it (in a folder, a pod without a manifest is known by its attachment alone; an API server that is away).
    pub(super) fn knows_pod(&self, id: &AttachmentId, planner: &Planner) -> bool {
        let pod = self.attachments.get(id).and_then(|record| record.spec.pod.as_ref());
        let silent = matches!(self.config.source, Source::Dir(_)) || planner.snapshot().error.is_some();
        pod.is_none_or(|pod| silent || planner.knows_pod(pod))
    }

    /// Reserves addresses. An attachment whose link has gone may be asked for again.
    pub(super) async fn allocate(&mut self, spec: AttachmentSpec) -> Result<Allocation, ApiError> {
        let linked = self.attachments.get(&spec.id).and_then(|record| record.link.clone());
        if let Some(link) = linked
            && !is_there(&link).await?
        {
            self.state.guests.remove(&spec.id);
            self.devices.stopped(&spec.id).await;
            self.attachments.link(&spec.id, None)?;
        }
        self.attachments.allocate(spec)
    }

    /// Attaches the programs to a link that is down; the entries come with the next pass, after which [`Node::open_port`] brings
    /// it up.
    pub(super) async fn attach(&mut self, id: &AttachmentId, link: PortLink) -> Result<(), ApiError> {
        let expected = &self.attachments.get(id).ok_or_else(|| unknown(id))?.allocation.host_ifname;
        if link.ifname != *expected || !is_there(&link).await? {
            let PortLink { ifindex, ifname } = &link;
            let message = format!(
                "link {ifname} with index {ifindex} of {id} is not there; make '{expected}' in the agent's network namespace"
            );
            return Err(ApiError { code: ErrorCode::Invalid, message });
        }
        // An older plugin brings its link up before it asks.
        links::close_port(&link.ifname).await.map_err(refused)?;
        links::prepare_port(&link.ifname).await.map_err(refused)?;
        self.attach_programs(&link, &[]).map_err(refused)?;
        let attachment = self.attachments.link(id, Some(link))?;
        self.devices.start(attachment)
    }

    /// Brings a port up whose programs are attached and whose entries are written, and serves its guest.
    pub(super) async fn open_port(&mut self, id: &AttachmentId) -> Result<(), ApiError> {
        let record = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        if let Some(link) = record.link.clone() {
            links::open_port(&link.ifname).await.map_err(refused)?;
        }
        self.serve_guest(id)
    }

    /// Whether the pass before has given the port its entry.
    pub(super) fn is_programmed(&self, id: &AttachmentId) -> Result<(), ApiError> {
        let record = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        let Some(link) = &record.link else { return Err(unknown(id)) };
        if self.maps().ports().get(&link.ifindex).map_err(refused)?.is_some() {
            return Ok(());
        }
        let message = format!("the dataplane has no entry for {}: see problems in `weft status`", link.ifname);
        Err(ApiError { code: ErrorCode::Io, message })
    }

    /// Starts to answer the guest's DHCP and router solicitations, where there is a guest.
    fn serve_guest(&mut self, id: &AttachmentId) -> Result<(), ApiError> {
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
        let handle = guest::serve(&port, &self.guest_counters).map_err(|error| ApiError {
            code: ErrorCode::Io,
            message: format!("cannot serve DHCP on {}: {error}", link.ifname),
        })?;
        self.state.guests.insert(id.clone(), handle);
        Ok(())
    }

    /// Takes an attachment out of the plan; whether it was in it.
    pub(super) fn begin_release(&mut self, id: &AttachmentId) -> bool {
        self.state.guests.remove(id);
        self.devices.stop(id);
        self.attachments.begin_release(id).is_some_and(|record| record.link.is_some())
    }

    /// After the pass: links, programs, flows, and at the very last the addresses. `directly`: there was no pass.
    pub(super) async fn finish_release(&mut self, ids: &[AttachmentId], directly: bool) -> Result<(), ApiError> {
        let records: Vec<Attachment> = ids.iter().filter_map(|id| self.attachments.get(id)).cloned().collect();
        for record in &records {
            self.devices.stopped(&record.spec.id).await;
            if directly {
                self.applier.forget();
                self.remove_entries(record).map_err(refused)?;
            }
            self.remove_link(record).await?;
        }
        let ports = records.iter().filter_map(|record| Some(record.link.as_ref()?.ifindex)).collect();
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

    /// Takes a port's entries out without a plan: before the first one, or after one that could not be applied.
    fn remove_entries(&self, record: &Attachment) -> Result<(), weft_dataplane::Error> {
        let Some(link) = &record.link else { return Ok(()) };
        for address in addresses(record) {
            if self.maps().locals().get(&address.into())?.is_some_and(|local| local.ifindex == link.ifindex) {
                self.maps().locals().remove(&address.into())?;
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
            let local = self.maps().locals().get(&address.into()).map_err(refused)?;
            if local.is_none_or(|local| local.ifindex != link.ifindex) {
                return mismatch(format!("the map LOCALS does not lead {address} to {}", link.ifname));
            }
        }
        Ok(())
    }

    /// Attaches what nobody has attached there; `served` is what other ABI versions do.
    fn attach_programs(&mut self, link: &PortLink, served: &[Served]) -> Result<(), weft_dataplane::Error> {
        let is_served = |program: &Program| served.contains(&Served { ifindex: link.ifindex, program: *program });
        let mut missing = WORKLOAD_PROGRAMS.iter().filter(|program| !is_served(program));
        missing.try_for_each(|program| self.dataplane.attach(*program, &link.ifname, link.ifindex))
    }

    /// Sees to it that every port has programs: one that has not is down until it has. What another ABI version serves stays
    /// its own: this version's maps know nothing yet, and would have everything dropped. One that cannot have them stays down
    /// alone.
    ///
    /// # Errors
    /// What is attached cannot be told.
    pub(super) async fn guard_ports(&mut self) -> Result<Guarded> {
        let others = self.dataplane.attachments_of_other_versions().context("cannot look for other versions")?;
        let own = self.dataplane.attachments().context("cannot look for attached programs")?;
        let mut guarded = Guarded::default();
        for record in self.attachments.attached() {
            let Some(link) = &record.link else { continue };
            let has = |program| {
                let wanted = Served { ifindex: link.ifindex, program };
                own.contains(&wanted) || others.contains(&wanted)
            };
            if WORKLOAD_PROGRAMS.into_iter().all(has) {
                continue;
            }
            match self.guard_port(link, &others).await {
                Ok(mended) => guarded.mended += usize::from(mended),
                Err(error) => {
                    let problem = format!("link {} of {}: {error:#}", link.ifname, record.spec.id);
                    guarded.closed.push((Some(record.spec.id.clone()), problem));
                }
            }
        }
        Ok(guarded)
    }

    /// Gives a port its programs while it is down; false: it is gone, and nothing passes it. It is named by the look at the node.
    async fn guard_port(&mut self, link: &PortLink, others: &[Served]) -> Result<bool> {
        if !is_there(link).await? {
            return Ok(false);
        }
        tracing::warn!(ifname = link.ifname, "a port has lost its programs");
        links::close_port(&link.ifname).await.context("cannot close it")?;
        self.attach_programs(link, others).context("cannot attach programs, so it stays down")?;
        links::open_port(&link.ifname).await.context("cannot open it")?;
        Ok(true)
    }

    /// Once this version's maps are filled, what other ABI versions served is its own.
    pub(super) async fn take_over_other_versions(&mut self) -> Result<()> {
        let report = self.dataplane.take_over_other_versions().context("cannot take over from another version")?;
        if !report.adopted.is_empty() {
            tracing::info!(links = report.adopted.len(), "took over from another version");
        }
        // What was of no use to take over.
        self.guard_ports().await?.tell();
        Ok(())
    }

    /// Adopts the attachments of an earlier run: programs and guests.
    pub(super) async fn adopt(&mut self) -> Result<()> {
        let present = links::list_weft().await.context("cannot list links")?;
        let has_link =
            |link: &PortLink| present.iter().any(|found| found.index == link.ifindex && found.name == link.ifname);
        let has_netns = |path: &str| std::path::Path::new(path).exists();
        for id in self.attachments.reconcile(has_link, has_netns)? {
            tracing::info!(%id, "released an attachment whose link and network namespace are gone");
        }
        self.guard_ports().await?.tell();
        for record in self.attachments.attached() {
            self.serve_guest(&record.spec.id)?;
            self.devices.start(&record)?;
        }
        self.devices.sweep().await.context("cannot look for devices of an earlier run")
    }
}

/// What came of a look at the programs of ports.
#[derive(Default)]
pub(super) struct Guarded {
    /// How many have got their programs back.
    pub(super) mended: usize,
    /// Those that cannot have them, and are down.
    pub(super) closed: Vec<Broken>,
}

impl Guarded {
    /// Logs the ports that are closed. The next look at the node tries again, and `weft status` names them.
    fn tell(&self) {
        for (_, problem) in &self.closed {
            tracing::warn!(problem, "a port is closed");
        }
    }
}

async fn is_there(link: &PortLink) -> Result<bool, ApiError> {
    let found = links::find(&link.ifname).await.map_err(refused)?;
    Ok(found.is_some_and(|found| found.index == link.ifindex))
}

fn addresses(record: &Attachment) -> impl Iterator<Item = IpAddr> + '_ {
    record.allocation.addresses.iter().map(|assigned| assigned.address.addr())
}

fn refused(error: impl std::fmt::Display) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error.to_string() }
}
