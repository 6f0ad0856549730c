// SPDX-License-Identifier: Apache-2.0
//! From what a user names to the packet as it arrives at a hook.

use std::net::IpAddr;

use weft_abi::{CLUSTER_NET, Config, FlowKey6, OVERLAY, RemoteKind, UPLINK};
use weft_api::{ApiError, ErrorCode, ExplainQuery};
use weft_logic::walk::{Origin, Question, Sender, Walk};

use super::{Reads, unreadable};
use crate::{apply::flows::now_ticks, plan::Planner};

/// The first segment of a connection.
const SYN: u8 = 0x02;

/// The packet of `query`, as the slow path begins on it.
///
/// # Errors
/// An end that is not known, two ends without a family in common, or a map that cannot be read.
pub(super) fn walk(query: &ExplainQuery, planner: &Planner, maps: &impl Reads) -> Result<Walk, ApiError> {
    let config = maps.config().map_err(|error| unreadable(error.to_string()))?.unwrap_or_default();
    let (from, to) =
        pair(addresses("from", &query.from, planner, &config)?, addresses("to", &query.to, planner, &config)?)
            .ok_or_else(|| {
                invalid(format!("from: {} and to: {} have no address family in common", query.from, query.to))
            })?;
    let mut question = Question {
        key: FlowKey6 {
            ifindex: 0,
            src: from.into(),
            dst: to.into(),
            sport: query.source_port.to_be(),
            dport: query.port.to_be(),
            protocol: query.protocol.into(),
        },
        is_v6: to.is_ipv6().into(),
        tcp_flags: SYN,
        now: now_ticks(),
        ..Question::default()
    };
    arrive(&mut question, &config, maps).map_err(|error| unreadable(error.to_string()))?;
    Ok(Walk { question, ..Walk::default() })
}

/// Where a packet of this source comes in: by its port, from the host, or from where its node sends it.
fn arrive(question: &mut Question, config: &Config, maps: &impl Reads) -> Result<(), weft_dataplane::Error> {
    let src = question.key.src;
    if let Some(owner) = maps.owner(CLUSTER_NET, &src)? {
        if owner.is_host() {
            (question.sender, question.origin) = (Sender::Host as u32, Origin::Own as u8);
            (question.key.ifindex, question.sender_mac) = (config.host_ifindex, config.host_mac);
        } else {
            (question.sender, question.key.ifindex) = (Sender::Workload as u32, owner.ifindex);
            question.sender_mac = maps.port(owner.ifindex)?.map_or([0; 6], |port| port.mac);
        }
        return Ok(());
    }
    (question.sender, question.key.ifindex) = (Sender::Uplink as u32, UPLINK);
    let Some(remote) = maps.remote(CLUSTER_NET, &src)? else { return Ok(()) };
    let tunnels = [RemoteKind::Tunnel as u32, RemoteKind::Node as u32].contains(&remote.kind);
    if tunnels && config.overlay_ifindex != 0 {
        (question.sender, question.key.ifindex, question.tunnel_peer) = (Sender::Overlay as u32, OVERLAY, remote.via);
    }
    question.sender_mac = remote.mac;
    Ok(())
}

/// The first two of one family, IPv4 before IPv6.
fn pair(from: Vec<IpAddr>, to: Vec<IpAddr>) -> Option<(IpAddr, IpAddr)> {
    [true, false].into_iter().find_map(|v4| {
        let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        Some((of_family(&from)?, of_family(&to)?))
    })
}

/// The addresses that a name or text stands for.
fn addresses(field: &str, text: &str, planner: &Planner, config: &Config) -> Result<Vec<IpAddr>, ApiError> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let found: Vec<IpAddr> = if text == "host" {
        [config.node_v4, config.node_v6].into_iter().filter(|addr| !addr.is_unspecified()).map(IpAddr::from).collect()
    } else if let Some(service) = text.strip_prefix("svc/") {
        planner.frontends_of(service)
    } else {
        planner.addresses_of(text)
    };
    if found.is_empty() {
        return Err(invalid(format!(
            "{field}: {text} is neither an address nor known here; give an address, NAMESPACE/NAME of a pod, \
             svc/NAMESPACE/NAME of a Service, or host"
        )));
    }
    Ok(found)
}

const fn invalid(message: String) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message }
}
