// SPDX-License-Identifier: Apache-2.0
//! What can be judged before anything is touched.

use std::{net::IpAddr, ops::RangeInclusive, path::Path};

use ipnet::IpNet;

use super::{Config, MssClamp, PortLimits};
use crate::model::address::covers_mapped;

/// Prefixes of `nonMasqueradeCIDRs`.
const MOST_PLAIN: usize = 1000;

/// A token takes a nanosecond at least.
const MOST_A_SECOND: u32 = 1_000_000_000;

/// The first field that cannot be right, and why.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    check_node_name(&config.node_name).map_err(|e| ("nodeName", e))?;
    check_cidrs(&config.pod_cidrs, true).map_err(|e| ("podCIDRs", e))?;
    check_cidrs(&config.service_cidrs, false).map_err(|e| ("serviceCIDRs", e))?;
    check_overlap(&config.pod_cidrs, &config.service_cidrs).map_err(|e| ("serviceCIDRs", e))?;
    check_cidrs(&config.services.allowed_cidrs, false).map_err(|e| ("services.allowedCIDRs", e))?;
    let node_ports: Vec<IpNet> = config.services.node_port_cidrs().collect();
    check_cidrs(&node_ports, false).map_err(|e| ("services.nodePortAddresses", e))?;
    check_plain(&config.non_masquerade_cidrs).map_err(|e| ("nonMasqueradeCIDRs", e))?;
    check_own(config).map_err(|e| ("masqueradeAddresses", e))?;
    one_per_family(config.node_addresses.iter().map(IpAddr::is_ipv4)).map_err(|e| ("nodeAddresses", e))?;
    in_range(config.vni, 1..=0x00ff_ffff).map_err(|e| ("vni", e))?;
    in_range(u32::from(config.vxlan_port), 1..=65_535).map_err(|e| ("vxlanPort", e))?;
    // RFC 1122, section 3.3.3; with IPv6 the devices ask for 1280.
    config.mtu.map_or(Ok(()), |mtu| in_range(mtu, 576..=65_535)).map_err(|e| ("mtu", e))?;
    check_mss(config.mss_clamp).map_err(|e| ("mssClamp", e))?;
    check_socket(&config.socket).map_err(|e| ("socket", e))?;
    if config.health_addresses.is_empty() {
        let problem =
            "there is none, and kubelet's probes need one; leave the key out for 127.0.0.1:9911 and [::1]:9911";
        return Err(("healthAddresses", problem.to_owned()));
    }
    for (field, path) in [("runDir", &config.run_dir), ("stateDir", &config.state_dir), ("pinDir", &config.pin_dir)] {
        check_absolute(path).map_err(|e| (field, e))?;
    }
    config.vhost_binary.as_deref().map_or(Ok(()), check_absolute).map_err(|e| ("vhostBinary", e))?;
    check_absolute(&config.cni.bin_dir).map_err(|e| ("cni.binDir", e))?;
    check_absolute(&config.cni.conf_dir).map_err(|e| ("cni.confDir", e))?;
    check_network_name(&config.cni.name).map_err(|e| ("cni.name", e))?;
    in_range(config.port_limits.flow_table_percent, 0..=100).map_err(|e| ("portLimits.flowTablePercent", e))?;
    for (field, rate) in rates(&config.port_limits) {
        in_range(rate, 0..=MOST_A_SECOND).map_err(|e| (field, e))?;
    }
    config.connection_timeouts.check()?;
    config.map_sizes.validate().map_err(|e| ("mapSizes", e.to_string()))
}

const fn rates(limits: &PortLimits) -> [(&'static str, u32); 3] {
    [
        ("portLimits.flowsPerSecond", limits.flows_per_second),
        ("portLimits.answersPerSecond", limits.answers_per_second),
        ("portLimits.fragmentedPerSecond", limits.fragmented_per_second),
    ]
}

fn check_node_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 253 || !name.chars().all(allowed) {
        return Err(format!(
            "'{name}' is not the name of a Node; set it to `metadata.name` of this node's Node object"
        ));
    }
    Ok(())
}

fn check_cidrs(cidrs: &[IpNet], single: bool) -> Result<(), String> {
    if let Some(cidr) = cidrs.iter().find(|cidr| cidr.trunc() != **cidr) {
        return Err(format!("{cidr} has bits set behind its prefix; write {}", cidr.trunc()));
    }
    if !single {
        return Ok(());
    }
    // The first address is the gateway's, so that two bits are the least.
    if let Some(cidr) = cidrs.iter().find(|cidr| cidr.max_prefix_len() - cidr.prefix_len() < 2 || cidr.prefix_len() < 8)
    {
        return Err(format!("{cidr} has no fitting size; use a prefix from /8 to /{}", cidr.max_prefix_len() - 2));
    }
    one_per_family(cidrs.iter().map(|cidr| cidr.addr().is_ipv4()))
}

/// The tables have room for more, and IPv4 addresses are among those of IPv6 there.
fn check_plain(cidrs: &[IpNet]) -> Result<(), String> {
    check_cidrs(cidrs, false)?;
    if let Some(cidr) = cidrs.iter().find(|cidr| covers_mapped(**cidr)) {
        return Err(format!("{cidr} would cover all of IPv4; use `masquerade: {{ipv6: false}}`, or a narrower prefix"));
    }
    if cidrs.len() > MOST_PLAIN {
        return Err(format!("{} prefixes are more than {MOST_PLAIN}; give wider ones", cidrs.len()));
    }
    Ok(())
}

/// Bits behind a prefix would be a slip of the pen, and so would be addresses of a family that is left alone, or of pods or Services.
fn check_own(config: &Config) -> Result<(), String> {
    let nets: Vec<IpNet> = config.masquerade_addresses.iter().map(|address| address.0).collect();
    check_cidrs(&nets, false)?;
    let masquerades = |net: &IpNet| if net.addr().is_ipv4() { config.masquerade.ipv4 } else { config.masquerade.ipv6 };
    if let Some(net) = nets.iter().find(|net| !masquerades(net)) {
        return Err(format!(
            "{net} is of a family that `masquerade` leaves alone; take it out, or masquerade that family"
        ));
    }
    for (field, cidrs) in [("podCIDRs", &config.pod_cidrs), ("serviceCIDRs", &config.service_cidrs)] {
        if let Some((net, cidr)) = overlap(&nets, cidrs) {
            return Err(format!("{net} overlaps {cidr} of {field}; give addresses of the node beyond it"));
        }
    }
    Ok(())
}

fn check_overlap(pods: &[IpNet], services: &[IpNet]) -> Result<(), String> {
    match overlap(pods, services) {
        Some((pod, service)) => Err(format!("{service} overlaps the pod CIDR {pod}; use ranges apart from each other")),
        None => Ok(()),
    }
}

/// The first of `one` that has addresses in common with one of `other`, and that.
fn overlap<'a>(one: &'a [IpNet], other: &'a [IpNet]) -> Option<(&'a IpNet, &'a IpNet)> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    one.iter().find_map(|a| Some((a, other.iter().find(|b| overlaps(a, b))?)))
}

fn one_per_family(ipv4: impl Iterator<Item = bool>) -> Result<(), String> {
    let (v4, v6): (Vec<bool>, Vec<bool>) = ipv4.partition(|v4| *v4);
    if v4.len() > 1 || v6.len() > 1 {
        return Err("more than one of the same family; give one IPv4 and one IPv6 at most".to_owned());
    }
    Ok(())
}

pub(super) fn in_range(value: u32, range: RangeInclusive<u32>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!("{value} is out of range; use {} to {}", range.start(), range.end()))
}

/// What every host takes (RFC 9293, 3.7.1), and what fits an IPv4 packet.
fn check_mss(clamp: MssClamp) -> Result<(), String> {
    match clamp {
        MssClamp::Way(_) => Ok(()),
        MssClamp::Most(most) => in_range(u32::from(most), 536..=65_495),
    }
}

fn check_absolute(path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(format!("'{}' is not an absolute path; start it with '/'", path.display()))
}

fn check_socket(path: &Path) -> Result<(), String> {
    check_absolute(path)?;
    // sun_path of unix(7) takes 108 bytes with the closing zero.
    if path.as_os_str().len() > 107 {
        return Err(format!("'{}' is longer than 107 bytes; choose a shorter path", path.display()));
    }
    Ok(())
}

fn check_network_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) {
        return Err(format!("'{name}' is not a CNI network name; use letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}
