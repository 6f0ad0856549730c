// SPDX-License-Identifier: Apache-2.0
//! `runtimeConfig.portMappings`: ports of the host that lead to the workload.
//!
//! Source: CNI conventions, "Well-known Capabilities", port mappings.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use serde_json::{Map, Value};
use weft_api::{HostPort, HostPortProtocol};

use super::{capabilities::PORT_MAPPINGS, fields::Fields};
use crate::error::CniError;

const POINTER: &str = "/runtimeConfig/portMappings";

/// Reads them. An entry whose `hostPort` is 0 is a port that the workload merely tells of: the host has none for it.
pub(super) fn read(fields: &mut Fields) -> Vec<HostPort> {
    let list = format!("runtimeConfig.{PORT_MAPPINGS}");
    let expected = "a list of objects with hostPort and containerPort";
    let objects: Vec<Map<String, Value>> = fields.nested(POINTER, &list, expected).unwrap_or_default();
    let (mut ports, mut taken) = (Vec::new(), BTreeSet::new());
    for (index, object) in objects.iter().enumerate() {
        let name = format!("{list}[{index}]");
        let Some(port) = (Entry { fields: &mut *fields, name: &name, object }).read() else { continue };
        if taken.insert((port.address, port.port, port.protocol)) {
            ports.push(port);
        } else {
            let msg =
                format!("field '{name}' asks for the host's port {port}, and so does one before; remove one of them");
            fields.problems.push(CniError::config(msg));
        }
    }
    ports
}

/// One entry under way. Keys that are not known are somebody else's.
struct Entry<'a> {
    fields: &'a mut Fields,
    /// What people know it as.
    name: &'a str,
    object: &'a Map<String, Value>,
}

impl Entry<'_> {
    /// None where the host has no port for it, or where it is wrong: every wrong field is noted then.
    fn read(&mut self) -> Option<HostPort> {
        let port = self.number("hostPort", 0..=u16::MAX);
        if port == Some(0) {
            return None;
        }
        let target = self.number("containerPort", 1..=u16::MAX);
        let (protocol, address) = (self.protocol(), self.address());
        Some(HostPort { address: address?, port: port?, target: target?, protocol: protocol? })
    }

    /// The value of `key` in whatever case, as Go reads it: containerd writes `HostPort`, CRI-O `hostPort`.
    /// Source: containerd's go-cni, `PortMapping` of `types.go`, which names no keys.
    fn value(&self, key: &str) -> Option<Value> {
        let exact = self.object.get(key);
        let any = || self.object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        exact.or_else(any).filter(|value| !value.is_null()).cloned()
    }

    fn number(&mut self, key: &str, range: RangeInclusive<u16>) -> Option<u16> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let Some(value) = self.value(key) else {
            let msg = format!("field '{}.{key}' is missing; set it to {expected}", self.name);
            self.fields.problems.push(CniError::config(msg));
            return None;
        };
        let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(key, &value, &expected);
        }
        number
    }

    fn protocol(&mut self) -> Option<HostPortProtocol> {
        let Some(value) = self.value("protocol") else { return Some(HostPortProtocol::Tcp) };
        let protocol = match value.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("" | "tcp") => Some(HostPortProtocol::Tcp),
            Some("udp") => Some(HostPortProtocol::Udp),
            Some("sctp") => Some(HostPortProtocol::Sctp),
            _ => None,
        };
        if protocol.is_none() {
            self.wrong("protocol", &value, "\"tcp\", \"udp\" or \"sctp\"");
        }
        protocol
    }

    /// The host's address, `Some(None)` for all of them; the unspecified address of a family means all of that family.
    fn address(&mut self) -> Option<Option<IpAddr>> {
        let Some(value) = self.value("hostIP").filter(|value| value != "") else { return Some(None) };
        let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        if address.is_none() {
            self.wrong(
                "hostIP",
                &value,
                "an address of the host such as 192.0.2.7 or 2001:db8::7, or remove it for all",
            );
        }
        address.map(|address| Some(address.to_canonical()))
    }

    fn wrong(&mut self, key: &str, value: &Value, expected: &str) {
        self.fields.wrong(&format!("{}.{key}", self.name), value, expected);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weft_api::HostPort;

    use crate::{
        config::NetworkConfig,
        error::{CniError, Code},
    };

    fn read(mappings: Value) -> Result<Vec<HostPort>, CniError> {
        let config = json!({
            "cniVersion": "1.1.0", "name": "weft", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": mappings},
        });
        NetworkConfig::strict(config.to_string().as_bytes()).map(|config| config.host_ports)
    }

    fn told(mappings: Value) -> Vec<String> {
        read(mappings).unwrap().iter().map(|port| format!("{port} {}", port.target)).collect()
    }

    #[test]
    fn ports_are_read_with_address_and_protocol() {
        let ports = told(json!([
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.7", "name": "dns"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "2001:db8::7"},
            {"hostPort": 7, "containerPort": 7, "protocol": "sctp", "hostIP": null},
            {"hostPort": 0, "containerPort": 99999},
            {"hostPort": 7, "containerPort": 65535, "protocol": "", "hostIP": "::ffff:127.0.0.1"},
        ]));
        let expected =
            ["8080/TCP 80", "192.0.2.7:53/UDP 5353", "[2001:db8::7]:53/UDP 5353", "7/SCTP 7", "127.0.0.1:7/TCP 65535"];
        assert_eq!(ports, expected);
    }

    #[test]
    fn all_addresses_are_those_of_a_family_or_of_both() {
        let of = |address: &str| told(json!([{"hostPort": 80, "containerPort": 80, "hostIP": address}]));
        assert_eq!(of(""), ["80/TCP 80"]);
        assert_eq!(of("0.0.0.0"), ["0.0.0.0:80/TCP 80"]);
        assert_eq!(of("::"), ["[::]:80/TCP 80"]);
    }

    #[test]
    fn keys_are_read_in_the_case_that_containerd_gives_them() {
        let mapping = json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "192.0.2.7"});
        assert_eq!(told(json!([mapping])), ["192.0.2.7:8080/UDP 80"]);
    }

    #[test]
    fn no_ports_are_none() {
        assert_eq!((told(json!([])).len(), told(Value::Null).len()), (0, 0));
    }

    #[test]
    fn wrong_ports_are_refused_by_name() {
        let good = || json!({"hostPort": 80, "containerPort": 80});
        for (key, value, part) in [
            ("hostPort", json!(65536), "hostPort' is 65536; set it to a number from 0"),
            ("hostPort", json!(-1), "hostPort' is -1"),
            ("hostPort", Value::Null, "hostPort' is missing"),
            ("containerPort", json!(0), "containerPort' is 0; set it to a number from 1 to 65535"),
            ("containerPort", json!(65536), "containerPort' is 65536"),
            ("containerPort", json!("80"), "containerPort' is \"80\""),
            ("protocol", json!("icmp"), "protocol' is \"icmp\"; set it to \"tcp\""),
            ("protocol", json!(6), "protocol' is 6"),
            ("hostIP", json!("10.0.0.300"), "hostIP' is \"10.0.0.300\"; set it to an address"),
            ("hostIP", json!("10.0.0.0/8"), "hostIP' is \"10.0.0.0/8\""),
        ] {
            let mut wrong = good();
            wrong[key] = value;
            let error = read(json!([{"hostPort": 0}, wrong])).unwrap_err();
            assert_eq!(error.code, Code::Config, "{error}");
            assert!(error.msg.contains(&format!("field 'runtimeConfig.portMappings[1].{part}")), "{part}: {error}");
        }
        for wrong in [json!({}), json!([7]), json!("80")] {
            let error = read(wrong).unwrap_err();
            assert!(error.msg.contains("field 'runtimeConfig.portMappings' is"), "{error}");
        }
    }

    #[test]
    fn a_port_twice_is_refused() {
        let error = read(json!([
            {"hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.7"},
            {"hostPort": 80, "containerPort": 81, "hostIP": "192.0.2.7", "protocol": "UDP"},
            {"hostPort": 80, "containerPort": 81, "hostIP": "192.0.2.7", "protocol": "TCP"},
        ]))
        .unwrap_err();
        let expected =
            "field 'runtimeConfig.portMappings[2]' asks for the host's port 192.0.2.7:80/TCP, and so does one before";
        assert!(error.code == Code::Config && error.msg.contains(expected), "{error}");
        assert!(!error.msg.contains("[1]"), "{error}");
    }
}
