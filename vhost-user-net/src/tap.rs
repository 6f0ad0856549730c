// SPDX-License-Identifier: Apache-2.0
//! The tap: opening its queues, its ioctls, reading and writing frames.
//!
//! Source: Linux `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use thiserror::Error;

use crate::port::{Offload, Port};

const TUN_DEVICE: &str = "/dev/net/tun";
/// Bytes of frames the kernel may hold for one queue before a write has to wait.
const SEND_BUFFER: libc::c_int = 4 << 20;
/// Most frames thrown away when the frames' format changes; a tap queue holds fewer.
const DRAIN_LIMIT: usize = 65536;

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is too long or empty.
    #[error("tap name {0:?} is empty or longer than 15 bytes")]
    Name(String),
    /// There is no such interface.
    #[error("there is no interface {0}; create it: ip tuntap add dev {0} mode tap vnet_hdr [multi_queue]")]
    Missing(String),
    /// The tun device cannot be opened.
    #[error("open {TUN_DEVICE}")]
    Open(#[source] std::io::Error),
    /// The tap was made for one queue.
    #[error(
        "tap {tap} refuses {queues} queues (TUNSETIFF: {source}); it has to be made with multi_queue: \
         ip tuntap add dev {tap} mode tap vnet_hdr multi_queue"
    )]
    NotMultiQueue {
        /// Name of the tap.
        tap: String,
        /// Queues asked for.
        queues: usize,
        /// What the kernel said.
        source: Errno,
    },
    /// The interface is not a tap, or somebody else uses it.
    #[error("TUNSETIFF of {tap} (is it a tap, is no other process on it, may this user open it?)")]
    Attach {
        /// Name of the tap.
        tap: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The tap does not carry virtio-net headers in spite of being asked to.
    #[error("tap {0} does not carry virtio-net headers (IFF_VNET_HDR)")]
    NoVnetHeader(String),
    /// Another ioctl failed.
    #[error("{call} of {tap}")]
    Ioctl {
        /// Name of the ioctl.
        call: &'static str,
        /// Name of the tap.
        tap: String,
        /// What the kernel said.
        source: Errno,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    multi_queue: bool,
    last_format: std::sync::Mutex<Option<(usize, Offload)>>,
}

/// A tap with all its queues, attached and quiet.
#[derive(Debug)]
pub struct Tap {
    /// The queues, in order.
    pub queues: Vec<TapQueue>,
    /// Whether the kernel has UDP segmentation offload for taps (Linux 6.2).
    pub udp_segmentation: bool,
}

impl Tap {
    /// Opens an existing tap.
    ///
    /// # Errors
    /// When there is no such tap, it is in use, its kind does not fit the number of queues, or it has no virtio-net
    /// header.
    pub fn open(name: &str, queues: usize) -> Result<Self, TapError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(TapError::Name(name.to_owned()));
        }
        // TUNSETIFF would make a new interface out of a name that was mistyped.
        if_nametoindex(name).map_err(|_| TapError::Missing(name.to_owned()))?;
        let first = attach_first(name, queues)?;
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(TapQueue::attach(name, true)?);
        }
        let ioctl = |call| move |source| TapError::Ioctl { call, tap: name.to_owned(), source };
        for queue in &all {
            queue.set_int(libc::TUNSETSNDBUF, SEND_BUFFER).map_err(ioctl("TUNSETSNDBUF"))?;
        }
        let udp_segmentation = all.first().is_some_and(TapQueue::probe_udp_segmentation);
        // Flows must not be steered to queues before somebody reads them.
        for queue in all.iter().skip(1) {
            queue.set_active(false).map_err(ioctl("TUNSETQUEUE"))?;
        }
        Ok(Self { queues: all, udp_segmentation })
    }
}

/// Attaches the first queue, with the MULTI_QUEUE flag the tap was made with where one queue is wanted.
fn attach_first(name: &str, queues: usize) -> Result<TapQueue, TapError> {
    match TapQueue::attach(name, queues > 1) {
        Err(TapError::Attach { source: Errno::EINVAL, .. }) if queues == 1 => TapQueue::attach(name, true),
        Err(TapError::Attach { tap, source: source @ Errno::EINVAL }) => {
            Err(TapError::NotMultiQueue { tap, queues, source })
        }
        result => result,
    }
}

impl TapQueue {
    fn attach(name: &str, multi_queue: bool) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(TapError::Open)?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut request = interface_request(name, flags);
        // SAFETY: TUNSETIFF reads and writes an ifreq.
        unsafe { ioctl(&file, libc::TUNSETIFF, &raw mut request) }
            .map_err(|source| TapError::Attach { tap: name.to_owned(), source })?;
        // SAFETY: TUNGETIFF writes an ifreq.
        unsafe { ioctl(&file, libc::TUNGETIFF, &raw mut request) }.map_err(|source| TapError::Ioctl {
            call: "TUNGETIFF",
            tap: name.to_owned(),
            source,
        })?;
        // SAFETY: after TUNGETIFF the flags are the union's active field.
        let got = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if got & libc::IFF_VNET_HDR == 0 {
            return Err(TapError::NoVnetHeader(name.to_owned()));
        }
        Ok(Self { file, multi_queue, last_format: std::sync::Mutex::new(None) })
    }

    fn set_int(&self, request: libc::Ioctl, value: libc::c_int) -> Result<(), Errno> {
        // SAFETY: the requests this is used with read one int.
        unsafe { ioctl(&self.file, request, &raw const value) }
    }

    fn set_offload(&self, flags: libc::c_uint) -> Result<(), Errno> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
            .map(|_| ())
    }

    fn probe_udp_segmentation(&self) -> bool {
        let all = Offload { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        let has = self.set_offload(offload_flags(all)).is_ok();
        if let Err(error) = self.set_offload(0) {
            tracing::debug!(%error, "TUNSETOFFLOAD(0)");
        }
        has
    }

    /// Reads or writes one frame, by the call for one piece or the one for several.
    ///
    /// Past the library's wrappers, which are cancellation points and cost a locked instruction each way.
    ///
    /// # Safety
    /// As [`Port::read`].
    #[inline]
    unsafe fn transfer(
        &self,
        one: libc::c_long,
        several: libc::c_long,
        pieces: &[libc::iovec],
    ) -> Result<usize, Errno> {
        let fd = self.file.as_raw_fd();
        // SAFETY: as the caller's.
        let result = unsafe {
            match pieces {
                // A third of the call's own time is saved: no array to copy in and check.
                [piece] => libc::syscall(one, fd, piece.iov_base, piece.iov_len),
                _ => libc::syscall(several, fd, pieces.as_ptr(), pieces.len()),
            }
        };
        Errno::result(result).map(|len| len as usize)
    }

    /// Throws away frames that were queued in another format.
    fn drain(&self) {
        let mut byte = [0u8; 16];
        let piece = [libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() }];
        for _ in 0..DRAIN_LIMIT {
            // SAFETY: the piece is a local buffer.
            if unsafe { self.read(&piece) }.is_err() {
                return;
            }
        }
    }
}

impl Port for TapQueue {
    unsafe fn read(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        // SAFETY: the kernel checks the ranges; the caller vouches that no Rust object lies in them.
        unsafe { self.transfer(libc::SYS_read, libc::SYS_readv, pieces) }
    }

    unsafe fn write(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        // SAFETY: the kernel checks the ranges and only reads them.
        unsafe { self.transfer(libc::SYS_write, libc::SYS_writev, pieces) }
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn set_active(&self, active: bool) -> Result<(), Errno> {
        if !self.multi_queue {
            return Ok(());
        }
        let flag = if active { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let mut request = interface_request("", flag);
        // SAFETY: TUNSETQUEUE reads an ifreq.
        match unsafe { ioctl(&self.file, libc::TUNSETQUEUE, &raw mut request) } {
            // Already as wanted.
            Err(Errno::EINVAL) => Ok(()),
            result => result,
        }
    }

    fn set_format(&self, header_len: usize, offload: Offload) -> Result<(), Errno> {
        let wanted = Some((header_len, offload));
        let mut last = self.last_format.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last == wanted {
            return Ok(());
        }
        self.set_int(libc::TUNSETVNETHDRSZ, header_len as libc::c_int)?;
        self.set_offload(offload_flags(offload))?;
        if last.is_some() {
            self.drain();
        }
        *last = wanted;
        Ok(())
    }
}

/// The flags of `TUNSETOFFLOAD`.
fn offload_flags(offload: Offload) -> libc::c_uint {
    let Offload { checksum, tso4, tso6, ecn, uso } = offload;
    let uso_flags = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (uso, uso_flags),
    ]
    .iter()
    .filter(|(on, _)| *on)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// # Safety
/// `argument` must point to what the request reads and writes.
unsafe fn ioctl<T>(file: &File, request: libc::Ioctl, argument: *const T) -> Result<(), Errno> {
    // SAFETY: as the caller's.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, argument) }).map(|_| ())
}

fn interface_request(name: &str, flags: libc::c_int) -> libc::ifreq {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}
