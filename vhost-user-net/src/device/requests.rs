// SPDX-License-Identifier: Apache-2.0
//! What each request of the front end does to the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::vring::ETHERNET_HEADER;
use super::{Device, RequestError, RingSetup};
use crate::dirty_log::DirtyLog;
use crate::memory::{GuestMemory, MAX_REGIONS};
use crate::protocol::features::{self, protocol};
use crate::protocol::message::{MAX_CONFIG, Message, VringAddr, VringState};

/// Bits of `SET_VRING_ADDR`'s flags that exist (`VHOST_VRING_F_LOG`).
const ADDR_FLAGS: u32 = 1;
const LINK_UP: u16 = 1;
const MIN_MTU: u64 = 68;
/// Shortest Ethernet frame without its checksum.
const MIN_FRAME: usize = 60;
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];

/// What is sent back for a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing of its own: an acknowledgement if the front end asked for one.
    Ack,
    /// A number.
    U64(u64),
    /// A ring and its base.
    VringState(VringState),
    /// A window of the configuration space.
    Config {
        /// First byte.
        offset: u32,
        /// Flags of the request.
        flags: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The log that was mapped: its bytes and its offset.
    Log(u64, u64),
}

impl Reply {
    /// The reply's payload, or `None` for [`Reply::Ack`].
    pub fn payload(&self) -> Option<Vec<u8>> {
        match self {
            Self::Ack => None,
            Self::U64(value) => Some(value.to_ne_bytes().to_vec()),
            Self::VringState(state) => Some([state.index.to_ne_bytes(), state.num.to_ne_bytes()].concat()),
            Self::Config { offset, flags, data } => {
                let size = data.len() as u32;
                let mut payload = [offset.to_ne_bytes(), size.to_ne_bytes(), flags.to_ne_bytes()].concat();
                payload.extend_from_slice(data);
                Some(payload)
            }
            Self::Log(size, offset) => Some([size.to_ne_bytes(), offset.to_ne_bytes()].concat()),
        }
    }
}

impl Device {
    /// Carries out one request.
    ///
    /// # Errors
    /// When the request cannot be carried out; the device is then as it was, except that a ring whose start failed
    /// needs a new kick descriptor.
    pub fn handle(&mut self, message: Message) -> Result<Reply, RequestError> {
        let reply = self.dispatch(message);
        let started = if reply.is_ok() { self.start_ready() } else { Ok(()) };
        self.report();
        started.and(reply)
    }

    fn dispatch(&mut self, message: Message) -> Result<Reply, RequestError> {
        match message {
            Message::GetFeatures => return Ok(Reply::U64(self.offered)),
            Message::GetProtocolFeatures => return Ok(Reply::U64(self.offered_protocol)),
            Message::GetQueueNum => return Ok(Reply::U64(self.rings.len() as u64)),
            Message::GetMaxMemSlots => return Ok(Reply::U64(MAX_REGIONS as u64)),
            Message::GetVringBase(index) => return self.get_base(index),
            Message::GetConfig { offset, size, flags } => return Ok(self.get_config(offset, size, flags)),
            Message::SetLogBase { size, offset, fd } => return self.set_log_base(size, offset, &fd),
            Message::SetOwner | Message::SetLogFd(_) => {}
            Message::ResetOwner => self.stop_all(),
            Message::ResetDevice => self.reset()?,
            Message::SetFeatures(bits) => self.set_features(bits)?,
            Message::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            Message::SetMemTable(table) => self.use_memory(GuestMemory::map(table)?)?,
            Message::AddMemRegion(spec, fd) => self.use_memory(self.memory.with_region(spec, fd)?)?,
            Message::RemoveMemRegion(spec) => self.use_memory(self.memory.without_region(&spec)?)?,
            Message::SetVringNum(state) => self.set_num(state)?,
            Message::SetVringAddr(addr) => self.set_addr(addr)?,
            Message::SetVringBase(state) => self.set_base(state)?,
            Message::SetVringKick(index, fd) => self.set_kick(index, fd)?,
            Message::SetVringCall(index, fd) => self.set_call(index, fd)?,
            Message::SetVringErr(index, fd) => self.set_err(index, fd)?,
            Message::SetVringEnable(state) => self.set_enable(state)?,
            Message::SendRarp(mac) => self.send_rarp(mac)?,
            Message::NetSetMtu(mtu) => self.set_mtu(mtu)?,
            Message::SetConfig { .. } => return Err(RequestError::ReadOnlyConfig),
        }
        Ok(Reply::Ack)
    }

    fn ring_mut(&mut self, index: u32) -> Result<(usize, &mut RingSetup), RequestError> {
        let rings = self.rings.len();
        let at = index as usize;
        let ring = self.rings.get_mut(at).ok_or(RequestError::NoSuchRing { index, rings })?;
        Ok((at, ring))
    }

    fn set_features(&mut self, bits: u64) -> Result<(), RequestError> {
        let foreign = bits & !self.offered;
        if foreign != 0 {
            return Err(RequestError::FeaturesNotOffered(foreign));
        }
        let changed = bits ^ self.features;
        if changed & !features::LOG_ALL != 0 {
            if self.rings.iter().any(|ring| ring.running) {
                return Err(RequestError::FeaturesWhileRunning { from: self.features, to: bits });
            }
            self.set_format(bits)?;
        }
        self.features = bits;
        self.use_log()
    }

    fn set_format(&self, bits: u64) -> Result<(), RequestError> {
        let Some(port) = self.ports.first() else { return Ok(()) };
        port.set_format(features::net_header_len(bits), features::guest_offload(bits))
            .map_err(|source| RequestError::Port { what: "the frame format (TUNSETOFFLOAD)", source })
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<(), RequestError> {
        let foreign = bits & !self.offered_protocol;
        if foreign != 0 {
            return Err(RequestError::FeaturesNotOffered(foreign));
        }
        self.protocol = bits;
        Ok(())
    }

    /// Whether requests may be acknowledged.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    fn reset(&mut self) -> Result<(), RequestError> {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = RingSetup::default());
        // The protocol's own bits belong to the connection, not to the device's state.
        self.features &= features::PROTOCOL_FEATURES;
        self.mtu_told = None;
        self.use_log()
    }

    fn set_num(&mut self, state: VringState) -> Result<(), RequestError> {
        let max = self.config.max_ring_size;
        let VringState { index, num: value } = state;
        let (_, ring) = self.ring_mut(index)?;
        let refuse = |reason| Err(RequestError::RingValue { index, field: "size", value, reason });
        let size = match u16::try_from(value) {
            Ok(size) if size.is_power_of_two() => size,
            _ => return refuse("it has to be a power of two"),
        };
        if size > max {
            return refuse("it is greater than --queue-size");
        }
        if ring.running && ring.size != size {
            return refuse("the ring runs");
        }
        ring.size = size;
        Ok(())
    }

    fn set_base(&mut self, state: VringState) -> Result<(), RequestError> {
        let VringState { index, num: value } = state;
        let (_, ring) = self.ring_mut(index)?;
        let refuse = |reason| Err(RequestError::RingValue { index, field: "base", value, reason });
        if ring.running {
            return refuse("the ring runs");
        }
        let Ok(base) = u16::try_from(value) else { return refuse("it has to be less than 65536") };
        ring.base = Some(base);
        Ok(())
    }

    fn set_addr(&mut self, addr: VringAddr) -> Result<(), RequestError> {
        let (index, ring) = self.ring_mut(addr.index)?;
        if addr.flags & !ADDR_FLAGS != 0 {
            let reason = "only VHOST_VRING_F_LOG exists";
            return Err(RequestError::RingValue {
                index: addr.index,
                field: "address flags",
                value: addr.flags,
                reason,
            });
        }
        let (before, running) = (ring.addr.replace(addr), ring.running);
        if !running {
            return Ok(());
        }
        // QEMU sends the addresses of a running ring again when it starts or ends logging.
        if let Err(error) = self.relocate(index) {
            self.ring_mut(addr.index)?.1.addr = before;
            self.relocate(index)?;
            return Err(error);
        }
        self.use_log()
    }

    fn get_base(&mut self, index: u32) -> Result<Reply, RequestError> {
        let (at, _) = self.ring_mut(index)?;
        let base = self.stop(at)?;
        Ok(Reply::VringState(VringState { index, num: base.into() }))
    }

    fn set_kick(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, ring) = self.ring_mut(index)?;
        let running = ring.running;
        let (call, err) = (ring.call.clone(), ring.err.clone());
        if running {
            // A new kick on a running ring: start it over where it is.
            self.stop(at)?;
        }
        let (_, ring) = self.ring_mut(index)?;
        (ring.call, ring.err) = (call, err);
        ring.kick = Some(fd.map(Arc::new));
        Ok(())
    }

    fn set_call(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, ring) = self.ring_mut(index)?;
        ring.call = fd.map(|fd| without_waiting(index, "call", fd)).transpose()?;
        let call = ring.call.clone();
        self.change(at, move |vring| {
            vring.call = call;
            // What was completed before may have been signalled to nobody.
            vring.interrupt();
        })
    }

    fn set_err(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, ring) = self.ring_mut(index)?;
        ring.err = fd.map(|fd| without_waiting(index, "err", fd)).transpose()?;
        let err = ring.err.clone();
        self.change(at, move |vring| vring.err = err)
    }

    /// Enables or disables a ring. It may come before anything else: QEMU sends it when the device is made, before
    /// `SET_FEATURES`, and not again.
    fn set_enable(&mut self, state: VringState) -> Result<(), RequestError> {
        let VringState { index, num: value } = state;
        let (at, ring) = self.ring_mut(index)?;
        if value > 1 {
            return Err(RequestError::RingValue { index, field: "enable", value, reason: "it is 0 or 1" });
        }
        ring.enabled = Some(value == 1);
        let Some(enable) = self.rings.get(at).map(|ring| self.enable_of(ring)) else { return Ok(()) };
        self.change(at, move |vring| vring.enable = enable)?;
        self.attach(at)
    }

    fn set_log_base(&mut self, size: u64, offset: u64, fd: &OwnedFd) -> Result<Reply, RequestError> {
        if self.protocol & protocol::LOG_SHMFD == 0 {
            return Err(RequestError::ProtocolFeature { request: "SET_LOG_BASE", feature: "LOG_SHMFD" });
        }
        let log = DirtyLog::map(size, offset, fd)?;
        if log.covers() < self.memory.end() {
            tracing::warn!(covers = log.covers(), memory_end = self.memory.end(), "the dirty log is too small");
        }
        self.log = Some(Arc::new(log));
        self.use_log()?;
        Ok(Reply::Log(size, offset))
    }

    fn set_mtu(&mut self, mtu: u64) -> Result<(), RequestError> {
        let told = u16::try_from(mtu).ok().filter(|_| mtu >= MIN_MTU).ok_or(RequestError::Mtu(mtu))?;
        self.mtu_told = Some(told);
        Ok(())
    }

    /// Announces the guest after a migration, as if it had sent the frame itself.
    fn send_rarp(&self, mac: [u8; 6]) -> Result<(), RequestError> {
        let Some(port) = self.ports.first() else { return Ok(()) };
        let mut frame = vec![0; features::net_header_len(self.features)];
        frame.extend_from_slice(&rarp(mac));
        let piece = [libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() }];
        // SAFETY: the piece is the local frame.
        unsafe { port.write(&piece) }.map_err(|source| RequestError::Port { what: "a RARP frame", source })?;
        Ok(())
    }

    /// The configuration space of virtio 1.3, 5.1.4; little endian.
    fn get_config(&self, offset: u32, size: u32, flags: u32) -> Reply {
        let mut space = Vec::with_capacity(MAX_CONFIG);
        space.extend_from_slice(&self.config.mac.unwrap_or_default());
        space.extend_from_slice(&LINK_UP.to_le_bytes());
        space.extend_from_slice(&(self.ports.len() as u16).to_le_bytes());
        space.extend_from_slice(&self.config.mtu.unwrap_or_default().to_le_bytes());
        space.resize(MAX_CONFIG, 0);
        let window = offset as usize..(offset as usize).saturating_add(size as usize);
        Reply::Config { offset, flags, data: space.get(window).unwrap_or_default().to_vec() }
    }
}

/// A RARP request in which a station asks for its own address (RFC 903): switches learn where it is.
fn rarp(mac: [u8; 6]) -> [u8; MIN_FRAME] {
    let mut frame = [0; MIN_FRAME];
    let (ethernet, body) = frame.split_at_mut(ETHERNET_HEADER);
    ethernet[..6].fill(0xff);
    ethernet[6..12].copy_from_slice(&mac);
    ethernet[12..].copy_from_slice(&ETHERTYPE_RARP);
    // Hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 3: request reverse.
    body[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    body[8..14].copy_from_slice(&mac);
    body[18..24].copy_from_slice(&mac);
    frame
}

/// Makes writes to the descriptor fail where they would wait: one that is full would hold the ring's thread up.
fn without_waiting(index: u32, what: &'static str, fd: OwnedFd) -> Result<Arc<OwnedFd>, RequestError> {
    let failed = |source| RequestError::Signal { index, what, source };
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(failed)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok(Arc::new(fd))
}
