// SPDX-License-Identifier: Apache-2.0
//! What a guest may have the kernel write into its frames: one checksum, in its own place, whatever it does meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use weft_vhost::device::offload::{Asked, FRONT};
use weft_vhost::device::tx::TxQueue;
use weft_vhost::device::vring::{Enable, Queue, Vring};
use weft_vhost::memory::{GuestMemory, Translator};
use weft_vhost::metrics::{DropReason, RingCounters};
use weft_vhost::port::{Offload, Port};
use weft_vhost::protocol::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO};
use weft_vhost::protocol::message::RegionSpec;
use weft_vhost::ring::split::RingFeatures;
use weft_vhost::ring::{Layout, SplitRing};

const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
const NEEDS_CSUM: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const IPV4: &[u8] = &[8, 0];
const IPV6: &[u8] = &[0x86, 0xdd];
/// Bytes behind the IP headers.
const PAYLOAD: usize = 100;

fn ethernet(ethertype: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], ethertype].concat()
}

/// `fragment` is the field of flags and offset.
fn v4(protocol: u8, option_words: u8, fragment: u16) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    let total = [0, 20 + 4 * option_words + PAYLOAD as u8];
    let fixed =
        [0x45 + option_words, 0, total[0], total[1], 0, 1, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&fixed[..], &vec![1; 4 * usize::from(option_words)], &[0xee; PAYLOAD]].concat()
}

/// `extensions` are whole headers, the first of the type `next`.
fn v6(next: u8, extensions: &[&[u8]]) -> Vec<u8> {
    let extensions = extensions.concat();
    let mut header = vec![0x60, 0, 0, 0, 0, (extensions.len() + PAYLOAD) as u8, next, 64];
    header.extend([0xfd; 32]);
    [header, extensions, vec![0xee; PAYLOAD]].concat()
}

/// An extension header of `len` bytes that is filled.
fn extension(next: u8, len: usize) -> Vec<u8> {
    let mut header = vec![1; len];
    (header[0], header[1]) = (next, (len / 8 - 1) as u8);
    header
}

fn authentication(next: u8) -> Vec<u8> {
    [vec![next, 4], vec![9; 22]].concat()
}

fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next, 0, high, low, 0, 0, 0, 7]
}

/// `csum_start` and `csum_offset`.
type Place = (u16, u16);

/// Frames, and where their checksum field is; none: they have no checksum to be finished.
fn frames() -> Vec<(&'static str, Vec<u8>, Option<Place>)> {
    let frame = |ethertype: &[u8], packet: Vec<u8>| [ethernet(ethertype), packet].concat();
    let tag = |kind: u16, rest: &[u8]| [&kind.to_be_bytes()[..], &[0, 7], rest].concat();
    vec![
        ("tcp", frame(IPV4, v4(TCP, 0, 0)), Some((34, 16))),
        ("udp", frame(IPV4, v4(UDP, 0, 0x4000)), Some((34, 6))),
        ("sctp", frame(IPV4, v4(SCTP, 0, 0)), Some((34, 8))),
        ("options", frame(IPV4, v4(TCP, 10, 0)), Some((74, 16))),
        ("first fragment", frame(IPV4, v4(UDP, 0, 0x2000)), Some((34, 6))),
        ("later fragment", frame(IPV4, v4(UDP, 0, 0x00b9)), None),
        ("icmp", frame(IPV4, v4(1, 0, 0)), None),
        ("ip in ip", frame(IPV4, v4(4, 0, 0)), None),
        ("ipv4 by its type only", frame(IPV4, v6(TCP, &[])), None),
        ("arp", frame(&[8, 6], vec![0; 60]), None),
        ("tagged", frame(&tag(0x8100, IPV4), v4(TCP, 0, 0)), Some((38, 16))),
        ("tagged twice", frame(&tag(0x88a8, &tag(0x8100, IPV6)), v6(UDP, &[])), Some((62, 6))),
        ("tagged thrice", frame(&tag(0x88a8, &tag(0x8100, &tag(0x8100, IPV4))), v4(TCP, 0, 0)), None),
        ("tcp6", frame(IPV6, v6(TCP, &[])), Some((54, 16))),
        ("udp6", frame(IPV6, v6(UDP, &[])), Some((54, 6))),
        ("options6", frame(IPV6, v6(0, &[&extension(60, 16), &extension(UDP, 8)])), Some((78, 6))),
        ("routing", frame(IPV6, v6(43, &[&extension(TCP, 24)])), Some((78, 16))),
        ("authentication", frame(IPV6, v6(51, &[&authentication(TCP)])), Some((78, 16))),
        ("first fragment6", frame(IPV6, v6(44, &[&fragment(UDP, 0, true)])), Some((62, 6))),
        ("later fragment6", frame(IPV6, v6(44, &[&fragment(UDP, 4, true)])), None),
        ("esp", frame(IPV6, v6(50, &[])), None),
        ("no next header", frame(IPV6, v6(59, &[])), None),
        ("too many extensions", frame(IPV6, v6(60, &[&[extension(60, 8)].concat(); 9].map(|e| &e[..]))), None),
        ("ipv6 by its type only", frame(IPV6, v4(TCP, 0, 0)), None),
    ]
}

fn header(flags: u8, gso: u8, gso_size: u16, start: u16, offset: u16) -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[1]) = (flags, gso);
    header[4..6].copy_from_slice(&gso_size.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header
}

fn objection(header: [u8; 12], frame: &[u8]) -> Option<DropReason> {
    let front = &frame[..frame.len().min(FRONT)];
    Asked::of(header.first_chunk().expect("ten bytes")).objection(front, frame.len(), ALL)
}

/// Every place there is, in every frame: the field itself and none beside it.
#[test]
fn a_checksum_is_written_into_its_own_field_or_nowhere() {
    for (name, frame, place) in frames() {
        for start in 0..=u16::try_from(frame.len() + 2).expect("a short frame") {
            for offset in 0..=u16::try_from(frame.len()).expect("a short frame") {
                let found = objection(header(NEEDS_CSUM, 0, 0, start, offset), &frame);
                let expected = (place != Some((start, offset))).then_some(DropReason::BadChecksumPlace);
                assert_eq!(found, expected, "{name}: {start} + {offset}");
            }
        }
        let wrapped = header(NEEDS_CSUM, 0, 0, u16::MAX, u16::MAX);
        assert_eq!(objection(wrapped, &frame), Some(DropReason::BadChecksumPlace), "{name}");
        assert_eq!(objection(header(0, 0, 0, 30, 0), &frame), None, "{name}: a finished frame's fields mean nothing");
    }
}

#[test]
fn a_frame_cut_within_its_headers_has_no_checksum() {
    for (name, frame, place) in frames() {
        let Some((start, offset)) = place else { continue };
        let transport = if offset == 16 { 20 } else { usize::from(offset) + if offset == 8 { 4 } else { 2 } };
        let needed = usize::from(start) + transport;
        for len in 14..frame.len() {
            let refused = objection(header(NEEDS_CSUM, 0, 0, start, offset), &frame[..len]).is_some();
            assert_eq!(refused, len < needed, "{name}: {len} bytes");
        }
    }
}

/// An inner header is none of the frame's: tunnel offloads are not offered, so a driver finishes it itself.
#[test]
fn the_checksum_of_a_packet_in_a_tunnel_is_the_guests_to_finish() {
    let inner = [ethernet(IPV4), v4(TCP, 0, 0)].concat();
    let mut frame = [ethernet(IPV4), v4(UDP, 0, 0)].concat();
    frame.truncate(34);
    // VXLAN: UDP to 4789, a header of 8 bytes.
    frame.extend([0x12, 0xb5, 0x12, 0xb5, 0, 200, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    let start = u16::try_from(frame.len() + 34).expect("a short frame");
    frame.extend(&inner);
    assert_eq!(objection(header(NEEDS_CSUM, 0, 0, start, 16), &frame), Some(DropReason::BadChecksumPlace));
    assert_eq!(objection(header(NEEDS_CSUM, 0, 0, 34, 6), &frame), None, "the outer one is");
}

#[test]
fn segments_are_of_the_frames_own_protocol_and_not_too_many() {
    const TCPV4: u8 = 1;
    const TCPV6: u8 = 4;
    const UDP_L4: u8 = 5;
    const ECN: u8 = 0x80;
    let frames: std::collections::BTreeMap<_, _> =
        frames().into_iter().map(|(name, frame, place)| (name, (frame, place))).collect();
    let bad = Some(DropReason::BadSegmentation);
    let large = |name: &str, len: usize| {
        let (mut frame, place) = frames[name].clone();
        frame.resize(len, 0);
        (frame, place.expect("a checksum"))
    };
    for (name, gso, size, len, expected) in [
        ("tcp", TCPV4, 1448, 60_000, None),
        ("tcp", TCPV4 | ECN, 1448, 60_000, None),
        ("options", TCPV4, 1448, 60_000, None),
        ("tcp6", TCPV6, 1428, 60_000, None),
        ("routing", TCPV6 | ECN, 1428, 60_000, None),
        ("tcp", TCPV4, 48, 60_000, None),
        ("tcp", TCPV4, 47, 60_000, bad),
        ("tcp", TCPV4, 1, 60_000, bad),
        ("tcp", TCPV4, 0, 60_000, bad),
        ("tcp", TCPV6, 1448, 60_000, bad),
        ("tcp6", TCPV4, 1448, 60_000, bad),
        ("tcp", UDP_L4, 1448, 60_000, bad),
        ("udp", TCPV4, 1448, 60_000, bad),
        ("udp6", TCPV6, 1448, 60_000, bad),
        ("sctp", TCPV4, 1448, 60_000, bad),
        ("udp", UDP_L4, 1200, 60_000, None),
        ("udp6", UDP_L4, 1200, 60_000, None),
        ("udp", UDP_L4, 1, 42 + 128, None),
        ("udp", UDP_L4, 1, 42 + 129, bad),
        ("udp", UDP_L4, 0, 60_000, bad),
        ("udp", UDP_L4 | ECN, 1200, 60_000, bad),
        ("first fragment", UDP_L4, 1200, 60_000, bad),
        ("first fragment6", UDP_L4, 1200, 60_000, bad),
    ] {
        let (frame, (start, offset)) = large(name, len);
        assert_eq!(objection(header(NEEDS_CSUM, gso, size, start, offset), &frame), expected, "{name} {gso} {size}");
        let unfinished = objection(header(0, gso, size, start, offset), &frame);
        assert_eq!(unfinished, Some(DropReason::BadChecksumPlace), "{name}: segments need checksums");
    }
}

const BYTES: u64 = 0x2_0000;
const DATA: u64 = 0x1_0000;
const USED: u64 = 0x800;
const AVAIL: u64 = 0x400;

/// Guest memory with a ring at its beginning.
#[derive(Clone, Debug)]
struct Guest(Arc<GuestMemory>);

impl Guest {
    fn new() -> Self {
        let fd: OwnedFd = memfd_create("offload", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
        nix::unistd::ftruncate(&fd, BYTES as i64).expect("ftruncate");
        let spec = RegionSpec { guest_addr: 0, size: BYTES, user_addr: 0, mmap_offset: 0 };
        Self(Arc::new(GuestMemory::map(vec![(spec, fd)]).expect("map")))
    }

    fn host(&self, at: u64) -> *mut u8 {
        Translator::default().translate(&self.0, at, 1).expect("guest memory").host.as_ptr()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            // SAFETY: a byte of the mapping, which `self` keeps.
            unsafe { self.host(at).write_volatile(*byte) };
        }
    }

    /// Offers one chain of pieces of these lengths, the first at [`DATA`], each a page from the last's beginning.
    fn offer(&self, bytes: &[u8], lens: &[usize]) {
        let (mut rest, last) = (bytes, lens.len() - 1);
        for (slot, len) in lens.iter().enumerate() {
            let at = DATA + 0x3001 * slot as u64;
            let (piece, more) = rest.split_at(*len);
            self.write(at, piece);
            self.write(16 * slot as u64, &at.to_le_bytes());
            self.write(16 * slot as u64 + 8, &(*len as u32).to_le_bytes());
            self.write(16 * slot as u64 + 12, &[u8::from(slot < last), 0, slot as u8 + 1, 0]);
            rest = more;
        }
        assert!(rest.is_empty(), "{} bytes are in no piece", rest.len());
        self.write(AVAIL + 2, &[1, 0]);
    }

    fn queue(&self) -> (TxQueue, Arc<RingCounters>) {
        let layout = Layout { size: 16, desc: 0, avail: AVAIL, used: USED };
        let ring = SplitRing::new(Arc::clone(&self.0), layout, Some(0), RingFeatures::default()).expect("ring");
        let counters = Arc::new(RingCounters::default());
        let vring = Vring::new(ring, Enable::On, Arc::clone(&counters), Arc::default());
        (TxQueue::new(vring, ALL, 12), counters)
    }
}

/// A kernel whose guest changes all its frames in the last moment.
#[derive(Debug)]
struct Changing {
    guest: Guest,
    event: EventFd,
    seen: Mutex<Vec<u8>>,
}

impl Port for Changing {
    unsafe fn read(&self, _pieces: &[libc::iovec]) -> Result<usize, Errno> {
        Err(Errno::EAGAIN)
    }

    unsafe fn write(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        self.guest.write(DATA, &[0xff; (BYTES - DATA) as usize]);
        let mut seen = self.seen.lock().expect("lock");
        for piece in pieces {
            // SAFETY: the device's own buffer, or guest memory, which nobody writes now.
            seen.extend(unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) });
        }
        Ok(seen.len())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn set_active(&self, _active: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn set_format(&self, _header_len: usize, _offload: Offload) -> Result<(), Errno> {
        Ok(())
    }
}

/// What the kernel gets of a frame in pieces of these lengths, of a guest that changes it in that moment.
fn sent(header: [u8; 12], frame: &[u8], lens: &[usize]) -> (Vec<u8>, Arc<RingCounters>) {
    let guest = Guest::new();
    let (mut queue, counters) = guest.queue();
    guest.offer(&[&header[..], frame].concat(), lens);
    let port = Changing { guest, event: EventFd::new().expect("eventfd"), seen: Mutex::default() };
    queue.run(&port, 16).expect("no violation");
    (port.seen.into_inner().expect("lock"), counters)
}

#[test]
fn what_was_judged_is_what_is_sent_whatever_the_guest_does_meanwhile() {
    let short = [ethernet(IPV4), v4(TCP, 0, 0)].concat();
    let [mut usual, mut long] = [short.clone(), short.clone()];
    usual.resize(1514, 7);
    long.resize(3000, 7);
    let frames = [&short, &usual, &long];
    for (frame, needs_csum) in frames.into_iter().flat_map(|frame| [(frame, true), (frame, false)]) {
        let header = header(u8::from(needs_csum), 0, 0, 34, 16);
        let whole = 12 + frame.len();
        for lens in [vec![whole], vec![12, whole - 12], vec![5, 9, 30, whole - 44], vec![12, 54, whole - 66]] {
            let (seen, _) = sent(header, frame, &lens);
            assert_eq!(seen.len(), whole);
            // Of a finished frame only the header is judged; one that is short goes out from the copy anyway.
            let judged = match frame.len() {
                ..=2048 => whole,
                _ if needs_csum => 12 + FRONT,
                _ => 12,
            };
            assert_eq!(seen[..judged], [&header[..], frame].concat()[..judged], "{lens:?} {needs_csum}");
        }
    }
}

#[test]
fn a_frame_that_is_refused_is_counted_and_not_sent() {
    let frame = [ethernet(IPV4), v4(UDP, 0, 0)].concat();
    // The destination address is 16 bytes into the IP header.
    let (seen, counters) = sent(header(NEEDS_CSUM, 0, 0, 14, 16), &frame, &[12 + frame.len()]);
    assert_eq!((seen.len(), counters.dropped(DropReason::BadChecksumPlace)), (0, 1));
    let (seen, counters) = sent(header(NEEDS_CSUM, 1, 1448, 34, 6), &frame, &[12, frame.len()]);
    assert_eq!((seen.len(), counters.dropped(DropReason::BadSegmentation)), (0, 1));
}
