// SPDX-License-Identifier: Apache-2.0
//! Traffic control by rtnetlink(7): the `clsact` qdisc of a device and the eBPF filters on it.
//!
//! Layouts are those of `linux/netlink.h`, `linux/rtnetlink.h` and `linux/pkt_cls.h`, host byte order.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::program::Direction;

/// Handle of a `clsact` qdisc, and parent of the qdisc itself.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
/// What was dumped changed meanwhile.
const INTERRUPTED: u16 = 0x10;

/// Protocol of a filter that sees everything, in the order of the wire.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct tcmsg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct Object {
    family: u32,
    ifindex: i32,
    handle: u32,
    parent: u32,
    info: u32,
}

/// Where a filter sits on its hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// Filters of a lower number run first.
    pub(crate) priority: u16,
    pub(crate) handle: u32,
}

/// A filter as the kernel has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Filter {
    pub(crate) place: Place,
    /// `bpf`, `flower`, ...
    pub(crate) kind: String,
    /// What whoever made an eBPF filter called it.
    pub(crate) name: String,
    /// Number of its program.
    pub(crate) program_id: u32,
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Tc {
    fd: OwnedFd,
    sequence: u32,
}

impl Tc {
    pub(crate) fn open() -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Gives a device a `clsact` qdisc; `false`: it has that, or another one in its place.
    pub(crate) fn add_qdisc(&mut self, ifindex: u32) -> io::Result<bool> {
        let mut body = qdisc(ifindex);
        push(&mut body, TCA_KIND, b"clsact\0");
        match self.request(libc::RTM_NEWQDISC, CREATE | EXCLUSIVE, &body) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the qdisc away, with all filters on it; `false`: there was none, or no device.
    pub(crate) fn delete_qdisc(&mut self, ifindex: u32) -> io::Result<bool> {
        unless_absent(self.request(libc::RTM_DELQDISC, 0, &qdisc(ifindex)))
    }

    /// Indexes of all devices that have a qdisc of that kind.
    pub(crate) fn devices_with(&mut self, wanted: &str) -> io::Result<Vec<u32>> {
        let messages = self.dump(libc::RTM_GETQDISC, libc::RTM_NEWQDISC, Object::default().as_bytes())?;
        let found = messages.iter().filter_map(|message| {
            let (object, rest) = Object::read_from_prefix(message).ok()?;
            let has = attributes(rest).any(|(kind, value)| kind == TCA_KIND && text(value) == wanted);
            (has && object.parent == CLSACT_PARENT).then_some(object.ifindex.cast_unsigned())
        });
        Ok(found.collect())
    }

    /// The filters of one hook; none where there is no device or no qdisc.
    pub(crate) fn filters(&mut self, ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
        let body = Object { ifindex: ifindex.cast_signed(), parent: parent(direction), ..Object::default() };
        match self.dump(libc::RTM_GETTFILTER, libc::RTM_NEWTFILTER, body.as_bytes()) {
            Ok(messages) => Ok(messages.iter().filter_map(|message| filter(message)).collect()),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Puts a filter that is not there yet. `name` is read back in [`Filter::name`].
    pub(crate) fn add_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        place: Place,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        let body = filter_body(ifindex, direction, place, Some((program, name)));
        self.request(libc::RTM_NEWTFILTER, CREATE | EXCLUSIVE, &body)
    }

    /// Gives a filter another program and name, at once: each packet meets the one or the other. `false`: it is not there.
    pub(crate) fn replace_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        place: Place,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<bool> {
        let body = filter_body(ifindex, direction, place, Some((program, name)));
        unless_absent(self.request(libc::RTM_NEWTFILTER, 0, &body))
    }

    /// Takes a filter away; `false`: it is not there.
    pub(crate) fn delete_filter(&mut self, ifindex: u32, direction: Direction, place: Place) -> io::Result<bool> {
        let body = filter_body(ifindex, direction, place, None);
        unless_absent(self.request(libc::RTM_DELTFILTER, 0, &body))
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | flags, body)?;
        self.answers(|_, _| {}).map(drop)
    }

    /// Bodies of all messages of kind `wanted`. What changes while it is read is read again, a few times.
    fn dump(&mut self, kind: u16, wanted: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        const ATTEMPTS: u32 = 8;
        for _ in 0..ATTEMPTS {
            let mut messages = Vec::new();
            self.send(kind, REQUEST | DUMP, body)?;
            let whole = self.answers(|found, body| {
                if found == wanted {
                    messages.push(body.to_vec());
                }
            })?;
            if whole {
                return Ok(messages);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "it changed each time that it was read"))
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(size_of::<Header>() + body.len()).map_err(io::Error::other)?;
        let header = Header { length, kind, flags, sequence: self.sequence, port: 0 };
        let message = [header.as_bytes(), body].concat();
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the end of what was asked for; `false`: it changed meanwhile.
    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        // The kernel fills no more at once.
        let mut buffer = vec![0; 1 << 15];
        let mut whole = true;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Ok((header, _)) = Header::read_from_prefix(rest) {
                let Some(message) = rest.get(size_of::<Header>()..header.length as usize) else { break };
                rest = rest.get((header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                if header.sequence != self.sequence {
                    continue;
                }
                whole &= header.flags & INTERRUPTED == 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return code(message).map(|()| whole),
                    _ => each(header.kind, message),
                }
            }
        }
    }
}

/// The error number that a message begins with.
fn code(message: &[u8]) -> io::Result<()> {
    match i32::read_from_prefix(message) {
        Ok((0, _)) => Ok(()),
        Ok((code, _)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        Err(_) => Err(io::Error::other("a netlink answer without a code")),
    }
}

fn unless_absent(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel has no single answer for what is not there: a filter is `ENOENT`, one without a qdisc `EINVAL`, a device
/// `ENODEV`.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL))
}

const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    }
}

fn qdisc(ifindex: u32) -> Vec<u8> {
    let object =
        Object { ifindex: ifindex.cast_signed(), handle: CLSACT_HANDLE, parent: CLSACT_PARENT, ..Object::default() };
    object.as_bytes().to_vec()
}

fn filter_body(ifindex: u32, direction: Direction, place: Place, program: Option<(BorrowedFd<'_>, &str)>) -> Vec<u8> {
    let object = Object {
        family: 0,
        ifindex: ifindex.cast_signed(),
        handle: place.handle,
        parent: parent(direction),
        info: u32::from(place.priority) << 16 | u32::from(ALL_PROTOCOLS),
    };
    let mut body = object.as_bytes().to_vec();
    push(&mut body, TCA_KIND, b"bpf\0");
    if let Some((program, name)) = program {
        let mut options = Vec::new();
        push(&mut options, TCA_BPF_FD, program.as_raw_fd().as_bytes());
        push(&mut options, TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
        push(&mut options, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT.as_bytes());
        push(&mut body, TCA_OPTIONS, &options);
    }
    body
}

/// Adds an attribute; values here are far shorter than 64 KiB.
fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    body.extend(length.as_bytes());
    body.extend(kind.as_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`, with their numbers.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let ([length, kind], _) = <[u16; 2]>::read_from_prefix(bytes).ok()?;
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

/// Beside each filter the kernel tells of the list that it is in, as one without options: `None`.
fn filter(message: &[u8]) -> Option<Filter> {
    let (object, rest) = Object::read_from_prefix(message).ok()?;
    let find = |wanted| attributes(rest).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let options = find(TCA_OPTIONS).filter(|_| object.handle != 0)?;
    let option = |wanted| attributes(options).find_map(|(kind, value)| (kind == wanted).then_some(value));
    Some(Filter {
        place: Place { priority: (object.info >> 16) as u16, handle: object.handle },
        kind: find(TCA_KIND).map(text).unwrap_or_default(),
        name: option(TCA_BPF_NAME).map(text).unwrap_or_default(),
        program_id: option(TCA_BPF_ID).and_then(|value| Some(u32::read_from_prefix(value).ok()?.0)).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written_and_a_cut_one_ends_them() {
        let mut body = Vec::new();
        push(&mut body, TCA_KIND, b"bpf\0");
        push(&mut body, TCA_BPF_NAME, b"seven\0");
        push(&mut body, TCA_BPF_ID, 7_u32.as_bytes());
        let read: Vec<_> = attributes(&body).collect();
        assert_eq!(read, [(TCA_KIND, b"bpf\0".as_slice()), (TCA_BPF_NAME, b"seven\0"), (TCA_BPF_ID, 7_u32.as_bytes())]);
        assert_eq!(text(read[1].1), "seven");
        assert_eq!(attributes(&body[..body.len() - 1]).count(), 2);
        assert_eq!(attributes(&[0; 16]).count(), 0, "no attribute is shorter than its head");
    }

    #[test]
    fn a_list_without_a_filter_is_none() {
        let mut body = Object { info: 1 << 16, ..Object::default() }.as_bytes().to_vec();
        push(&mut body, TCA_KIND, b"bpf\0");
        assert_eq!(filter(&body), None);
    }
}
