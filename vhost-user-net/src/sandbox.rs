// SPDX-License-Identifier: Apache-2.0
//! What the process gives up once the tap and the sockets are open: its user, its capabilities, the file system, and
//! every system call it does not need. Applied before the first thread is made, so that all threads are under it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{setgroups, setresgid, setresuid};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use thiserror::Error;

use crate::args::Identity;

/// Why the process cannot be confined.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A system call failed.
    #[error("{call}")]
    System {
        /// Name of the call.
        call: &'static str,
        /// What it said.
        source: Errno,
    },
    /// Landlock failed.
    #[error("landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter cannot be made.
    #[error("system call filter")]
    Filter(#[from] BackendError),
    /// The filter cannot be installed.
    #[error("installing the system call filter")]
    Install(#[from] seccompiler::Error),
}

impl From<Infallible> for SandboxError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Becomes another user, for good.
///
/// # Errors
/// When the process may not.
pub fn become_user(identity: Identity) -> Result<(), SandboxError> {
    let system = |call| move |source| SandboxError::System { call, source };
    setgroups(&[]).map_err(system("setgroups"))?;
    setresgid(identity.gid, identity.gid, identity.gid).map_err(system("setresgid"))?;
    setresuid(identity.uid, identity.uid, identity.uid).map_err(system("setresuid"))
}

/// Gives everything else up.
///
/// # Errors
/// When the kernel refuses. A kernel without landlock is reported in the log and not an error; a kernel without seccomp
/// is one.
pub fn enter() -> Result<(), SandboxError> {
    prctl::set_no_new_privs().map_err(|source| SandboxError::System { call: "prctl(PR_SET_NO_NEW_PRIVS)", source })?;
    drop_capabilities()?;
    let status = leave_file_system()?;
    if status != RulesetStatus::FullyEnforced {
        tracing::warn!(?status, "this kernel's landlock cannot keep the process from all of the file system");
    }
    // Threads are made with `clone`, whose flags can be checked; the library falls back to it.
    let no_clone3 = deny(libc::SYS_clone3, libc::ENOSYS)?;
    let allowed = allow(rules()?)?;
    apply_filter(&no_clone3)?;
    apply_filter(&allowed)?;
    Ok(())
}

fn drop_capabilities() -> Result<(), SandboxError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    // Two sets of effective, permitted and inheritable bits, all clear.
    let none = [0u32; 6];
    // SAFETY: capset reads the header and, for version 3, six words.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
        .map(|_| ())
        .map_err(|source| SandboxError::System { call: "capset", source })
}

fn leave_file_system() -> Result<RulesetStatus, SandboxError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

fn target() -> Result<seccompiler::TargetArch, SandboxError> {
    Ok(std::env::consts::ARCH.try_into()?)
}

fn deny(call: i64, errno: i32) -> Result<BpfProgram, SandboxError> {
    let rules = BTreeMap::from([(call, vec![])]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), target()?)?;
    Ok(filter.try_into()?)
}

/// Everything that is not in the rules fails with EPERM.
fn allow(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, SandboxError> {
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, target()?)?.try_into()?)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SandboxError> {
    let mut rules: BTreeMap<_, _> = UNCONDITIONAL.iter().map(|call| (*call, vec![])).collect();
    let is = |arg, value: u64| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let bits = |arg, mask: u64, value| {
        SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
    };
    let ioctls = [libc::TUNSETOFFLOAD, libc::TUNSETVNETHDRSZ, libc::TUNSETQUEUE, libc::FIONBIO];
    for request in ioctls {
        add(&mut rules, libc::SYS_ioctl, is(1, request)?)?;
    }
    add(&mut rules, libc::SYS_socket, is(0, libc::AF_UNIX as u64)?)?;
    // Threads, not processes.
    add(&mut rules, libc::SYS_clone, bits(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)?)?;
    // No memory that can be run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        add(&mut rules, call, bits(2, libc::PROT_EXEC as u64, 0)?)?;
    }
    // How glibc spells fstat.
    add(&mut rules, libc::SYS_newfstatat, bits(3, libc::AT_EMPTY_PATH as u64, libc::AT_EMPTY_PATH as u64)?)?;
    add(&mut rules, libc::SYS_prctl, is(0, libc::PR_SET_NAME as u64)?)?;
    // glibc names the anonymous memory it maps.
    add(&mut rules, libc::SYS_prctl, is(0, libc::PR_SET_VMA as u64)?)?;
    Ok(rules)
}

fn add(
    rules: &mut BTreeMap<i64, Vec<SeccompRule>>,
    call: i64,
    condition: SeccompCondition,
) -> Result<(), SandboxError> {
    rules.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
    Ok(())
}

const UNCONDITIONAL: &[i64] = &[
    // Frames, messages, notifications.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Connections.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_fcntl,
    libc::SYS_close,
    // The process's own figures, from a file opened before.
    libc::SYS_pread64,
    // Guest memory.
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    // Threads, time, the end. `clone3` is here for the first filter to answer.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
