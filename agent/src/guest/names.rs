// SPDX-License-Identifier: Apache-2.0
//! Domain names on the wire.

/// RFC 1035, section 2.3.4.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;

/// A domain name in the form of RFC 1035, section 3.1, uncompressed; nothing for a text that is no host or domain name.
pub(super) fn wire(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        let fits = !label.is_empty() && label.len() <= MAX_LABEL;
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !fits || !plain {
            return None;
        }
        bytes.push(u8::try_from(label.len()).ok()?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MAX_NAME).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::wire;

    #[test]
    fn names_are_labels_with_their_lengths() {
        assert_eq!(wire("cluster.local").unwrap(), b"\x07cluster\x05local\x00");
        assert_eq!(wire("cluster.local."), wire("cluster.local"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", ".", "a..b", "a b", "é", "x\0", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(wire(text), None, "{text:?}");
        }
    }
}
