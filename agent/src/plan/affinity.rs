// SPDX-License-Identifier: Apache-2.0
//! `sessionAffinity` of Services.

use weft_abi::ticks;

use crate::model::{DesiredAffinity, HashKey, ObjectKey, objects::ServiceSpec};

/// `timeoutSeconds` where a Service has none, and what it may be, as the API has it.
const DEFAULT_SECONDS: u32 = 10_800;
const SECONDS: std::ops::RangeInclusive<u32> = 1..=86_400;

/// Of the hash of names: no secret, since the programs of one layout go by what those of another one remember, and every agent has to
/// come to the same. Who makes the names of two Services meet has clients of both choose anew.
const NAMING: HashKey = HashKey([0; 2]);

/// For how many seconds clients keep their backend, none: they do not; and what is wrong with what the Service says.
pub(super) fn seconds_of(spec: &ServiceSpec) -> (Option<u32>, Option<String>) {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return (None, None),
        Some("ClientIP") => {}
        Some(other) => {
            let why = format!("spec.sessionAffinity: '{other}' is neither None nor ClientIP; clients keep no backend");
            return (None, Some(why));
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(asked) = client_ip.and_then(|config| config.timeout_seconds) else { return (Some(DEFAULT_SECONDS), None) };
    match u32::try_from(asked).ok().filter(|seconds| SECONDS.contains(seconds)) {
        Some(seconds) => (Some(seconds), None),
        None => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            let (least, most) = SECONDS.into_inner();
            let why = format!("{field}: {asked} is not between {least} and {most}; {DEFAULT_SECONDS} is used");
            (Some(DEFAULT_SECONDS), Some(why))
        }
    }
}

/// What the maps have of one port and family of a Service. As kube-proxy has it, ports keep their clients each for itself.
pub(super) fn of_port(
    seconds: Option<u32>,
    service: &ObjectKey,
    (port, protocol): (&str, &str),
    ipv4: bool,
) -> DesiredAffinity {
    let Some(seconds) = seconds else { return DesiredAffinity::default() };
    let name = [&*service.namespace, &*service.name, port, protocol].into_iter();
    let name = name.fold(NAMING.of("service port"), |hash, text| hash.text(text)).number(ipv4.into()).finish();
    DesiredAffinity { ticks: ticks(seconds), name }
}
