// SPDX-License-Identifier: Apache-2.0
//! Per-link settings that netlink does not offer (`Documentation/networking/ip-sysctl.rst` of the kernel).

use std::{
    fs,
    io::{self, Write as _},
};

/// Settings of the host's end of a veth and of a tap: no way into the host's IP stack, should somebody take the programs away.
/// What a workload sends has no return path there, is not forwarded, and meets no IPv6 at all; the programs decide before any
/// of it and need none.
const HOST_END: [(&str, &str, &str); 5] = [
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "forwarding", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "addr_gen_mode", "1"),
    ("ipv6", "disable_ipv6", "1"),
];

/// Settings of the sandbox's end: IPv6 works whatever the sandbox's default is; routes come from ADD and from nobody
/// else; and the link-local address serves at once.
const SANDBOX_END: [(&str, &str, &str); 3] =
    [("ipv6", "disable_ipv6", "0"), ("ipv6", "accept_ra", "0"), ("ipv6", "accept_dad", "0")];

/// Sets what the host's end called `ifname` needs, in the calling thread's namespace.
pub(crate) fn set_host_end(ifname: &str) -> io::Result<()> {
    HOST_END.iter().try_for_each(|setting| set(ifname, *setting))
}

/// Sets what the sandbox's end called `ifname` needs, in the calling thread's namespace.
pub(crate) fn set_sandbox_end(ifname: &str) -> io::Result<()> {
    SANDBOX_END.iter().try_for_each(|setting| set(ifname, *setting))
}

/// A kernel without a family has no directory for it, and then nothing to set.
fn set(ifname: &str, (family, key, value): (&str, &str, &str)) -> io::Result<()> {
    let path = format!("/proc/sys/net/{family}/conf/{ifname}/{key}");
    let opened = fs::OpenOptions::new().write(true).open(&path);
    match opened.and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write {value} to {path}: {error}"))),
        Ok(()) => Ok(()),
    }
}
