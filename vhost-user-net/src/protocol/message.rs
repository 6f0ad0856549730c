// SPDX-License-Identifier: Apache-2.0
//! Typed vhost-user messages and their decoding.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`. All integers are in the byte order of the host. Decoding is pure: it checks
//! the payload's size, the fields' ranges and the number of file descriptors, and does nothing else, so that a
//! [`Message`] is always well formed.

use std::os::fd::OwnedFd;

use thiserror::Error;

/// Bytes of the header in front of every message: request, flags, payload size.
pub const HEADER_LEN: usize = 12;
/// Most bytes of payload any message of this device can have.
pub const MAX_PAYLOAD: usize = 4096;
/// Most regions one `SET_MEM_TABLE` can carry (the base protocol's limit).
pub const MAX_TABLE_REGIONS: usize = 8;
/// Most bytes one `GET_CONFIG` or `SET_CONFIG` may transfer.
pub const MAX_CONFIG: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NOFD: u64 = 1 << 8;

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// Requests a front end may send.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Request {
            $($(#[$doc])* $name = $number,)+
        }

        impl Request {
            /// The request with this number, if the protocol has one.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

requests! {
    /// `VHOST_USER_GET_FEATURES`
    GetFeatures = 1,
    /// `VHOST_USER_SET_FEATURES`
    SetFeatures = 2,
    /// `VHOST_USER_SET_OWNER`
    SetOwner = 3,
    /// `VHOST_USER_RESET_OWNER` (deprecated)
    ResetOwner = 4,
    /// `VHOST_USER_SET_MEM_TABLE`
    SetMemTable = 5,
    /// `VHOST_USER_SET_LOG_BASE`
    SetLogBase = 6,
    /// `VHOST_USER_SET_LOG_FD`
    SetLogFd = 7,
    /// `VHOST_USER_SET_VRING_NUM`
    SetVringNum = 8,
    /// `VHOST_USER_SET_VRING_ADDR`
    SetVringAddr = 9,
    /// `VHOST_USER_SET_VRING_BASE`
    SetVringBase = 10,
    /// `VHOST_USER_GET_VRING_BASE`
    GetVringBase = 11,
    /// `VHOST_USER_SET_VRING_KICK`
    SetVringKick = 12,
    /// `VHOST_USER_SET_VRING_CALL`
    SetVringCall = 13,
    /// `VHOST_USER_SET_VRING_ERR`
    SetVringErr = 14,
    /// `VHOST_USER_GET_PROTOCOL_FEATURES`
    GetProtocolFeatures = 15,
    /// `VHOST_USER_SET_PROTOCOL_FEATURES`
    SetProtocolFeatures = 16,
    /// `VHOST_USER_GET_QUEUE_NUM`
    GetQueueNum = 17,
    /// `VHOST_USER_SET_VRING_ENABLE`
    SetVringEnable = 18,
    /// `VHOST_USER_SEND_RARP`
    SendRarp = 19,
    /// `VHOST_USER_NET_SET_MTU`
    NetSetMtu = 20,
    /// `VHOST_USER_GET_CONFIG`
    GetConfig = 24,
    /// `VHOST_USER_SET_CONFIG`
    SetConfig = 25,
    /// `VHOST_USER_RESET_DEVICE`
    ResetDevice = 34,
    /// `VHOST_USER_GET_MAX_MEM_SLOTS`
    GetMaxMemSlots = 36,
    /// `VHOST_USER_ADD_MEM_REG`
    AddMemRegion = 37,
    /// `VHOST_USER_REM_MEM_REG`
    RemoveMemRegion = 38,
}

impl Request {
    /// Whether the request is answered by more than an acknowledgement.
    pub fn has_own_reply(self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetMaxMemSlots
                | Self::GetVringBase
                | Self::GetConfig
                | Self::SetLogBase
        )
    }
}

/// The fixed part in front of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// Protocol version and flags.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// Splits the twelve bytes off the wire into their fields.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut reader = Reader(bytes);
        Self { request: reader.u32(), flags: reader.u32(), size: reader.u32() }
    }

    /// Checks version, direction and payload size before the payload is read.
    ///
    /// # Errors
    /// When the peer speaks another version, sends a reply, or announces more than [`MAX_PAYLOAD`] bytes.
    pub fn check(&self) -> Result<(), MessageError> {
        if self.flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version { version: self.flags & VERSION_MASK });
        }
        if self.flags & FLAG_REPLY != 0 {
            return Err(MessageError::ReplyFromFrontEnd { request: self.request });
        }
        if self.size as usize > MAX_PAYLOAD {
            return Err(MessageError::TooLong { request: self.request, size: self.size });
        }
        Ok(())
    }

    /// Whether the front end waits for an acknowledgement (protocol feature `REPLY_ACK`).
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The bytes of the reply to this request with this payload.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&self.request.to_ne_bytes());
        bytes.extend_from_slice(&(VERSION | FLAG_REPLY).to_ne_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// Where a region of guest memory lies and how to map it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the front end's process; ring addresses are given in these.
    pub user_addr: u64,
    /// Offset of the first byte in the region's file.
    pub mmap_offset: u64,
}

/// `struct vhost_vring_state`: a ring and a number whose meaning the request gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// Index of the ring.
    pub index: u32,
    /// Size, base or enable flag.
    pub num: u32,
}

/// `struct vhost_vring_addr`: where the three parts of a split ring lie, in the front end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddr {
    /// Index of the ring.
    pub index: u32,
    /// Bit 0: writes to the used ring are to be logged at `log`.
    pub flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Guest physical address of the used ring, for the dirty log.
    pub log: u64,
}

/// A well-formed message from the front end.
#[derive(Debug)]
pub enum Message {
    /// Asks for the virtio feature bits this device offers.
    GetFeatures,
    /// Sets the virtio feature bits in force.
    SetFeatures(u64),
    /// Claims the device.
    SetOwner,
    /// Gives the device up (deprecated; stops the rings).
    ResetOwner,
    /// Replaces the guest's memory table.
    SetMemTable(Vec<(RegionSpec, OwnedFd)>),
    /// Gives the dirty log: bytes, offset in the file, file.
    SetLogBase {
        /// Bytes of the log.
        size: u64,
        /// Offset of the log in its file.
        offset: u64,
        /// The log's file.
        fd: OwnedFd,
    },
    /// Gives an eventfd to signal on writes to the log; unused by every known front end.
    SetLogFd(OwnedFd),
    /// Sets a ring's size.
    SetVringNum(VringState),
    /// Sets a ring's addresses.
    SetVringAddr(VringAddr),
    /// Sets the next available index of a ring.
    SetVringBase(VringState),
    /// Stops a ring and asks for its next available index.
    GetVringBase(u32),
    /// Gives the eventfd the guest kicks, and starts the ring. `None`: the device has to poll.
    SetVringKick(u32, Option<OwnedFd>),
    /// Gives the eventfd that interrupts the guest. `None`: the guest polls.
    SetVringCall(u32, Option<OwnedFd>),
    /// Gives the eventfd that reports a broken ring.
    SetVringErr(u32, Option<OwnedFd>),
    /// Asks for the protocol feature bits.
    GetProtocolFeatures,
    /// Sets the protocol feature bits in force.
    SetProtocolFeatures(u64),
    /// Asks for the number of rings.
    GetQueueNum,
    /// Enables or disables a ring.
    SetVringEnable(VringState),
    /// Asks for a RARP announcement of this MAC address.
    SendRarp([u8; 6]),
    /// Tells the MTU the guest was given.
    NetSetMtu(u64),
    /// Asks for a part of the configuration space.
    GetConfig {
        /// First byte.
        offset: u32,
        /// Bytes.
        size: u32,
        /// Flags, echoed in the reply.
        flags: u32,
    },
    /// Writes a part of the configuration space.
    SetConfig {
        /// First byte.
        offset: u32,
        /// The bytes to write.
        data: Vec<u8>,
    },
    /// Returns the device to its first state.
    ResetDevice,
    /// Asks for the number of regions the memory table can hold.
    GetMaxMemSlots,
    /// Adds a region to the memory table.
    AddMemRegion(RegionSpec, OwnedFd),
    /// Takes a region out of the memory table.
    RemoveMemRegion(RegionSpec),
}

/// Why bytes are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Another protocol version.
    #[error("protocol version {version} where 1 was expected")]
    Version {
        /// The version in the flags.
        version: u32,
    },
    /// The front end set the reply flag.
    #[error("request {request} carries the reply flag")]
    ReplyFromFrontEnd {
        /// Number of the request.
        request: u32,
    },
    /// More payload than any message has.
    #[error("request {request} announces {size} bytes of payload, at most {MAX_PAYLOAD} are possible")]
    TooLong {
        /// Number of the request.
        request: u32,
        /// Announced bytes.
        size: u32,
    },
    /// A request this device does not know, or one whose protocol feature it does not offer.
    #[error("request {0} is unknown or belongs to a protocol feature this device does not offer")]
    Unknown(u32),
    /// The payload has the wrong size.
    #[error("{request:?} has {got} bytes of payload where {want} were expected")]
    PayloadSize {
        /// The request.
        request: Request,
        /// Bytes received.
        got: usize,
        /// Bytes expected.
        want: usize,
    },
    /// The wrong number of file descriptors came with the message.
    #[error("{request:?} came with {got} file descriptors where {want} were expected")]
    FdCount {
        /// The request.
        request: Request,
        /// Descriptors received.
        got: usize,
        /// Descriptors expected.
        want: usize,
    },
    /// A field is out of range.
    #[error("{request:?}: {field} is {value}, at most {max} is possible")]
    Range {
        /// The request.
        request: Request,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Greatest legal value.
        max: u64,
    },
}

/// Decodes one message. Descriptors that are not part of the message are closed.
///
/// # Errors
/// When the header, the payload's size, a count or the number of descriptors does not fit the request.
pub fn decode(header: &Header, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Message, MessageError> {
    header.check()?;
    let request = Request::from_number(header.request).ok_or(MessageError::Unknown(header.request))?;
    let mut body = Body { request, payload, fds };
    let message = body.message()?;
    let spare = body.fds.len();
    // "The back-end MAY accept messages with one file descriptor" for REM_MEM_REG; it is closed unused.
    if spare > 0 && !(request == Request::RemoveMemRegion && spare == 1) {
        return Err(MessageError::FdCount { request, got: spare, want: 0 });
    }
    Ok(message)
}

struct Body<'a> {
    request: Request,
    payload: &'a [u8],
    fds: Vec<OwnedFd>,
}

impl Body<'_> {
    fn message(&mut self) -> Result<Message, MessageError> {
        Ok(match self.request {
            Request::GetFeatures => self.empty(Message::GetFeatures)?,
            Request::SetOwner => self.empty(Message::SetOwner)?,
            Request::ResetOwner => self.empty(Message::ResetOwner)?,
            Request::GetProtocolFeatures => self.empty(Message::GetProtocolFeatures)?,
            Request::GetQueueNum => self.empty(Message::GetQueueNum)?,
            Request::ResetDevice => self.empty(Message::ResetDevice)?,
            Request::GetMaxMemSlots => self.empty(Message::GetMaxMemSlots)?,
            Request::SetFeatures => Message::SetFeatures(self.u64()?),
            Request::SetProtocolFeatures => Message::SetProtocolFeatures(self.u64()?),
            Request::NetSetMtu => Message::NetSetMtu(self.u64()?),
            Request::SendRarp => {
                let [a, b, c, d, e, f, _, _] = self.u64()?.to_ne_bytes();
                Message::SendRarp([a, b, c, d, e, f])
            }
            Request::SetVringNum => Message::SetVringNum(self.vring_state()?),
            Request::SetVringBase => Message::SetVringBase(self.vring_state()?),
            Request::GetVringBase => Message::GetVringBase(self.vring_state()?.index),
            Request::SetVringEnable => Message::SetVringEnable(self.vring_state()?),
            Request::SetVringAddr => Message::SetVringAddr(self.vring_addr()?),
            Request::SetVringKick => self.vring_fd(Message::SetVringKick)?,
            Request::SetVringCall => self.vring_fd(Message::SetVringCall)?,
            Request::SetVringErr => self.vring_fd(Message::SetVringErr)?,
            Request::SetMemTable => self.mem_table()?,
            Request::AddMemRegion => {
                let spec = self.single_region()?;
                Message::AddMemRegion(spec, self.one_fd()?)
            }
            Request::RemoveMemRegion => Message::RemoveMemRegion(self.single_region()?),
            Request::SetLogBase => self.log_base()?,
            Request::SetLogFd => {
                self.size(0)?;
                Message::SetLogFd(self.one_fd()?)
            }
            Request::GetConfig | Request::SetConfig => self.config()?,
        })
    }

    fn size(&self, want: usize) -> Result<Reader<'_>, MessageError> {
        let got = self.payload.len();
        if got != want {
            return Err(MessageError::PayloadSize { request: self.request, got, want });
        }
        Ok(Reader(self.payload))
    }

    fn empty(&self, message: Message) -> Result<Message, MessageError> {
        self.size(0).map(|_| message)
    }

    fn u64(&self) -> Result<u64, MessageError> {
        Ok(self.size(8)?.u64())
    }

    fn at_most(&self, field: &'static str, value: u64, max: u64) -> Result<(), MessageError> {
        if value > max {
            return Err(MessageError::Range { request: self.request, field, value, max });
        }
        Ok(())
    }

    fn one_fd(&mut self) -> Result<OwnedFd, MessageError> {
        let got = self.fds.len();
        match self.fds.pop() {
            Some(fd) if got == 1 => Ok(fd),
            _ => Err(MessageError::FdCount { request: self.request, got, want: 1 }),
        }
    }

    fn vring_state(&self) -> Result<VringState, MessageError> {
        let mut reader = self.size(8)?;
        Ok(VringState { index: reader.u32(), num: reader.u32() })
    }

    fn vring_addr(&self) -> Result<VringAddr, MessageError> {
        let mut reader = self.size(40)?;
        Ok(VringAddr {
            index: reader.u32(),
            flags: reader.u32(),
            desc: reader.u64(),
            used: reader.u64(),
            avail: reader.u64(),
            log: reader.u64(),
        })
    }

    fn vring_fd(&mut self, message: fn(u32, Option<OwnedFd>) -> Message) -> Result<Message, MessageError> {
        let value = self.u64()?;
        let index = (value & VRING_INDEX_MASK) as u32;
        if value & VRING_NOFD != 0 {
            return Ok(message(index, None));
        }
        Ok(message(index, Some(self.one_fd()?)))
    }

    fn mem_table(&mut self) -> Result<Message, MessageError> {
        let got = self.payload.len();
        if got < 8 {
            return Err(MessageError::PayloadSize { request: self.request, got, want: 8 });
        }
        let count = Reader(self.payload).u32() as usize;
        self.at_most("the number of regions", count as u64, MAX_TABLE_REGIONS as u64)?;
        let want = 8 + count * 32;
        // QEMU sends the used part of the table only, libvhost-user's tests the whole union: both are legal.
        if got < want {
            return Err(MessageError::PayloadSize { request: self.request, got, want });
        }
        if self.fds.len() != count {
            return Err(MessageError::FdCount { request: self.request, got: self.fds.len(), want: count });
        }
        let mut reader = Reader(self.payload.get(8..).unwrap_or_default());
        let specs: Vec<_> = (0..count).map(|_| reader.region()).collect();
        Ok(Message::SetMemTable(specs.into_iter().zip(self.fds.drain(..)).collect()))
    }

    fn single_region(&self) -> Result<RegionSpec, MessageError> {
        let mut reader = self.size(40)?;
        let _padding = reader.u64();
        Ok(reader.region())
    }

    fn log_base(&mut self) -> Result<Message, MessageError> {
        let mut reader = self.size(16)?;
        let (size, offset) = (reader.u64(), reader.u64());
        Ok(Message::SetLogBase { size, offset, fd: self.one_fd()? })
    }

    fn config(&self) -> Result<Message, MessageError> {
        let got = self.payload.len();
        if got < 12 {
            return Err(MessageError::PayloadSize { request: self.request, got, want: 12 });
        }
        let mut reader = Reader(self.payload);
        let (offset, size, flags) = (reader.u32(), reader.u32(), reader.u32());
        self.at_most("the size", size.into(), MAX_CONFIG as u64)?;
        self.at_most("the offset", offset.into(), (MAX_CONFIG as u64).saturating_sub(size.into()))?;
        let data = self.size(12 + size as usize)?.0.get(12..).unwrap_or_default();
        Ok(match self.request {
            Request::SetConfig => Message::SetConfig { offset, data: data.to_vec() },
            _ => Message::GetConfig { offset, size, flags },
        })
    }
}

/// Reads native-endian integers off the front of a slice whose length was checked; past the end it reads zeros.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn region(&mut self) -> RegionSpec {
        RegionSpec { guest_addr: self.u64(), size: self.u64(), user_addr: self.u64(), mmap_offset: self.u64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(request: Request, size: usize) -> Header {
        Header { request: request as u32, flags: VERSION, size: size as u32 }
    }

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("open /dev/null").into()
    }

    fn decode_bytes(request: Request, payload: &[u8], fds: usize) -> Result<Message, MessageError> {
        decode(&header(request, payload.len()), payload, (0..fds).map(|_| fd()).collect())
    }

    #[test]
    fn a_vring_state_is_decoded_and_a_short_one_is_refused() {
        let bytes = [3u32.to_ne_bytes(), 256u32.to_ne_bytes()].concat();
        let message = decode_bytes(Request::SetVringNum, &bytes, 0).expect("decode");
        assert!(matches!(message, Message::SetVringNum(VringState { index: 3, num: 256 })));
        let error = decode_bytes(Request::SetVringNum, &bytes[..7], 0).expect_err("short");
        assert_eq!(error, MessageError::PayloadSize { request: Request::SetVringNum, got: 7, want: 8 });
    }

    #[test]
    fn a_kick_needs_exactly_one_descriptor_unless_it_says_none() {
        let with_fd = 1u64.to_ne_bytes();
        let without = (1u64 | VRING_NOFD).to_ne_bytes();
        assert!(matches!(decode_bytes(Request::SetVringKick, &with_fd, 1), Ok(Message::SetVringKick(1, Some(_)))));
        assert!(matches!(decode_bytes(Request::SetVringKick, &without, 0), Ok(Message::SetVringKick(1, None))));
        for (payload, fds) in [(with_fd, 0), (with_fd, 2), (without, 1)] {
            let error = decode_bytes(Request::SetVringKick, &payload, fds).expect_err("fds");
            assert!(matches!(error, MessageError::FdCount { .. }), "{error}");
        }
    }

    #[test]
    fn a_memory_table_must_match_its_descriptors_and_its_size() {
        let mut payload = vec![0u8; 8 + 64];
        payload[0] = 2;
        assert!(matches!(decode_bytes(Request::SetMemTable, &payload, 2), Ok(Message::SetMemTable(t)) if t.len() == 2));
        assert!(matches!(decode_bytes(Request::SetMemTable, &payload, 1), Err(MessageError::FdCount { .. })));
        assert!(matches!(decode_bytes(Request::SetMemTable, &payload[..40], 2), Err(MessageError::PayloadSize { .. })));
        payload[0] = 9;
        assert!(matches!(decode_bytes(Request::SetMemTable, &payload, 2), Err(MessageError::Range { .. })));
    }

    #[test]
    fn wrong_version_reply_flag_and_giant_payload_are_refused() {
        let good = header(Request::GetFeatures, 0);
        assert!(good.check().is_ok());
        assert!(matches!(Header { flags: 2, ..good }.check(), Err(MessageError::Version { version: 2 })));
        assert!(matches!(Header { flags: 5, ..good }.check(), Err(MessageError::ReplyFromFrontEnd { .. })));
        assert!(matches!(Header { size: 4097, ..good }.check(), Err(MessageError::TooLong { .. })));
        let unknown = Header { request: 99, ..good };
        assert_eq!(decode(&unknown, &[], vec![]).expect_err("unknown"), MessageError::Unknown(99));
    }

    #[test]
    fn config_windows_past_the_end_are_refused() {
        let bytes = |offset: u32, size: u32| {
            let mut out = [offset.to_ne_bytes(), size.to_ne_bytes(), [0; 4]].concat();
            out.resize(12 + size as usize, 0);
            out
        };
        assert!(decode_bytes(Request::GetConfig, &bytes(0, 12), 0).is_ok());
        assert!(decode_bytes(Request::GetConfig, &bytes(200, 57), 0).is_err());
        assert!(decode_bytes(Request::GetConfig, &bytes(0, 257), 0).is_err());
    }
}
