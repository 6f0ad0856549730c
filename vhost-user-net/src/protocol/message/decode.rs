// SPDX-License-Identifier: Apache-2.0
//! From bytes and descriptors to a [`Message`].

use std::os::fd::OwnedFd;

use super::reader::Reader;
use super::{Header, MAX_CONFIG, MAX_TABLE_REGIONS, Message, MessageError, RegionSpec, Request, VringAddr, VringState};

const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NOFD: u64 = 1 << 8;

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
        let specs: Vec<_> = (0..count).map(|_| region(&mut reader)).collect();
        Ok(Message::SetMemTable(specs.into_iter().zip(self.fds.drain(..)).collect()))
    }

    fn single_region(&self) -> Result<RegionSpec, MessageError> {
        let mut reader = self.size(40)?;
        let _padding = reader.u64();
        Ok(region(&mut reader))
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

fn region(reader: &mut Reader<'_>) -> RegionSpec {
    RegionSpec { guest_addr: reader.u64(), size: reader.u64(), user_addr: reader.u64(), mmap_offset: reader.u64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(request: Request, size: usize) -> Header {
        Header { request: request as u32, flags: 1, size: size as u32 }
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
