// SPDX-License-Identifier: Apache-2.0
//! CNI CHECK.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use weft_api::{ApiError, AttachmentId, ErrorCode, PortLink};
use weft_dataplane::{Attachment as Served, Dataplane, Maps};

use super::{
    Ports, WORKLOAD_PROGRAMS,
    effects::{addresses, has_entry, refused},
};
use crate::{attachment::unknown, model::address::address_key};

impl Ports {
    /// Addresses as told, programs attached, entries there.
    pub(in crate::run) fn check(
        &self,
        dataplane: &Dataplane,
        id: &AttachmentId,
        told: &[IpNet],
    ) -> Result<(), ApiError> {
        let mismatch = |what: String| ApiError {
            code: ErrorCode::Mismatch,
            message: format!("{what} of {id}; delete it and add it again"),
        };
        let record = self.attachments.get(id).ok_or_else(|| unknown(id))?;
        let given: BTreeSet<IpAddr> = addresses(record).collect();
        let told: BTreeSet<IpAddr> = told.iter().map(IpNet::addr).collect();
        if given != told {
            return Err(mismatch(format!("the agent gave the addresses {given:?}, not {told:?}, to the attachment")));
        }
        let link = record.link.as_ref().ok_or_else(|| mismatch("the agent was told no link".to_owned()))?;
        let lacking = match lacking_program(dataplane, link)? {
            Some(lacking) => Some(lacking),
            None => lacking_entry(dataplane.maps(), link, &given)?,
        };
        lacking.map_or(Ok(()), |lacking| Err(mismatch(lacking)))
    }
}

fn lacking_program(dataplane: &Dataplane, link: &PortLink) -> Result<Option<String>, ApiError> {
    let attached = dataplane.attachments().map_err(refused)?;
    let is_attached = |program| attached.contains(&Served { ifindex: link.ifindex, program });
    let missing = WORKLOAD_PROGRAMS.into_iter().find(|program| !is_attached(*program));
    Ok(missing.map(|program| format!("program {program} is not attached to {}", link.ifname)))
}

fn lacking_entry(maps: &Maps, link: &PortLink, given: &BTreeSet<IpAddr>) -> Result<Option<String>, ApiError> {
    if !has_entry(maps, link)? {
        return Ok(Some(format!("the map PORTS has no entry for {}", link.ifname)));
    }
    for address in given {
        let owner = maps.addresses().get(&address_key(*address)).map_err(refused)?;
        if owner.is_none_or(|owner| owner.ifindex != link.ifindex) {
            return Ok(Some(format!("the map ADDRESSES does not lead {address} to {}", link.ifname)));
        }
    }
    Ok(None)
}
