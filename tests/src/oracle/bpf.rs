// SPDX-License-Identifier: Apache-2.0

//! `bpf(2)` as far as the oracle needs it: to find the very programs that an agent has loaded, however they are attached, and to
//! run a packet through one.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use weft_abi::{DropReason, Tally};

const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const PROG_GET_NEXT_ID: libc::c_int = 11;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// Bytes of `union bpf_attr` that are given; the kernel takes any number whose rest is zero.
type Attr = [u64; 16];

/// What a program made of a packet.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) action: u32,
    pub(super) packet: Vec<u8>,
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

fn bpf(command: libc::c_int, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its length, and every address in it is of a buffer that its caller holds.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn descriptor(command: libc::c_int, attr: &mut Attr) -> io::Result<OwnedFd> {
    let raw = bpf(command, attr)?;
    // SAFETY: the kernel just opened it for this process, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Two 32-bit fields side by side, as the kernel reads them.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn first_of(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

fn second_of(word: u64) -> u32 {
    let [.., a, b, c, d] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// `bpf_obj_get_info_by_fd`.
fn info(fd: &OwnedFd, buffer: &mut [u64]) -> io::Result<()> {
    let length = u32::try_from(size_of_val(buffer)).map_err(io::Error::other)?;
    let mut attr = Attr::default();
    attr[0] = pair(u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?, length);
    attr[1] = buffer.as_mut_ptr().expose_provenance() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// The map that is pinned at `path`.
fn open_map(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr::default();
    attr[0] = name.as_ptr().expose_provenance() as u64;
    descriptor(OBJ_GET, &mut attr).with_context(|| format!("open the map at {}", path.display()))
}

/// The kernel's number of the map that is pinned at `path`.
pub(super) fn map_id(path: &Path) -> Result<u32> {
    let map = open_map(path)?;
    // struct bpf_map_info: type, id.
    let mut words = [0; 16];
    info(&map, &mut words).context("ask a map for its number")?;
    Ok(second_of(words[0]))
}

/// The map of counters of drops, all of which are read by one call: there are dozens, and every packet is a question about all.
#[derive(Debug)]
pub(super) struct Drops {
    map: OwnedFd,
    cpus: usize,
}

impl Drops {
    /// That of the agent whose maps are pinned in the folder `pins`.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let map = open_map(&pins.join(format!("{}/maps/{}", weft_abi::PinFolder, weft_abi::map::DROPS)))?;
        Ok(Self { map, cpus: possible_cpus()? })
    }

    /// Packets dropped, by reason in the order of [`DropReason::ALL`], on all CPUs.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn read(&self) -> Result<Vec<u64>> {
        let reasons = DropReason::ALL.len();
        let mut keys = vec![0_u32; reasons];
        let mut values = vec![Tally::default(); reasons * self.cpus];
        let mut next = 0_u64;
        let mut attr = Attr::default();
        // struct batch: in_batch, out_batch, keys, values, count and map_fd.
        attr[1] = (&raw mut next).expose_provenance() as u64;
        attr[2] = keys.as_mut_ptr().expose_provenance() as u64;
        attr[3] = values.as_mut_ptr().expose_provenance() as u64;
        attr[4] = pair(u32::try_from(reasons)?, u32::try_from(self.map.as_raw_fd())?);
        match bpf(MAP_LOOKUP_BATCH, &mut attr) {
            // The kernel says so where the last entry is among them.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error).context("read the drops"),
            Ok(_) | Err(_) => {}
        }
        let (read, of_each) = (first_of(attr[4]) as usize, values.chunks(self.cpus));
        ensure!(read == reasons && keys.iter().copied().eq(0..u32::try_from(reasons)?), "{read} of {reasons} drops");
        Ok(of_each.map(|tallies| tallies.iter().fold(0, |sum, tally| tally.packets.wrapping_add(sum))).collect())
    }
}

/// How many CPUs a map's value is kept for.
fn possible_cpus() -> Result<usize> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    Ok(last.with_context(|| format!("{path} says {text}"))? + 1)
}

impl Program {
    /// The newest program of this name that uses the map of this number.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find(name: &str, map: u32) -> Result<Self> {
        let mut found = None;
        let mut attr = Attr::default();
        let mut id = 0;
        loop {
            attr.fill(0);
            attr[0] = pair(id, 0);
            if bpf(PROG_GET_NEXT_ID, &mut attr).is_err() {
                break;
            }
            id = second_of(attr[0]);
            attr.fill(0);
            attr[0] = pair(id, 0);
            // It may have gone meanwhile.
            let Ok(fd) = descriptor(PROG_GET_FD_BY_ID, &mut attr) else { continue };
            if uses(&fd, name, map)? {
                found = Some(Self(fd));
            }
        }
        found.with_context(|| format!("no program {name} is loaded for this node"))
    }

    /// Runs the program on `packet` as it comes by device `ifindex`, which is one of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn run(&self, packet: &[u8], ifindex: u32) -> Result<Ran> {
        let mut out = vec![0_u8; packet.len() + 256];
        // struct __sk_buff: ingress_ifindex is word 9, ifindex word 10.
        let mut context = [0_u32; 48];
        context[10] = ifindex;
        let mut attr = Attr::default();
        attr[0] = pair(u32::try_from(self.0.as_raw_fd())?, 0);
        attr[1] = pair(u32::try_from(packet.len())?, u32::try_from(out.len())?);
        attr[2] = packet.as_ptr().expose_provenance() as u64;
        attr[3] = out.as_mut_ptr().expose_provenance() as u64;
        attr[4] = pair(1, 0);
        attr[5] = pair(u32::try_from(size_of_val(&context))?, 0);
        attr[6] = context.as_ptr().expose_provenance() as u64;
        bpf(PROG_TEST_RUN, &mut attr).context("run a program on a packet")?;
        out.truncate(second_of(attr[1]) as usize);
        Ok(Ran { action: second_of(attr[0]), packet: out })
    }
}

/// struct bpf_prog_info: the number of map ids is at byte 52, their address at 56, the name at 64.
fn uses(program: &OwnedFd, name: &str, map: u32) -> Result<bool> {
    let mut ids = [0_u32; 64];
    let mut words = [0_u64; 32];
    words[6] = pair(0, u32::try_from(ids.len())?);
    words[7] = ids.as_mut_ptr().expose_provenance() as u64;
    info(program, &mut words).context("ask a program for its maps")?;
    let text: Vec<u8> = words[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    let count = (second_of(words[6]) as usize).min(ids.len());
    Ok(text == name.as_bytes() && ids[..count].contains(&map))
}

#[cfg(test)]
mod tests {
    use super::{first_of, pair, second_of};

    #[test]
    fn two_fields_stand_in_their_order() {
        assert_eq!((first_of(pair(1, 2)), second_of(pair(1, 2))), (1, 2));
        assert_eq!(pair(1, 2).to_ne_bytes()[..4], 1_u32.to_ne_bytes());
    }
}
