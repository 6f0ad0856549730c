// SPDX-License-Identifier: Apache-2.0
//! What runtimes hand over below `runtimeConfig`, and what Multus adds beside it.
//!
//! Sources: CNI conventions, "Well-known Capabilities"; Device Information Specification 1.1.0, section 5.1.

use serde_json::{Map, Value};
use weft_api::PortKind;

use super::fields::Fields;
use crate::error::{CniError, Code};

/// Which of a device plugin's devices the pod got. Multus adds it, and [`PCI_BUS_ID`] with the same value, at the top level where
/// the network attachment definition names a resource, and hands it over where the capability is declared. Weft makes its devices
/// itself: it has no use for it.
pub(super) const DEVICE_ID: &str = "deviceID";
/// See [`DEVICE_ID`].
pub(super) const PCI_BUS_ID: &str = "pciBusID";
const DEVICE_INFO_FILE: &str = "CNIDeviceInfoFile";
/// Ports of the host: by this, `hostPort` of a pod's container arrives.
pub(super) const PORT_MAPPINGS: &str = "portMappings";
/// Capabilities that Weft serves, or that ask nothing of it.
const CAPABILITIES: [&str; 5] = ["ips", "mac", PORT_MAPPINGS, DEVICE_INFO_FILE, DEVICE_ID];

/// Refuses what is not served. A capability that is declared and not served would be lost silently: a pod whose bandwidth has no
/// limit.
pub(super) fn check(fields: &mut Fields, port: PortKind) {
    check_device(fields);
    let served = format!("weft serves {}", CAPABILITIES.join(", "));
    let declared: Map<String, Value> = fields.parsed("capabilities", "an object").unwrap_or_default();
    for (key, _) in declared.iter().filter(|(key, on)| *on == &Value::Bool(true) && !CAPABILITIES.contains(&&***key)) {
        fields.problems.push(CniError::config(format!("field 'capabilities.{key}': {served}; remove it")));
    }
    let given: Map<String, Value> = fields.parsed("runtimeConfig", "an object").unwrap_or_default();
    let described = declared.get(DEVICE_INFO_FILE) == Some(&Value::Bool(true)) || given.contains_key(DEVICE_INFO_FILE);
    if described && port != PortKind::VhostUser {
        fields.problems.push(CniError::config(format!(
            "field 'capabilities.{DEVICE_INFO_FILE}' is for a vhost-user socket and contradicts port '{port}'; remove it, or set \
             \"port\": \"vhost-user\""
        )));
    }
    for (key, _) in given.iter().filter(|(key, _)| !CAPABILITIES.contains(&&***key)) {
        let msg = format!("field 'runtimeConfig.{key}': {served}; remove the capability from the configuration");
        fields.problems.push(CniError::new(Code::UnsupportedField, msg));
    }
}

/// Not used, but what is no identifier is somebody's mistake.
fn check_device(fields: &mut Fields) {
    for field in [DEVICE_ID, PCI_BUS_ID] {
        drop(fields.parsed::<String>(field, "a string"));
    }
    drop(fields.nested::<String>("/runtimeConfig/deviceID", "runtimeConfig.deviceID", "a string"));
}
