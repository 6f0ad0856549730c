// SPDX-License-Identifier: Apache-2.0
//! The request for an attachment, out of the environment and the configuration. Pure: no I/O.

use std::net::IpAddr;

use weft_api::{AttachmentId, AttachmentSpec, Mac, PortKind};

use crate::{config::NetworkConfig, environment::Environment, error::CniError};

/// Longest name of a state file; the kernel takes 255 bytes, and its name while it is replaced is a little longer.
const FILE_NAME_MAX: usize = 240;

/// The key of the attachment that `environment` names in `config`'s network.
///
/// # Errors
/// The names are too long to be kept on disk.
pub(crate) fn attachment_id(environment: &Environment, config: &NetworkConfig) -> Result<AttachmentId, CniError> {
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: environment.container_id.clone(),
        ifname: environment.ifname.clone(),
    };
    let length = id.file_name().len();
    if length > FILE_NAME_MAX {
        return Err(CniError::environment(format!(
            "CNI_CONTAINERID and field 'name' are too long together ({length} bytes, at most {FILE_NAME_MAX}); \
             shorten the network's name"
        )));
    }
    Ok(id)
}

/// What ADD asks the agent for.
///
/// # Errors
/// Fields that contradict each other, by name.
pub(crate) fn spec(environment: &Environment, config: &NetworkConfig) -> Result<AttachmentSpec, CniError> {
    let id = attachment_id(environment, config)?;
    if config.port == PortKind::Veth && environment.netns.is_empty() {
        return Err(CniError::environment(
            "CNI_NETNS is missing and port is 'veth'; give the container's network namespace, or set \"port\": \"tap\"",
        ));
    }
    Ok(AttachmentSpec {
        id,
        netns: environment.netns.clone(),
        port: config.port,
        pod: environment.args.pod.clone(),
        addresses: addresses(environment, config)?,
        mac: mac(environment, config)?,
        mtu: config.mtu,
        queues: config.queues.unwrap_or(1),
        owner: config.owner,
        group: config.group,
        host_ports: config.host_ports.clone(),
    })
}

fn addresses(environment: &Environment, config: &NetworkConfig) -> Result<Vec<IpAddr>, CniError> {
    let (by_args, by_config) = (&environment.args.addresses, &config.addresses);
    if !by_args.is_empty() && !by_config.is_empty() && by_args != by_config {
        return Err(CniError::config(
            "IP of CNI_ARGS and the 'ips' of the configuration ask for different addresses; keep one of them",
        ));
    }
    let addresses = if by_args.is_empty() { by_config.clone() } else { by_args.clone() };
    if let Some(address) = addresses.iter().find(|address| !is_usable(**address)) {
        return Err(CniError::config(format!(
            "the address {address} that was asked for cannot be a workload's; ask for a unicast address of the pool"
        )));
    }
    Ok(addresses)
}

fn is_usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn mac(environment: &Environment, config: &NetworkConfig) -> Result<Option<Mac>, CniError> {
    if let (Some(one), Some(other)) = (environment.args.mac, config.mac)
        && one != other
    {
        return Err(CniError::config(format!(
            "MAC of CNI_ARGS is {one} and runtimeConfig.mac is {other}; keep one of them"
        )));
    }
    let mac = environment.args.mac.or(config.mac);
    match mac {
        Some(mac) if mac.0[0] & 1 == 1 || mac.0 == [0; 6] => Err(CniError::config(format!(
            "the MAC {mac} that was asked for is not a unicast address; clear the lowest bit of its first byte"
        ))),
        _ => Ok(mac),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weft_api::AttachmentSpec;

    use super::spec;
    use crate::{config::NetworkConfig, environment::Environment, error::CniError};

    fn request(args: &str, netns: &str, more: Value) -> Result<AttachmentSpec, CniError> {
        let (args, netns) = (args.to_owned(), netns.to_owned());
        let environment = Environment::read(&move |name: &str| match name {
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some(netns.clone()),
            "CNI_ARGS" => Some(args.clone()),
            _ => None,
        })?;
        let mut config = json!({ "cniVersion": "1.1.0", "name": "weft" });
        config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        spec(&environment, &NetworkConfig::strict(config.to_string().as_bytes())?)
    }

    #[test]
    fn a_request_carries_what_was_asked() {
        let spec = request("IP=10.1.0.9,fd00::9;MAC=02:00:00:00:00:09", "/n", json!({"mtu": 9000})).unwrap();
        assert_eq!(spec.id.to_string(), "weft/c1/eth0");
        assert_eq!((spec.addresses.len(), spec.mtu, spec.queues), (2, Some(9000), 1));
    }

    #[test]
    fn a_tap_needs_no_sandbox_and_a_veth_does() {
        assert!(request("", "", json!({"port": "tap", "queues": 4})).is_ok());
        let error = request("", "", json!({})).unwrap_err();
        assert!(error.msg.contains("CNI_NETNS") && u32::from(error.code) == 4, "{error}");
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (args, more, part) in [
            ("IP=10.1.0.9", json!({"runtimeConfig": {"ips": ["10.1.0.8"]}}), "different addresses"),
            ("IP=224.0.0.1", json!({}), "224.0.0.1"),
            ("IP=127.0.0.1", json!({}), "127.0.0.1"),
            ("IP=fe80::1", json!({}), "fe80::1"),
            ("MAC=01:00:00:00:00:00", json!({}), "01:00:00:00:00:00"),
            ("MAC=02:00:00:00:00:01", json!({"runtimeConfig": {"mac": "02:00:00:00:00:02"}}), "runtimeConfig.mac"),
        ] {
            let error = request(args, "/n", more).unwrap_err();
            assert!(error.msg.contains(part) && u32::from(error.code) == 7, "{args}: {error}");
        }
    }

    #[test]
    fn names_too_long_for_a_file_are_refused() {
        assert!(request("", "/n", json!({"name": "n".repeat(240)})).unwrap_err().msg.contains("too long"));
    }
}
