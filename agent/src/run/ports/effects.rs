// SPDX-License-Identifier: Apache-2.0
//! What a port's life asks for, each by itself: the order is [`crate::attachment::life`]'s.

use std::{net::IpAddr, path::Path};

use weft_api::{ApiError, AttachmentId, ErrorCode, PortKind, PortLink};
use weft_dataplane::{Attachment as Served, Dataplane, Maps, Program};

use super::{Ports, WORKLOAD_PROGRAMS};
use crate::{
    attachment::{
        life::{Ask, Effect},
        unknown,
    },
    device::links,
    guest::{self, GuestPort},
    model::{Attachment, address::address_key},
};

impl Ports {
    /// Carries one effect out; those that ports share are [`Ports`]'s own.
    pub(super) async fn perform(
        &mut self,
        dataplane: &mut Dataplane,
        id: &AttachmentId,
        effect: Effect,
    ) -> Result<(), ApiError> {
        match effect {
            Effect::Close(link) => self.close(id, &link).await,
            Effect::Arm(link) => self.arm(dataplane, &link).await,
            Effect::StartDevice(link) => self.start_device(id, link),
            Effect::Note(link) => self.attachments.link(id, link).map(drop),
            Effect::Open(link) => links::open_port(&link.ifname).await.map_err(refused),
            Effect::ServeGuest => self.serve_guest(id),
            Effect::Mend(link) => mend(&link).await.map_err(refused),
            Effect::StopServing => {
                self.guests.remove(id);
                self.devices.stop(id);
                Ok(())
            }
            Effect::AwaitDevice => {
                self.devices.stopped(id).await;
                Ok(())
            }
            Effect::RemoveEntries(link) => self.remove_entries(dataplane.maps(), id, &link),
            Effect::RemoveLink(link) => self.remove_link(dataplane, id, link).await,
            Effect::Free => self.attachments.remove(id),
            Effect::Reserve(_) | Effect::Pass | Effect::ForgetFlows(_) => Ok(()),
        }
    }

    pub(super) fn reserve(&mut self, id: &AttachmentId, ask: Ask) -> Result<(), ApiError> {
        let spec = self.asks.spec(ask).cloned().ok_or_else(|| unknown(id))?;
        self.attachments.allocate(spec).map(drop)
    }

    async fn close(&self, id: &AttachmentId, link: &PortLink) -> Result<(), ApiError> {
        let expected = &self.attachments.get(id).ok_or_else(|| unknown(id))?.allocation.host_ifname;
        if !is_there(link).await? {
            return Err(not_there(id, link, expected));
        }
        // An older plugin brings its link up before it asks.
        links::close_port(&link.ifname).await.map_err(|error| refused(format!("cannot close it: {error}")))
    }

    /// What programs of another version do stays theirs: this version's maps may know nothing yet, and would have everything
    /// dropped.
    async fn arm(&mut self, dataplane: &mut Dataplane, link: &PortLink) -> Result<(), ApiError> {
        links::prepare_port(&link.ifname).await.map_err(refused)?;
        let is_served = |program: &Program| self.others.contains(&Served { ifindex: link.ifindex, program: *program });
        let mut missing = WORKLOAD_PROGRAMS.iter().filter(|program| !is_served(program));
        missing
            .try_for_each(|program| dataplane.attach(*program, &link.ifname, link.ifindex))
            .map_err(|error| refused(format!("cannot attach programs, so it stays down: {error}")))
    }

    fn start_device(&mut self, id: &AttachmentId, link: PortLink) -> Result<(), ApiError> {
        let record = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        self.devices.start(&Attachment { link: Some(link), ..record.clone() })
    }

    /// Answers the guest's DHCP and router solicitations, where there is a guest.
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
        let handle = guest::serve(&port, &self.guest_counters)
            .map_err(|error| refused(format!("cannot serve DHCP on {}: {error}", link.ifname)))?;
        self.guests.insert(id.clone(), handle);
        Ok(())
    }

    /// Takes a port's entries out without a plan: before the first one, or after one that could not be applied.
    fn remove_entries(&mut self, maps: &Maps, id: &AttachmentId, link: &PortLink) -> Result<(), ApiError> {
        self.wrote_maps = true;
        for address in self.attachments.get(id).into_iter().flat_map(addresses) {
            let owner = maps.addresses().get(&address_key(address)).map_err(refused)?;
            if owner.is_some_and(|owner| owner.ifindex == link.ifindex) {
                maps.addresses().remove(&address_key(address)).map_err(refused)?;
            }
        }
        maps.ports().remove(&link.ifindex).map(drop).map_err(refused)
    }

    /// A link that the plugin has left goes as well: without programs it would lead past the dataplane. What has this name is
    /// this port's, whatever was told of it.
    async fn remove_link(
        &mut self,
        dataplane: &mut Dataplane,
        id: &AttachmentId,
        link: Option<PortLink>,
    ) -> Result<(), ApiError> {
        if let Some(record) = self.attachments.get(id) {
            links::delete(&record.allocation.host_ifname).await.map_err(refused)?;
        }
        link.map_or(Ok(()), |link| dataplane.detach(link.ifindex).map_err(refused))
    }
}

async fn mend(link: &PortLink) -> crate::device::Result<()> {
    links::prepare_port(&link.ifname).await?;
    links::open_port(&link.ifname).await
}

/// Whether the link is there, and is not another one of its name.
pub(super) async fn is_there(link: &PortLink) -> Result<bool, ApiError> {
    let found = links::find(&link.ifname).await.map_err(refused)?;
    Ok(found.is_some_and(|found| found.index == link.ifindex))
}

/// Whether a runtime may still ask for what uses this network namespace.
pub(super) fn is_wanted(netns: &str) -> bool {
    netns.is_empty() || Path::new(netns).exists()
}

/// Whether the maps have a port.
pub(super) fn has_entry(maps: &Maps, link: &PortLink) -> Result<bool, ApiError> {
    Ok(maps.ports().get(&link.ifindex).map_err(refused)?.is_some())
}

pub(super) fn addresses(record: &Attachment) -> impl Iterator<Item = IpAddr> + '_ {
    record.allocation.addresses.iter().map(|assigned| assigned.address.addr())
}

pub(super) fn not_there(id: &AttachmentId, PortLink { ifindex, ifname }: &PortLink, expected: &str) -> ApiError {
    let message = format!(
        "link {ifname} with index {ifindex} of {id} is not there; make '{expected}' in the agent's network namespace"
    );
    ApiError { code: ErrorCode::Invalid, message }
}

pub(super) fn refused(error: impl std::fmt::Display) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error.to_string() }
}
