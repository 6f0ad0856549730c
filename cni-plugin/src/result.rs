// SPDX-License-Identifier: Apache-2.0
//! The success object of ADD in all supported formats: CNI spec 1.1.0, "ADD Success", and its older versions.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{error::CniError, version::SpecVersion};

/// What ADD made; also `prevResult`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct CniResult {
    /// Interfaces of the host and of the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Address>,
    /// Routes of the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ResultRoute>,
    /// Name service settings.
    #[serde(default)]
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The sandbox it is in; absent on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The vhost-user socket behind it (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI address (1.1.0), of a previous plugin's interface.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

impl Interface {
    /// Is it in a sandbox? Other plugins write an empty `sandbox` for the host.
    pub(crate) fn sandboxed(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
    }
}

/// An address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Address {
    /// The address and its prefix length.
    pub address: IpNet,
    /// The default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into [`CniResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ResultRoute {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; absent for an on-link route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised MSS (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0); main where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (1.1.0), as rtnetlink numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name service settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Dns {
    /// Servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a `prevResult` of any supported version.
    ///
    /// # Errors
    /// A field that is not of the shape that the spec gives it.
    pub fn parse(value: &Value) -> Result<Self, CniError> {
        let result: Self = serde_json::from_value(value.clone())
            .map_err(|error| CniError::config(format!("field 'prevResult' is not a CNI result: {error}")))?;
        let count = result.interfaces.len();
        match result.ips.iter().find(|ip| ip.interface.is_some_and(|index| index >= count)) {
            Some(ip) => Err(CniError::config(format!(
                "field 'prevResult.ips': {} is of interface {}, and there are {count} interfaces",
                ip.address,
                ip.interface.unwrap_or_default()
            ))),
            None => Ok(result),
        }
    }

    /// Appends what this plugin made to what earlier plugins of the chain made.
    pub fn after(self, mut previous: Self) -> Self {
        let offset = previous.interfaces.len();
        previous.interfaces.extend(self.interfaces);
        previous.ips.extend(
            self.ips.into_iter().map(|ip| Address { interface: ip.interface.map(|index| index + offset), ..ip }),
        );
        previous.routes.extend(self.routes);
        if !self.dns.nameservers.is_empty() {
            previous.dns = self.dns;
        }
        previous
    }

    /// The result in `version`'s format.
    ///
    /// # Errors
    /// Never in practice: all keys are strings.
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, serde_json::Error> {
        let mut object = serde_json::to_value(self)?;
        object["cniVersion"] = version.as_str().into();
        if version < SpecVersion::V1_1_0 {
            for_each(&mut object, "interfaces", |interface| {
                remove(interface, &["mtu", "socketPath", "pciID"]);
            });
            for_each(&mut object, "routes", |route| {
                remove(route, &["mtu", "advmss", "priority", "table", "scope"]);
            });
        }
        if version < SpecVersion::V1_0_0 {
            for_each(&mut object, "ips", |ip| {
                let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
                ip.insert("version".to_owned(), if v6 { "6" } else { "4" }.into());
            });
        }
        Ok(object)
    }
}

fn for_each(object: &mut Value, list: &str, change: impl Fn(&mut Map<String, Value>)) {
    let entries = object.get_mut(list).and_then(Value::as_array_mut);
    entries.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
}

fn remove(object: &mut Map<String, Value>, keys: &[&str]) {
    for key in keys {
        object.remove(*key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::CniResult;
    use crate::version::SpecVersion;

    fn result() -> CniResult {
        CniResult::parse(&json!({
            "interfaces": [{"name": "h", "mtu": 1500}, {"name": "eth0", "sandbox": "/n", "socketPath": "/s"}],
            "ips": [{"address": "10.0.0.2/32", "gateway": "10.0.0.1", "interface": 1},
                    {"address": "2001:db8::2/128", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "table": 7, "scope": 253}],
        }))
        .unwrap()
    }

    #[test]
    fn old_formats_have_the_family_and_no_new_fields() {
        let json = result().to_json(SpecVersion::V0_3_1).unwrap();
        assert_eq!(json["cniVersion"], "0.3.1");
        assert_eq!(json["ips"][0]["version"], "4");
        assert_eq!(json["ips"][1]["version"], "6");
        assert!(json["interfaces"][0].get("mtu").is_none() && json["interfaces"][1].get("socketPath").is_none());
        assert!(json["routes"][0].get("table").is_none());
    }

    #[test]
    fn new_formats_have_new_fields_and_no_family() {
        let json = result().to_json(SpecVersion::V1_1_0).unwrap();
        assert_eq!(json["interfaces"][0]["mtu"], 1500);
        assert_eq!(json["interfaces"][1]["socketPath"], "/s");
        assert_eq!(json["routes"][0]["table"], 7);
        assert!(json["ips"][0].get("version").is_none());
        assert!(result().to_json(SpecVersion::V1_0_0).unwrap()["interfaces"][0].get("mtu").is_none());
    }

    #[test]
    fn a_chain_keeps_the_earlier_plugins_interfaces() {
        let json = result().after(result()).to_json(SpecVersion::V1_1_0).unwrap();
        assert_eq!(json["interfaces"].as_array().unwrap().len(), 4);
        assert_eq!(json["ips"][2]["interface"], 3);
    }

    #[test]
    fn an_index_past_the_interfaces_is_refused() {
        let error = CniResult::parse(&json!({"ips": [{"address": "10.0.0.2/32", "interface": 0}]})).unwrap_err();
        assert!(error.msg.contains("10.0.0.2/32"), "{error}");
    }
}
