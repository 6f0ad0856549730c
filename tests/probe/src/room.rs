// SPDX-License-Identifier: Apache-2.0
//! Room for datagrams that wait for their reader.

use std::{io, mem, net::UdpSocket, os::fd::AsRawFd as _};

/// Bytes of a receive buffer: some seconds of a stream's records, each of which the kernel counts with about 800 bytes. The
/// usual 208 KiB are full after a quarter of a second in which a busy machine does not run the reader; what is lost then
/// says nothing about the network.
const ROOM: libc::c_int = 8 << 20;

/// Gives the socket room; without `CAP_NET_ADMIN` no more than the system allows to everybody.
pub(crate) fn make(socket: &UdpSocket) -> io::Result<()> {
    set(socket, libc::SO_RCVBUFFORCE).or_else(|_| set(socket, libc::SO_RCVBUF))
}

fn set(socket: &UdpSocket, option: libc::c_int) -> io::Result<()> {
    let room = ROOM;
    let length = libc::socklen_t::try_from(mem::size_of_val(&room)).map_err(io::Error::other)?;
    // SAFETY: `room` is an int and lives during the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const room).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
