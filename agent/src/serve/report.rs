// SPDX-License-Identifier: Apache-2.0
//! Answers for the operator.

use weft_abi::{Counter, DROP_REASONS, DropReason};
use weft_api::{ApiError, DropReport, EndpointReport, ErrorCode, MapReport, SourceState, StatusReport};
use weft_dataplane::Error;

use super::{Shared, View};
use crate::{model::Attachment, plan::Planner, vhost::Board};

/// `weft status`.
///
/// # Errors
/// The maps cannot be read.
pub fn status(shared: &Shared) -> Result<StatusReport, ApiError> {
    let (problems, routes) = (shared.problems(), shared.planner().desired().route_reports.clone());
    Ok(StatusReport { problems, routes, ..summary(shared)? })
}

/// The same without what grows with the cluster: routes and problems.
///
/// # Errors
/// The maps cannot be read.
pub fn summary(shared: &Shared) -> Result<StatusReport, ApiError> {
    let view = shared.view();
    let (maps, events_lost) = match shared.maps() {
        Some(maps) => (maps.memory().map_err(unreadable)?, maps.counted(Counter::EventsLost).map_err(unreadable)?),
        None => (Vec::new(), 0),
    };
    let maps = maps.into_iter().map(|map| MapReport {
        name: map.map.to_owned(),
        max_entries: map.max_entries.into(),
        bytes: map.bytes,
    });
    let View { node, mode, uplink, devices, stack_devices, pod_cidrs, addresses_used, source, not_ready, .. } =
        View::clone(&view);
    Ok(StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api_version: weft_api::API_VERSION,
        node,
        mode,
        source: source.unwrap_or(SourceState {
            name: "none".to_owned(),
            synced: false,
            error: None,
            remembered_since: None,
        }),
        pod_cidrs,
        addresses_used,
        uplink,
        devices,
        stack_devices,
        not_ready,
        applied: view.planned == Some(shared.planner().versions()),
        uptime_seconds: shared.started.elapsed().as_secs(),
        routes: Vec::new(),
        maps: maps.collect(),
        problems: Vec::new(),
        events_lost,
    })
}

/// `weft endpoints`.
#[must_use]
pub fn endpoints(shared: &Shared) -> Vec<EndpointReport> {
    let (view, planner) = (shared.view(), shared.planner());
    view.attachments.iter().map(|attachment| endpoint(attachment, &planner, &shared.devices)).collect()
}

pub(super) fn endpoint(attachment: &Attachment, planner: &Planner, devices: &Board) -> EndpointReport {
    let Attachment { spec, allocation, link } = attachment;
    let desired = planner.desired();
    let (ingress_policies, egress_policies) = planner.isolated_by(&spec.id.to_string());
    let ifindex = link.as_ref().map_or(0, |link| link.ifindex);
    let state = match link {
        None => "reserved: no link yet".to_owned(),
        Some(_) if !desired.ports.contains_key(&ifindex) => "not programmed: see problems in `weft status`".to_owned(),
        Some(_) if desired.closed.contains_key(&spec.id.to_string()) => {
            format!("closed: {}", desired.closed[&spec.id.to_string()])
        }
        Some(_) => devices.get(&spec.id).map_or_else(|| "ready".to_owned(), |device| device.state.to_string()),
    };
    EndpointReport {
        id: spec.id.clone(),
        pod: spec.pod.clone(),
        port: spec.port,
        ifname: allocation.host_ifname.clone(),
        ifindex,
        mac: allocation.mac,
        addresses: allocation.addresses.iter().map(|assigned| assigned.address.addr()).collect(),
        ingress_policies,
        egress_policies,
        state,
    }
}

/// `weft drops`.
///
/// # Errors
/// The maps cannot be read, or are not open yet.
pub fn drops(shared: &Shared) -> Result<Vec<DropReport>, ApiError> {
    let maps = shared.maps().ok_or_else(|| ApiError {
        code: ErrorCode::NotReady,
        message: "the dataplane is not open yet; see `weft status`".to_owned(),
    })?;
    let reasons = DropReason::ALL.iter().zip(DROP_REASONS);
    let reports = reasons.map(|(reason, (name, help))| {
        let tally = maps.dropped(*reason)?;
        Ok(DropReport {
            reason: (*name).to_owned(),
            help: (*help).to_owned(),
            packets: tally.packets,
            bytes: tally.bytes,
        })
    });
    reports.collect::<Result<_, _>>().map_err(unreadable)
}

pub(super) fn unreadable(error: Error) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error.to_string() }
}
