// SPDX-License-Identifier: Apache-2.0
//! Persistent taps: `Documentation/networking/tuntap.rst` of the kernel, section "Multiqueue tuntap interface".

use std::{
    ffi::c_int,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd as _, RawFd},
};

use nix::{errno::Errno, ioctl_write_int, ioctl_write_ptr_bad, request_code_write};

ioctl_write_ptr_bad!(tun_set_iff, request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
ioctl_write_int!(tun_set_persist, b'T', 203);
ioctl_write_int!(tun_set_owner, b'T', 204);
ioctl_write_int!(tun_set_group, b'T', 206);

/// A tap to make.
pub(crate) struct Tap<'a> {
    /// Name, at most 15 bytes.
    pub(crate) name: &'a str,
    /// VMMs open it once per queue pair: more than one wants `IFF_MULTI_QUEUE`, here and there.
    pub(crate) queues: u16,
    /// The user that may open it besides the administrator.
    pub(crate) owner: u32,
    /// The group whose members may open it.
    pub(crate) group: Option<u32>,
}

/// Makes the tap in the calling thread's namespace: persistent, down, with virtio-net headers and no packet information.
///
/// # Errors
/// A link of that name is there already (`EBUSY`), or `/dev/net/tun` is missing or refuses.
pub(crate) fn create(tap: &Tap<'_>) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(naming("open /dev/net/tun"))?;
    let request = interface_request(tap)?;
    // SAFETY: `request` is a whole ifreq with a terminated name; the kernel reads and writes nothing outside of it.
    checked("TUNSETIFF", unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) })?;
    set(&device, "TUNSETOWNER", tap.owner, tun_set_owner)?;
    if let Some(group) = tap.group {
        set(&device, "TUNSETGROUP", group, tun_set_group)?;
    }
    // Last: until here closing the file takes the link away.
    set(&device, "TUNSETPERSIST", 1, tun_set_persist)
}

type IntegerIoctl = unsafe fn(RawFd, nix::sys::ioctl::ioctl_param_type) -> nix::Result<c_int>;

fn set(device: &File, name: &str, value: u32, ioctl: IntegerIoctl) -> io::Result<()> {
    // SAFETY: the ioctl takes its argument by value and `device` is open.
    checked(name, unsafe { ioctl(device.as_raw_fd(), value.into()) })
}

fn checked(name: &str, result: nix::Result<c_int>) -> io::Result<()> {
    result.map(drop).map_err(|errno: Errno| naming(name)(errno.into()))
}

fn naming(name: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn interface_request(tap: &Tap<'_>) -> io::Result<libc::ifreq> {
    // IFF_TUN_EXCL: a tap of somebody else with that name is not joined.
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    if tap.queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: all-zero bytes are a valid ifreq: integers and an union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if tap.name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(tap.name.bytes()) {
        *target = byte.cast_signed();
    }
    // The kernel takes the flags as 16 bits whatever their sign (IFF_TUN_EXCL is the highest).
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as u16 as i16;
    Ok(request)
}
