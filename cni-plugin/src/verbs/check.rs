// SPDX-License-Identifier: Apache-2.0
//! CHECK: what ADD made is still there (CNI spec 1.1.0, "CHECK").

use ipnet::IpNet;
use weft_api::{AttachmentId, PortKind, Request};

use crate::{
    agent::{self, SHORT_PATIENCE},
    config::NetworkConfig,
    device_info::DeviceInfo,
    environment::Environment,
    error::{CniError, Code},
    netlink::{Link, Netlink, Route},
    record::{Folder, Record},
    request,
    result::{CniResult, Interface, ResultRoute},
    sandbox::Sandbox,
};

/// Verifies links, addresses and routes against `prevResult`, and asks the agent about its own state.
///
/// # Errors
/// [`Code::Mismatch`] with everything that differs.
pub(super) fn run(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let id = request::attachment_id(environment, config)?;
    let previous = config.prev_result.as_ref().ok_or_else(|| {
        CniError::config("field 'prevResult' is missing; the runtime must give ADD's result for CHECK")
    })?;
    let previous = CniResult::parse(previous)?;
    let record = recorded(config, &id)?;
    let own = own_interface(&previous, &id, environment)?;

    let mut findings = Vec::new();
    let host = check_host_end(&record, &previous, &mut findings)?;
    findings.extend(record.device_info.as_ref().and_then(DeviceInfo::finding));
    if record.port == PortKind::Veth {
        let sandbox = Sandbox::open(&environment.netns)?;
        check_sandbox(sandbox, &previous, own, host.as_ref(), &mut findings)?;
    }
    if !findings.is_empty() {
        let msg = format!("the attachment {id} is not as ADD made it: {}", findings.join("; "));
        return Err(CniError::new(Code::Mismatch, msg));
    }
    let addresses = addresses_of(&previous, own);
    let mut client = agent::connect(config, SHORT_PATIENCE).map_err(|error| CniError::from_agent(&error, false))?;
    agent::done(&mut client, &Request::Check { id, addresses })
}

fn recorded(config: &NetworkConfig, id: &AttachmentId) -> Result<Record, CniError> {
    Folder::of_records(&config.state_dir).load(id).ok_or_else(|| {
        let dir = config.state_dir.display();
        CniError::new(Code::UnknownContainer, format!("the attachment {id} is not recorded in {dir}; run ADD first"))
    })
}

/// Position in `prevResult.interfaces` of the workload's interface.
fn own_interface(previous: &CniResult, id: &AttachmentId, environment: &Environment) -> Result<usize, CniError> {
    let own = |interface: &Interface| {
        let sandbox = interface.sandbox.as_deref().unwrap_or_default();
        let here = sandbox == environment.netns || sandbox == id.container_id;
        interface.name == id.ifname && interface.sandboxed() && here
    };
    previous.interfaces.iter().position(own).ok_or_else(|| {
        CniError::config(format!(
            "field 'prevResult.interfaces' has no '{}' in the sandbox '{}'; pass ADD's result unchanged",
            id.ifname, environment.netns
        ))
    })
}

fn addresses_of(previous: &CniResult, interface: usize) -> Vec<IpNet> {
    let own = previous.ips.iter().filter(|ip| ip.interface == Some(interface));
    own.map(|ip| ip.address).collect()
}

fn check_host_end(record: &Record, previous: &CniResult, findings: &mut Vec<String>) -> Result<Option<Link>, CniError> {
    let name = &record.host_ifname;
    let mut host = Netlink::open().map_err(|error| CniError::io("cannot open a netlink socket", error))?;
    let Some(link) = host.link(name)? else {
        findings.push(format!("the interface '{name}' is missing on the host"));
        return Ok(None);
    };
    match previous.interfaces.iter().find(|interface| interface.name == *name && !interface.sandboxed()) {
        Some(expected) => compare_link(&link, expected, "on the host", findings),
        None => findings.push(format!("prevResult has no interface '{name}' of the host")),
    }
    Ok(Some(link))
}

fn check_sandbox(
    mut sandbox: Sandbox,
    previous: &CniResult,
    own: usize,
    host: Option<&Link>,
    findings: &mut Vec<String>,
) -> Result<(), CniError> {
    let Some(expected) = previous.interfaces.get(own) else { return Ok(()) };
    let Some(link) = sandbox.netlink.link(&expected.name)? else {
        findings.push(format!("the interface '{}' is missing in the sandbox", expected.name));
        return Ok(());
    };
    compare_link(&link, expected, "in the sandbox", findings);
    if let Some(host) = host.filter(|host| link.peer != Some(host.index)) {
        findings.push(format!("'{}' in the sandbox is not the other end of '{}'", link.name, host.name));
    }
    let present = sandbox.netlink.addresses(link.index)?;
    let missing = addresses_of(previous, own).into_iter().filter(|address| !present.contains(address));
    findings.extend(missing.map(|address| format!("'{}' has lost the address {address}", link.name)));
    // In a chain a route may be another plugin's.
    let alone = previous.interfaces.iter().filter(|interface| interface.sandboxed()).count() == 1;
    let routes = sandbox.netlink.routes()?;
    let there = |wanted: &&ResultRoute| {
        !routes.iter().any(|route| is_as_asked(route, wanted) && (!alone || route.oif == link.index))
    };
    let lost = previous.routes.iter().filter(there);
    findings.extend(lost.map(|route| format!("the sandbox has lost the route to {}", route.dst)));
    Ok(())
}

fn is_as_asked(route: &Route, wanted: &ResultRoute) -> bool {
    route.dst == wanted.dst && route.gateway == wanted.gw && wanted.table.is_none_or(|table| table == route.table)
}

fn compare_link(link: &Link, expected: &Interface, place: &str, findings: &mut Vec<String>) {
    let name = &link.name;
    if !link.up {
        findings.push(format!("'{name}' {place} is down"));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if let Some(wanted) = expected.mac.as_ref().filter(|wanted| !wanted.eq_ignore_ascii_case(&mac)) {
        findings.push(format!("'{name}' {place} has mac {mac}, not {wanted}"));
    }
    if let Some(wanted) = expected.mtu.filter(|wanted| *wanted != link.mtu) {
        findings.push(format!("'{name}' {place} has mtu {}, not {wanted}", link.mtu));
    }
}
