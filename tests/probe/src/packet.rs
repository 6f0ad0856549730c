// SPDX-License-Identifier: Apache-2.0
//! `send`: raw Ethernet frames, as a hostile workload would send them. Also the packet socket of the DHCPv6 client.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::arguments::Arguments;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let iface = arguments.required("IFACE")?;
    let frame = parse_hex(&arguments.required("HEX")?)?;
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    arguments.finish()?;
    for _ in 0..count {
        send(&iface, &frame).map_err(|error| format!("{iface}: {error}"))?;
    }
    Ok(())
}

fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !b": ".contains(byte)).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| "the frame is not hexadecimal")?;
            u8::from_str_radix(pair, 16).map_err(|_| format!("'{pair}' is not a hexadecimal byte"))
        })
        .collect()
}

/// The index of a network interface.
pub(crate) fn index_of(iface: &str) -> io::Result<u32> {
    let name = CString::new(iface)?;
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn send(iface: &str, frame: &[u8]) -> io::Result<()> {
    // SAFETY: plain system call; the descriptor is checked below.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_ifindex = i32::try_from(index_of(iface)?).map_err(io::Error::other)?;
    let length = u32::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: buffer and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::parse_hex;

    #[test]
    fn hexadecimal_with_and_without_separators() {
        assert_eq!(parse_hex("02:00 ff").unwrap(), [2, 0, 255]);
        assert_eq!(parse_hex("0200ff").unwrap(), [2, 0, 255]);
        assert!(parse_hex("0g").is_err());
    }
}
