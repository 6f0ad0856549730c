// SPDX-License-Identifier: Apache-2.0
//! Packet sockets: whole Ethernet frames out of and into an interface, as a hostile sender and a witness need them.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

/// The largest frame that is read: a segmented packet of 64 KiB with its headers.
const LARGEST: usize = 70_000;
/// Bytes that may wait for the reader of a capture.
const ROOM: libc::c_int = 16 << 20;

/// What a sender asks of the device that sends the frame: `struct virtio_net_hdr` of `linux/virtio_net.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// [`Offload::NEEDS_CHECKSUM`] or 0.
    pub flags: u8,
    /// 0: no segmentation; 1: TCP over IPv4; 4: TCP over IPv6; 5: UDP.
    pub segmentation: u8,
    /// Bytes of all headers, for segmentation.
    pub header_len: u16,
    /// Bytes of payload in each segment.
    pub segment_len: u16,
    /// Where the checksum begins, from the start of the frame.
    pub checksum_start: u16,
    /// Where the checksum goes, from its beginning.
    pub checksum_offset: u16,
}

impl Offload {
    /// The checksum has to be written.
    pub const NEEDS_CHECKSUM: u8 = 1;

    /// The checksum of what begins at `start` goes `offset` bytes further.
    #[must_use]
    pub const fn checksum(start: u16, offset: u16) -> Self {
        Self {
            flags: Self::NEEDS_CHECKSUM,
            segmentation: 0,
            header_len: 0,
            segment_len: 0,
            checksum_start: start,
            checksum_offset: offset,
        }
    }

    /// As bytes in front of a frame.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[0] = self.flags;
        bytes[1] = self.segmentation;
        let words = [self.header_len, self.segment_len, self.checksum_start, self.checksum_offset];
        for (at, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            at.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The index of a network interface.
///
/// # Errors
/// There is none of this name.
pub fn index_of(iface: &str) -> io::Result<u32> {
    let name = CString::new(iface)?;
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Sends frames out of an interface.
#[derive(Debug)]
pub struct FrameSender {
    socket: OwnedFd,
    offloads: bool,
}

impl FrameSender {
    /// A sender on `iface`.
    ///
    /// # Errors
    /// No such interface, or no right to send frames.
    pub fn open(iface: &str) -> io::Result<Self> {
        let socket = packet_socket(0)?;
        bind(&socket, iface, 0)?;
        Ok(Self { socket, offloads: false })
    }

    /// A sender on `iface` whose frames carry requests to the device.
    ///
    /// # Errors
    /// As [`FrameSender::open`].
    pub fn with_offloads(iface: &str) -> io::Result<Self> {
        let sender = Self::open(iface)?;
        set(&sender.socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        Ok(Self { offloads: true, ..sender })
    }

    /// Sends one frame. `offload` counts where the sender was opened for it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        let mut bytes = if self.offloads { offload.to_bytes().to_vec() } else { Vec::new() };
        bytes.extend_from_slice(frame);
        // SAFETY: the buffer is valid for the length given.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Sees every frame that comes into an interface; those that leave by it are not seen.
#[derive(Debug)]
pub struct FrameReceiver {
    socket: OwnedFd,
}

impl FrameReceiver {
    /// A receiver on `iface`.
    ///
    /// # Errors
    /// No such interface, or no right to see frames.
    pub fn open(iface: &str) -> io::Result<Self> {
        let socket = packet_socket(0)?;
        set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)?;
        bind(&socket, iface, libc::ETH_P_ALL)?;
        Ok(Self { socket })
    }

    /// The next frame, with its VLAN tag where it was on the wire; none: nothing came within `patience`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one valid entry.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            0 => Ok(None),
            1 => self.read().map(Some),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0_u8; LARGEST];
        let mut control = [0_u64; 8];
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: all zeros is a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: every pointer in `message` is valid for the length beside it.
        let read = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        frame.truncate(usize::try_from(read).map_err(|_| io::Error::last_os_error())?);
        if let Some(tag) = tag_of(&message) {
            frame.splice(12..12, tag);
        }
        Ok(frame)
    }
}

/// `PACKET_IGNORE_OUTGOING` of `linux/if_packet.h`, kernel 4.20; libc has no name for it.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// The VLAN tag that the kernel took out of the frame.
fn tag_of(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel filled in the control messages; the macros stay within their length.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref()? };
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: a message of this type holds a `tpacket_auxdata`, maybe unaligned.
    let aux = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let known = aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let kind = if known { aux.tp_vlan_tpid } else { 0x8100 };
    let ([a, b], [c, d]) = (kind.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

fn packet_socket(protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the descriptor is checked below.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bind(socket: &OwnedFd, iface: &str, protocol: libc::c_int) -> io::Result<()> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(protocol).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = i32::try_from(index_of(iface)?).map_err(io::Error::other)?;
    let length = u32::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address is valid for the length given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(mem::size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: `value` is an int and lives during the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::Offload;

    #[test]
    fn a_checksum_request_has_the_layout_of_virtio() {
        assert_eq!(Offload::checksum(34, 6).to_bytes(), [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    }
}
