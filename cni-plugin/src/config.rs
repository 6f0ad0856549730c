// SPDX-License-Identifier: Apache-2.0
//! The network configuration on stdin: CNI spec 1.1.0, "Section 1", CNI conventions, and Weft's own keys.
//!
//! Every key is validated and unknown keys are refused, because a misspelt key would otherwise silently give a workload
//! another network than was meant. DEL reads the same configuration and goes on with what is right in it.

mod capabilities;
mod fields;
mod host_ports;

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf};

use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;
use weft_api::{DEFAULT_SOCKET, HostPort, Mac, PortKind};

use crate::{
    config::{capabilities::DEVICE_ID, fields::Fields},
    device_info,
    environment::{is_identifier, parse_address},
    error::{CniError, Code},
    result::Dns,
    version::{SpecVersion, UnsupportedVersion},
};

/// MTUs that both kinds of link can have: every IPv4 host takes 576 (RFC 1122, section 3.3.3), a tap takes 65521 at most.
/// The agent asks for 1280 where it gives IPv6 addresses (RFC 8200, section 5).
pub(crate) const MTU_RANGE: RangeInclusive<u32> = 576..=65521;
/// Queue pairs of a tap (`MAX_TAP_QUEUES` of the kernel).
pub(crate) const QUEUE_RANGE: RangeInclusive<u16> = 1..=256;

/// Where attachments are recorded for DEL; see [`crate::record`].
const DEFAULT_STATE_DIR: &str = "/var/lib/weft/attachments";
/// Where releases wait for an agent that is away.
const DEFAULT_PENDING_DIR: &str = "/var/lib/weft/pending-del";

/// Keys that the spec and its conventions define, or that Weft defines.
const KNOWN_KEYS: [&str; 25] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "dns",
    "prevResult",
    "disableCheck",
    "disableGC",
    VALID_ATTACHMENTS,
    "cni.dev/attachments",
    "port",
    "mtu",
    "queues",
    "owner",
    "group",
    "agentSocket",
    "stateDir",
    "pendingDir",
    "logFile",
    LOG_LEVEL,
    DEVICE_ID,
    capabilities::PCI_BUS_ID,
];
const LOG_LEVEL: &str = "logLevel";
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// One entry of `cni.dev/valid-attachments`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ValidAttachment {
    /// `containerID`.
    pub container_id: String,
    /// `ifname`.
    pub ifname: String,
}

/// A network configuration.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub name: String,
    /// `port`: how workloads of this network are plugged in.
    pub port: PortKind,
    /// `mtu` in bytes; the agent's where absent.
    pub mtu: Option<u32>,
    /// `queues`: queue pairs of a tap.
    pub queues: Option<u16>,
    /// `owner`: the user that may open the tap besides the administrator; root where absent.
    pub owner: Option<u32>,
    /// `group`: the group whose members may open the tap.
    pub group: Option<u32>,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `stateDir`.
    pub state_dir: PathBuf,
    /// `pendingDir`.
    pub pending_dir: PathBuf,
    /// `logFile`; stderr where absent.
    pub log_file: Option<PathBuf>,
    /// `logLevel`.
    pub log_level: LevelFilter,
    /// `dns`: overrides the agent's settings in the result.
    pub dns: Option<Dns>,
    /// `prevResult`.
    pub prev_result: Option<Value>,
    /// Static addresses: the `ips` capability, or `args.cni.ips`.
    pub addresses: Vec<IpAddr>,
    /// The `mac` capability.
    pub mac: Option<Mac>,
    /// The `portMappings` capability.
    pub host_ports: Vec<HostPort>,
    /// The `CNIDeviceInfoFile` capability.
    pub device_info_file: Option<PathBuf>,
    /// `cni.dev/valid-attachments`, of GC.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

impl NetworkConfig {
    /// Reads a configuration; every field must be right.
    ///
    /// # Errors
    /// All problems in one error, each named by its field.
    pub fn strict(stdin: &[u8]) -> Result<Self, CniError> {
        let (config, problems) = Self::lenient(stdin)?;
        CniError::joined(problems).map_or(Ok(config), Err)
    }

    /// Reads a configuration and tells the problems of its fields, which have their default then.
    ///
    /// # Errors
    /// Only where it is not JSON or has no usable `name`: without one nothing can be found.
    pub(crate) fn lenient(stdin: &[u8]) -> Result<(Self, Vec<CniError>), CniError> {
        let mut fields = Fields::new(object(stdin)?);
        fields.refuse_unknown(|key| KNOWN_KEYS.contains(&key));
        let name = network_name(&mut fields)?;
        let version: Option<String> = fields.parsed("cniVersion", "a string such as \"1.1.0\"");
        let version =
            version.as_deref().unwrap_or("0.1.0").parse().unwrap_or_else(|unsupported: UnsupportedVersion| {
                fields.problems.insert(0, unsupported.into());
                SpecVersion::LATEST
            });
        let port = fields.parsed("port", "\"veth\", \"tap\" or \"vhost-user\"").unwrap_or_default();
        let config = Self {
            version,
            name,
            port,
            mtu: fields.number("mtu", MTU_RANGE),
            queues: fields.number("queues", QUEUE_RANGE),
            owner: fields.number("owner", 0..=u32::MAX - 1),
            group: fields.number("group", 0..=u32::MAX - 1),
            agent_socket: fields.path("agentSocket").unwrap_or_else(|| DEFAULT_SOCKET.into()),
            state_dir: fields.path("stateDir").unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            pending_dir: fields.path("pendingDir").unwrap_or_else(|| DEFAULT_PENDING_DIR.into()),
            log_file: fields.path("logFile"),
            log_level: log_level(&mut fields),
            dns: fields.parsed("dns", "an object with nameservers, domain, search and options"),
            prev_result: fields.parsed::<Map<String, Value>>("prevResult", "a CNI result").map(Value::Object),
            addresses: addresses(&mut fields),
            mac: mac(&mut fields),
            host_ports: host_ports::read(&mut fields),
            device_info_file: device_info_file(&mut fields),
            valid_attachments: valid_attachments(&mut fields),
        };
        capabilities::check(&mut fields, port);
        config.refuse_contradictions(&mut fields.problems);
        Ok((config, fields.problems))
    }

    fn refuse_contradictions(&self, problems: &mut Vec<CniError>) {
        if self.port != PortKind::Veth {
            return;
        }
        let given =
            [("queues", self.queues.is_some()), ("owner", self.owner.is_some()), ("group", self.group.is_some())];
        for (field, _) in given.into_iter().filter(|(_, given)| *given) {
            problems.push(CniError::config(format!(
                "field '{field}' is for a tap and contradicts port 'veth'; remove it, or set \"port\": \"tap\""
            )));
        }
    }
}

/// The version for an error about `stdin`, which may be of any shape.
pub(crate) fn asked_version(stdin: &[u8]) -> SpecVersion {
    let object = object(stdin).unwrap_or_default();
    let asked = object.get("cniVersion").and_then(Value::as_str).and_then(|text| text.parse().ok());
    asked.unwrap_or(SpecVersion::LATEST)
}

fn object(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(Code::Decode, format!("the network configuration on stdin is not a JSON object: {error}"))
    })
}

fn network_name(fields: &mut Fields) -> Result<String, CniError> {
    let name: String = fields
        .parsed("name", "a string")
        .ok_or_else(|| CniError::config("field 'name' is missing; give the network a name"))?;
    if is_identifier(&name) {
        return Ok(name);
    }
    Err(CniError::config(format!(
        "field 'name' is '{name}'; it must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'"
    )))
}

fn log_level(fields: &mut Fields) -> LevelFilter {
    let Some(text) = fields.parsed::<String>(LOG_LEVEL, "a string") else { return LevelFilter::WARN };
    text.parse().unwrap_or_else(|_| {
        fields.wrong(LOG_LEVEL, &text.into(), "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"");
        LevelFilter::WARN
    })
}

/// Every source of static addresses must say the same.
fn addresses(fields: &mut Fields) -> Vec<IpAddr> {
    let by_capability = address_list(fields, "/runtimeConfig/ips", "runtimeConfig.ips");
    let by_args = address_list(fields, "/args/cni/ips", "args.cni.ips");
    if let (Some(one), Some(other)) = (&by_capability, &by_args)
        && one != other
    {
        fields.problems.push(CniError::config(
            "fields 'runtimeConfig.ips' and 'args.cni.ips' ask for different addresses; keep one of them",
        ));
    }
    by_capability.or(by_args).unwrap_or_default()
}

fn address_list(fields: &mut Fields, pointer: &str, field: &str) -> Option<Vec<IpAddr>> {
    let texts: Vec<String> = fields.nested(pointer, field, "a list of addresses")?;
    let mut addresses = Vec::new();
    for text in texts {
        match parse_address(&text) {
            Ok(address) => addresses.push(address),
            Err(why) => fields.problems.push(CniError::config(format!("field '{field}': {why}"))),
        }
    }
    Some(addresses)
}

fn mac(fields: &mut Fields) -> Option<Mac> {
    fields.nested("/runtimeConfig/mac", "runtimeConfig.mac", "an ethernet address such as \"02:00:00:00:00:01\"")
}

fn device_info_file(fields: &mut Fields) -> Option<PathBuf> {
    let field = "runtimeConfig.CNIDeviceInfoFile";
    let file: PathBuf = fields.nested("/runtimeConfig/CNIDeviceInfoFile", field, "the path of a file")?;
    match device_info::check_path(&file) {
        Ok(()) => Some(file),
        Err(expected) => {
            fields.wrong(field, &file.to_string_lossy().into(), expected);
            None
        }
    }
}

/// Null is an empty list: so Go writes one that nothing was put into.
fn valid_attachments(fields: &mut Fields) -> Option<Vec<ValidAttachment>> {
    let expected = "a list of objects with containerID and ifname";
    if !fields.has(VALID_ATTACHMENTS) {
        return None;
    }
    let entries: Vec<Map<String, Value>> = fields.parsed(VALID_ATTACHMENTS, expected).unwrap_or_default();
    let mut attachments = Vec::new();
    for entry in entries {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        match (text("containerID"), text("ifname")) {
            (Some(container_id), Some(ifname)) => attachments.push(ValidAttachment { container_id, ifname }),
            _ => fields.wrong(VALID_ATTACHMENTS, &Value::Object(entry), expected),
        }
    }
    Some(attachments)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weft_api::PortKind;

    use super::NetworkConfig;
    use crate::error::{CniError, Code};

    fn strict(more: Value) -> Result<NetworkConfig, CniError> {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni" });
        let more = more.as_object().cloned().unwrap_or_default();
        config.as_object_mut().unwrap().extend(more);
        NetworkConfig::strict(&serde_json::to_vec(&config).unwrap())
    }

    #[test]
    fn a_minimal_configuration_has_defaults() {
        let config = strict(json!({})).unwrap();
        assert_eq!(config.port, PortKind::Veth);
        assert_eq!(config.agent_socket.to_str(), Some("/run/weft/agent.sock"));
        assert_eq!(config.pending_dir.to_str(), Some("/var/lib/weft/pending-del"));
    }

    #[test]
    fn a_full_configuration_is_read() {
        let config = strict(json!({
            "port": "tap", "mtu": 9000, "queues": 4, "owner": 107, "group": 107, "agentSocket": "/a", "stateDir": "/s",
            "pendingDir": "/p", "logFile": "/l", "logLevel": "debug", "dns": {"nameservers": ["10.0.0.10"]},
            "capabilities": {"ips": true, "mac": true, "portMappings": true, "bandwidth": false},
            "runtimeConfig": {"ips": ["10.1.0.9/24", "2001:db8::9"], "mac": "02:00:00:00:00:09"},
            "args": {"cni": {"ips": ["10.1.0.9", "2001:db8::9"]}}, "disableCheck": true, "disableGC": false,
            "cniVersions": ["1.0.0", "1.1.0"], "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "e"}],
        }))
        .unwrap();
        assert_eq!((config.port, config.mtu, config.queues), (PortKind::Tap, Some(9000), Some(4)));
        assert_eq!(config.addresses.len(), 2);
        assert_eq!(config.mac.unwrap().to_string(), "02:00:00:00:00:09");
        assert_eq!(config.valid_attachments.unwrap()[0].container_id, "c");
    }

    #[test]
    fn wrong_fields_are_refused_by_name() {
        for (more, part) in [
            (json!({"prot": "tap"}), "unknown field 'prot'"),
            (json!({"ipMasq": true}), "unknown field 'ipMasq'"),
            (json!({"port": "bridge"}), "field 'port'"),
            (json!({"mtu": "1500"}), "field 'mtu'"),
            (json!({"mtu": 500}), "576 to 65521"),
            (json!({"port": "tap", "queues": 0}), "field 'queues'"),
            (json!({"port": "tap", "queues": 257}), "field 'queues'"),
            (json!({"queues": 2}), "'queues' is for a tap and contradicts port 'veth'"),
            (json!({"owner": 107}), "'owner' is for a tap"),
            (json!({"agentSocket": "run/sock"}), "field 'agentSocket'"),
            (json!({"logLevel": "loud"}), "field 'logLevel'"),
            (json!({"dns": 7}), "field 'dns'"),
            (json!({"name": "a/b"}), "field 'name' is 'a/b'"),
            (json!({"capabilities": {"bandwidth": true}}), "capabilities.bandwidth"),
            (json!({"capabilities": {"infinibandGUID": true}}), "capabilities.infinibandGUID"),
            (json!({"deviceID": 7}), "field 'deviceID'"),
            (json!({"pciBusId": "0000:05:00.1"}), "unknown field 'pciBusId'"),
            (json!({"runtimeConfig": {"deviceID": ["a"]}}), "field 'runtimeConfig.deviceID'"),
            (json!({"runtimeConfig": {"ips": ["x"]}}), "field 'runtimeConfig.ips': 'x'"),
            (json!({"runtimeConfig": {"mac": "x"}}), "field 'runtimeConfig.mac'"),
            (json!({"port": "tap", "capabilities": {"CNIDeviceInfoFile": true}}), "contradicts port 'tap'"),
            (json!({"runtimeConfig": {"CNIDeviceInfoFile": "/f"}}), "contradicts port 'veth'"),
            (
                json!({"port": "vhost-user", "runtimeConfig": {"CNIDeviceInfoFile": "f"}}),
                "is \"f\"; set it to the absolute",
            ),
            (
                json!({"port": "vhost-user", "runtimeConfig": {"CNIDeviceInfoFile": 7}}),
                "runtimeConfig.CNIDeviceInfoFile",
            ),
            (json!({"runtimeConfig": {"ips": ["10.0.0.1"]}, "args": {"cni": {"ips": ["10.0.0.2"]}}}), "args.cni.ips"),
        ] {
            let error = strict(more).unwrap_err();
            assert_eq!(error.code, Code::Config, "{error}");
            assert!(error.msg.contains(part), "{part}: {error}");
        }
    }

    /// With a device plugin's resource, a MAC, addresses, and arguments that are for somebody else.
    #[test]
    fn what_multus_adds_is_understood() {
        let file = "/var/run/k8s.cni.cncf.io/devinfo/cni/default/guests-c1_net1";
        let config = strict(json!({
            "port": "vhost-user", "deviceID": "vhost-3", "pciBusID": "vhost-3",
            "capabilities": {"CNIDeviceInfoFile": true, "deviceID": true, "ips": true, "mac": true},
            "runtimeConfig": {"CNIDeviceInfoFile": file, "deviceID": "vhost-3", "ips": ["10.1.0.9/24"],
                "mac": "02:00:00:00:00:09"},
            "args": {"cni": {"ips": ["10.1.0.9/24"], "labels": [{"key": "a", "value": "b"}], "anything": {"else": 1}}},
        }))
        .unwrap();
        assert_eq!(config.device_info_file.unwrap().to_str(), Some(file));
        assert_eq!(config.addresses, ["10.1.0.9".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(config.mac.unwrap().to_string(), "02:00:00:00:00:09");
        let veth = strict(json!({"deviceID": "0000:05:00.1", "pciBusID": "0000:05:00.1"})).unwrap();
        assert_eq!(veth.port, PortKind::Veth);
    }

    #[test]
    fn all_problems_stand_in_one_error() {
        let error = strict(json!({"foo": 1, "mtu": 1})).unwrap_err();
        assert!(error.msg.contains("'foo'") && error.msg.contains("'mtu'"), "{error}");
    }

    #[test]
    fn other_classes_of_problems_have_their_code() {
        let code = |stdin: &str| NetworkConfig::strict(stdin.as_bytes()).unwrap_err().code;
        assert_eq!(code("{"), Code::Decode);
        assert_eq!(code("[]"), Code::Decode);
        assert_eq!(code(r#"{"cniVersion": "1.1.0"}"#), Code::Config);
        assert_eq!(code(r#"{"name": "n"}"#), Code::IncompatibleVersion);
        assert_eq!(code(r#"{"name": "n", "cniVersion": "2.0.0"}"#), Code::IncompatibleVersion);
        let bandwidth = strict(json!({"runtimeConfig": {"bandwidth": {}}})).unwrap_err();
        assert_eq!(bandwidth.code, Code::UnsupportedField);
    }

    #[test]
    fn a_lenient_reader_goes_on_with_what_is_right() {
        let stdin = br#"{"name": "n", "foo": 1, "mtu": "x", "pendingDir": "/p"}"#;
        let (config, problems) = NetworkConfig::lenient(stdin).unwrap();
        assert_eq!(config.pending_dir.to_str(), Some("/p"));
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
