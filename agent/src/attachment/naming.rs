// SPDX-License-Identifier: Apache-2.0
//! Names and Ethernet addresses that follow from an attachment's id.

use weft_abi::GATEWAY_MAC;
use weft_api::{ApiError, AttachmentId, ErrorCode, Mac};

/// FNV-1a with a final mix: spreads well, and is the same in every version.
fn hash(id: &AttachmentId, round: u32) -> u64 {
    let text = format!("{id}#{round}");
    let fnv = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// The first name for the host's end that `is_taken` does not know: `weft` and 10 hexadecimal digits (IFNAMSIZ allows 15).
pub(super) fn host_ifname(id: &AttachmentId, is_taken: impl Fn(&str) -> bool) -> String {
    let mut round = 0;
    loop {
        let name = format!("weft{:010x}", hash(id, round) & 0xff_ffff_ffff);
        if !is_taken(&name) {
            return name;
        }
        round += 1;
    }
}

/// Whether a link of this name is the host's end of a port.
pub(crate) fn is_host_ifname(name: &str) -> bool {
    name.strip_prefix("weft")
        .is_some_and(|digits| digits.len() == 10 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// A locally administered unicast address, in another block than the gateway's.
pub(super) fn mac(id: &AttachmentId) -> Mac {
    let [_, _, _, a, b, c, d, e] = hash(id, 0).to_be_bytes();
    Mac([0x0a, a, b, c, d, e])
}

/// Refuses an Ethernet address that no workload can have.
pub(super) fn check_mac(mac: Mac) -> Result<(), ApiError> {
    let why = match mac.0 {
        [first, ..] if first & 1 == 1 => "is a group address; clear the lowest bit of its first byte",
        [0, 0, 0, 0, 0, 0] => "is empty; leave it out to be given one",
        bytes if bytes[..5] == GATEWAY_MAC[..5] => "belongs to weft's gateways; choose another",
        _ => return Ok(()),
    };
    Err(ApiError { code: ErrorCode::Invalid, message: format!("ethernet address {mac} {why}") })
}

/// Refuses an id that could not be one: CNI spec 1.1.0, "Parameters" and "Network configuration format".
pub(super) fn check_id(id: &AttachmentId) -> Result<(), ApiError> {
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= 100
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
    };
    let ifname = |text: &str| {
        (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.contains(['/', ':', '%'])
            && text.chars().all(|c| c.is_ascii_graphic())
    };
    let parts = [
        ("network", &id.network, word(&id.network)),
        ("container_id", &id.container_id, word(&id.container_id)),
        ("ifname", &id.ifname, ifname(&id.ifname)),
    ];
    match parts.into_iter().find(|(_, _, valid)| !valid) {
        None => Ok(()),
        Some((field, text, _)) => Err(ApiError {
            code: ErrorCode::Invalid,
            message: format!(
                "{field} '{text}' of the attachment is not valid; see the parameters of the cni specification"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use weft_api::{AttachmentId, Mac};

    use super::{check_id, check_mac, host_ifname, mac};

    fn id(container_id: &str) -> AttachmentId {
        AttachmentId { network: "weft".into(), container_id: container_id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn names_fit_and_differ() {
        let first = host_ifname(&id("a"), |_| false);
        assert_eq!(first.len(), 14);
        assert_ne!(first, host_ifname(&id("b"), |_| false));
        assert_ne!(first, host_ifname(&id("a"), |name| name == first));
    }

    #[test]
    fn made_addresses_are_allowed_ones() {
        check_mac(mac(&id("a"))).unwrap();
        assert_eq!(mac(&id("a")).0[0] & 3, 2);
        for refused in [Mac([1, 0, 0, 0, 0, 0]), Mac([0; 6]), Mac(weft_abi::GATEWAY_MAC)] {
            check_mac(refused).unwrap_err();
        }
    }

    #[test]
    fn ids_that_would_leave_the_folder_are_refused() {
        check_id(&id("0a1b.c-d_e")).unwrap();
        for text in ["", "../x", "a/b", "-a", "a b"] {
            assert!(check_id(&id(text)).unwrap_err().message.contains(&format!("'{text}'")));
        }
    }
}
