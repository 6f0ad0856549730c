// SPDX-License-Identifier: Apache-2.0
//! Namespaces, devices and a bpf filesystem that vanish with the test.
//!
//! Needs root: without it every test fails and says so. Tests run at the same time, each in namespaces of its thread, so
//! names of devices need not be unique.

pub(crate) mod content;
pub(crate) mod pool;
#[path = "../../src/sys.rs"]
#[expect(dead_code, reason = "the loader uses the rest of it")]
mod sys;

use std::{
    fs::{self, File},
    marker::PhantomData,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use weft_dataplane::{Dataplane, MapSizes, Options};

use self::pool::Pooled;

/// Where every sandbox has its bpf filesystem. One place for all, so that a dataplane of another sandbox pins its links in the one that
/// it is used in.
const BPFFS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bpf");

/// Puts the calling thread into a network namespace and a mount namespace of its own, with a fresh bpf filesystem. Dropping
/// it brings the thread back; what was made inside goes with the namespaces.
pub(crate) struct Sandbox {
    outside: [(File, CloneFlags); 2],
    /// The namespaces are the thread's.
    not_send: PhantomData<*const ()>,
}

impl Sandbox {
    pub(crate) fn enter() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test loads eBPF programs: run it as root");
        let outside = [(namespace("mnt"), CloneFlags::CLONE_NEWNS), (namespace("net"), CloneFlags::CLONE_NEWNET)];
        fs::create_dir_all(BPFFS).expect("make the mount point");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("unshare mount and network namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make mounts private");
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).expect("mount bpffs");
        ip(&["link", "set", "lo", "up"]);
        Self { outside, not_send: PhantomData }
    }

    /// Mount point of the bpf filesystem.
    pub(crate) fn bpffs(&self) -> &Path {
        Path::new(BPFFS)
    }

    /// Folder of this version's pins, `maps` or `links`.
    pub(crate) fn pins(&self, kind: &str) -> PathBuf {
        self.bpffs().join("weft").join(weft_abi::PinFolder.to_string()).join(kind)
    }

    /// Options for a small dataplane in the sandbox.
    pub(crate) fn options(&self) -> Options {
        let sizes = MapSizes {
            ports: 256,
            services: 1024,
            members: 8192,
            affinities: 1024,
            peers: 1024,
            classes: 1024,
            rules: 1024,
            blocks: 1024,
            verdicts: 1024,
            flows4: 4096,
            flows6: 4096,
            fragments: 1024,
            events_bytes: 1 << 16,
            ..MapSizes::for_node(1)
        };
        Options { sizes, ..Options::new(self.bpffs().join("weft")) }
    }

    /// Opens a dataplane on what is pinned here, or a new one.
    pub(crate) fn open(&self) -> Dataplane {
        pool::open(&self.options())
    }

    /// A dataplane as new, where it does not matter that others have used it and that its maps are not pinned.
    pub(crate) fn pooled(&self) -> Pooled {
        Pooled::take(self, &self.options())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A thread that the test started may not have ended for the kernel yet, and shares its root folder with this one:
        // setns refuses that.
        unshare(CloneFlags::CLONE_FS).expect("unshare root folder");
        for (file, kind) in &self.outside {
            setns(file, *kind).expect("go back to the namespace outside");
        }
    }
}

/// Another network namespace, of a simulated workload or node.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare network namespace");
            ip(&["link", "set", "lo", "up"]);
            namespace("net")
        });
        Self { file: file.join().expect("thread in a new network namespace") }
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter network namespace");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// A veth pair, both ends up; the host's end is in the caller's namespace. Dropping it removes the pair.
pub(crate) struct Veth {
    /// Name of the host's end.
    pub(crate) name: String,
    /// Index of the host's end.
    pub(crate) ifindex: u32,
}

impl Veth {
    /// Name of the other end, in `peer`.
    pub(crate) const PEER: &str = "eth0";

    pub(crate) fn new(name: &str, peer: &Netns) -> Self {
        Self::create(name, &[], peer)
    }

    /// With a chosen index for the host's end.
    pub(crate) fn with_index(name: &str, ifindex: u32, peer: &Netns) -> Self {
        Self::create(name, &["index", &ifindex.to_string()], peer)
    }

    fn create(name: &str, more: &[&str], peer: &Netns) -> Self {
        let peer_netns = peer.path();
        let mut arguments = vec!["link", "add", "name", name];
        arguments.extend(more);
        arguments.extend(["type", "veth", "peer", "name", Self::PEER, "netns", peer_netns.as_str()]);
        ip(&arguments);
        ip(&["link", "set", name, "up"]);
        peer.run(|| ip(&["link", "set", Self::PEER, "up"]));
        let ifindex = nix::net::if_::if_nametoindex(name).expect("index of the new device");
        Self { name: name.to_owned(), ifindex }
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // Removing one end removes both. A test that fails has said why already.
        if !thread::panicking() {
            ip(&["link", "delete", &self.name]);
        }
    }
}

/// Runs `ip` in the calling thread's namespaces.
pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("run ip (iproute2)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
}

/// Waits for something that the kernel does in its own time.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn namespace(kind: &str) -> File {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).unwrap_or_else(|error| panic!("open {path}: {error}"))
}
