// SPDX-License-Identifier: Apache-2.0
//! The few kernel settings that netlink does not carry. Written only where they differ, so that a container with a read-only
//! `/proc/sys` serves as long as the node's defaults do.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{Error, Result};

const ROOT: &str = "/proc/sys/net";

/// `net.ipv6.conf.<link>.disable_ipv6` = 0.
pub(super) fn enable_ipv6(link: &str) -> Result<()> {
    set_disable_ipv6(link, "0")
}

/// `net.ipv6.conf.<link>.disable_ipv6` = 1.
pub(super) fn disable_ipv6(link: &str) -> Result<()> {
    set_disable_ipv6(link, "1")
}

/// `net.ipv4.conf.<link>.forwarding` and, where the link has IPv6, `net.ipv6.conf.<link>.forwarding` = 1.
pub(super) fn enable_forwarding(link: &str) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        let path = Path::new(ROOT).join(family).join("conf").join(link).join("forwarding");
        if family == "ipv6" && !path.exists() || read(&path)? == "1" {
            continue;
        }
        fs::write(&path, "1").map_err(|source| Error::Sysctl { action: "write", path, source })?;
    }
    Ok(())
}

fn set_disable_ipv6(link: &str, value: &str) -> Result<()> {
    let path = Path::new(ROOT).join("ipv6/conf").join(link).join("disable_ipv6");
    if read(&path)? == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| Error::Sysctl { action: "write", path, source })
}

/// Whether `net.ipv4.conf.all.rp_filter` is strict, which no setting of a single device can soften.
pub(super) fn strict_rp_filter_everywhere() -> Result<bool> {
    Ok(read(&Path::new(ROOT).join("ipv4/conf/all/rp_filter"))? == "1")
}

/// The ports that the kernel gives to the host's own connections: `ip_local_port_range`.
pub(super) fn local_ports() -> Result<RangeInclusive<u16>> {
    let path = Path::new(ROOT).join("ipv4/ip_local_port_range");
    let text = read(&path)?;
    parse_range(&text).ok_or_else(|| invalid(path, &text))
}

/// Ports that it leaves out of them: `ip_local_reserved_ports`.
pub(super) fn reserved_ports() -> Result<Vec<RangeInclusive<u16>>> {
    let path = Path::new(ROOT).join("ipv4/ip_local_reserved_ports");
    let text = read(&path)?;
    parse_reserved(&text).ok_or_else(|| invalid(path, &text))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        })
        .collect()
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| Error::Sysctl { action: "read", path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

fn invalid(path: PathBuf, text: &str) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, format!("'{text}' is not a list of ports"));
    Error::Sysctl { action: "read", path, source }
}

#[cfg(test)]
mod tests {
    use super::{parse_range, parse_reserved};

    #[test]
    fn port_lists_are_read_as_the_kernel_prints_them() {
        assert_eq!(parse_range("32768\t60999"), Some(32768..=60999));
        assert_eq!(parse_range("32768"), None);
        assert_eq!(parse_reserved(""), Some(Vec::new()));
        assert_eq!(parse_reserved("8080,9000-9100"), Some(vec![8080..=8080, 9000..=9100]));
        assert_eq!(parse_reserved("9000-x"), None);
    }
}
