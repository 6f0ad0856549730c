// SPDX-License-Identifier: Apache-2.0
//! What the process takes of the host's memory, beside the guest's.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
/// `/proc/PID/status` is shorter.
const STATUS_LEN: usize = 4096;

/// A view of the process's own memory figures that still works behind the sandbox.
#[derive(Debug)]
pub struct Footprint(File);

/// Resident memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// The process's own.
    pub own: u64,
    /// Pages of the program's and the libraries' files, which all processes of the program share.
    pub files: u64,
}

impl Footprint {
    /// Opens the figures; to be called before the file system is out of reach.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/status").map(Self)
    }

    /// The figures of now. The guest's memory is not in them: shared memory is counted elsewhere (`RssShmem`).
    pub fn resident(&self) -> Option<Resident> {
        let mut bytes = [0; STATUS_LEN];
        let len = self.0.read_at(&mut bytes, 0).ok()?;
        parse(&String::from_utf8_lossy(bytes.get(..len)?))
    }
}

fn parse(status: &str) -> Option<Resident> {
    let field = |name: &str| -> Option<u64> {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Resident { own: field("RssAnon:")?, files: field("RssFile:")? })
}

/// Lets go of the pages of code and constants that were touched so far. Most served the start only (the command line,
/// the sandbox); what is needed again comes back from the page cache.
pub fn forget_start() {
    // SAFETY: the callback has the type the function wants and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(forget_object), std::ptr::null_mut()) };
}

unsafe extern "C" fn forget_object(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description for the time of the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the description has `dlpi_phnum` headers.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // What was never writable is as it is in the file.
    let constant = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(constant) {
        let start = (info.dlpi_addr + header.p_vaddr) as usize & !(PAGE - 1);
        let end = ((info.dlpi_addr + header.p_vaddr + header.p_memsz) as usize) & !(PAGE - 1);
        // SAFETY: whole pages of a mapping of a file that was never written to: they come back as they were.
        let done = unsafe { libc::madvise(start as *mut c_void, end.saturating_sub(start), libc::MADV_DONTNEED) };
        if done != 0 {
            // The kernel's own object (vdso) is none of a file.
            tracing::debug!(error = %io::Error::last_os_error(), "madvise of the program's code");
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_after_its_code_was_forgotten() {
        let footprint = Footprint::open().expect("open");
        forget_start();
        // Other tests run meanwhile, so the figures themselves say nothing.
        let resident = footprint.resident().expect("figures");
        assert!(resident.own > 0 && resident.files > 0, "{resident:?}");
    }

    #[test]
    fn a_status_without_the_figures_is_none() {
        assert_eq!(parse("RssAnon:\t 12 kB\nRssFile:\t 3 kB\n"), Some(Resident { own: 12288, files: 3072 }));
        assert_eq!(parse("VmRSS: 1 kB\n"), None);
        assert_eq!(parse("RssAnon: x kB\nRssFile: 3 kB\n"), None);
    }
}
