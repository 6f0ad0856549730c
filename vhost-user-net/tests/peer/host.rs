// SPDX-License-Identifier: Apache-2.0
//! The host around the device: a network namespace, a tap, a packet socket on it, the `weft-vhost` process.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};

use super::ring::PATIENCE;

const BINARY: &str = env!("CARGO_BIN_EXE_weft-vhost");

/// Calls `look` until it gives something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end and wants it to succeed.
pub fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("empty command")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("running {command}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A tap in a network namespace of this thread, and a folder for sockets.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub tap: String,
}

impl Host {
    /// Moves this thread into a new namespace and makes a tap there. Needs root.
    pub fn new(queues: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET); these tests need root")?;
        // Nothing but the test's frames is to be on the tap.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").context("disable_ipv6")?;
        let tap = "vm0".to_owned();
        let multi = if queues > 1 { " multi_queue" } else { "" };
        run(&format!("ip tuntap add dev {tap} mode tap vnet_hdr{multi}"))?;
        run(&format!("ip link set dev {tap} mtu 1500 up"))?;
        Ok(Self { dir: tempfile::tempdir()?, tap })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("vhost.sock")
    }

    /// Starts the device on the tap, listening on `socket`, with a control socket.
    pub fn backend(&self, more: &[&str]) -> Result<Backend> {
        let socket = self.socket();
        let backend = self.spawn(&["--socket", path(&socket)?, "--tap", &self.tap], more)?;
        eventually("the device's socket", || Ok(socket.exists().then_some(())))?;
        Ok(backend)
    }

    /// Starts the device with these arguments.
    pub fn spawn(&self, args: &[&str], more: &[&str]) -> Result<Backend> {
        self.spawn_as("backend", args, more)
    }

    /// Starts a device with these arguments, a control socket and a log of this name.
    pub fn spawn_as(&self, name: &str, args: &[&str], more: &[&str]) -> Result<Backend> {
        let control = self.path(&format!("{name}.ctl"));
        let log = self.path(&format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let child = Command::new(BINARY)
            .args(args)
            .args(["--control", path(&control)?])
            .args(more)
            .env("RUST_LOG", std::env::var("WEFT_VHOST_LOG").unwrap_or("info".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("starting weft-vhost")?;
        Ok(Backend { child, control, log })
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("path is not text")
}

/// A running `weft-vhost`, killed on drop.
pub struct Backend {
    pub child: Child,
    control: PathBuf,
    log: PathBuf,
}

impl Backend {
    /// Ends the process without a word.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends the process politely and returns whether it ended with 0.
    pub fn stop(&mut self) -> Result<bool> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        Ok(eventually("the device's end", || Ok(self.child.try_wait()?))?.success())
    }

    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends one request to the control socket.
    pub fn ask(&self, request: &str) -> Result<UnixStream> {
        let mut stream = eventually("the control socket", || Ok(UnixStream::connect(&self.control).ok()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{request}")?;
        Ok(stream)
    }

    /// One answer of the control socket.
    pub fn answer(&self, request: &str) -> Result<serde_json::Value> {
        let mut text = String::new();
        BufReader::new(self.ask(request)?).read_line(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("answer to {request}: {text:?}"))
    }

    pub fn metrics(&self) -> Result<serde_json::Value> {
        self.answer("metrics")
    }

    /// Waits until a counter of a ring has at least this value.
    pub fn wait_counter(&self, ring: usize, path: &str, least: u64) -> Result<()> {
        eventually(&format!("{path} of ring {ring} to reach {least}"), || {
            let metrics = self.metrics()?;
            let value = metrics["rings"][ring].pointer(path).and_then(serde_json::Value::as_u64);
            Ok((value.with_context(|| format!("no {path} in {metrics}"))? >= least).then_some(()))
        })
        .with_context(|| {
            format!("metrics: {}; log: {}", self.metrics().unwrap_or_default(), self.log().unwrap_or_default())
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("ending weft-vhost: {error}");
        }
        // The test harness shows this for a test that fails only.
        if std::env::args().all(|arg| arg != "--bench") {
            eprintln!("log of weft-vhost:\n{}", self.log().unwrap_or_default());
        }
    }
}

/// A packet socket on the tap: the host's end of the wire.
pub struct Wire {
    fd: OwnedFd,
    vnet: bool,
    interface: String,
    /// Frames are known to pass. A bench sees to that by itself, and counts the time of every call.
    ready: AtomicBool,
    is_bench: bool,
}

impl Wire {
    /// With `vnet`, frames have a ten-byte virtio-net header in both directions.
    pub fn open(interface: &str, vnet: bool) -> Result<Self> {
        const ETH_P_ALL: u16 = 3;
        let protocol = ETH_P_ALL.to_be();
        // SAFETY: socket has no memory arguments; the result is checked and owned here.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        ensure!(fd >= 0, "socket(AF_PACKET): {}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if vnet {
            set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
        }
        // The test's own frames need not come back to it.
        const PACKET_IGNORE_OUTGOING: i32 = 23;
        set_option(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING)?;
        let name = CString::new(interface)?;
        // SAFETY: the name is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol;
        addr.sll_ifindex = i32::try_from(index)?;
        let len = size_of_val(&addr) as u32;
        // SAFETY: the address is a sockaddr_ll of the given length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) };
        ensure!(bound == 0, "bind(AF_PACKET): {}", std::io::Error::last_os_error());
        let is_bench = std::env::args().any(|arg| arg == "--bench");
        Ok(Self { fd, vnet, interface: interface.to_owned(), ready: AtomicBool::new(false), is_bench })
    }

    /// Whether the kernel has noticed that a device is on the tap.
    fn is_running(&self) -> Result<bool> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.interface.bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: SIOCGIFFLAGS reads and writes an ifreq.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        ensure!(done == 0, "SIOCGIFFLAGS of {}: {}", self.interface, std::io::Error::last_os_error());
        // SAFETY: after SIOCGIFFLAGS the flags are the union's active field.
        Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_RUNNING != 0)
    }

    /// Waits until the kernel has noticed the device. Before that it throws frames for the tap away, and says that they
    /// are sent.
    fn wait_for_carrier(&self) -> Result<()> {
        if self.is_bench || self.is_running()? && self.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        eventually("carrier on the tap", || Ok(self.is_running()?.then_some(())))?;
        // The flag comes a moment before frames pass; a change of the interface, even to what it is, waits for that.
        run(&format!("ip link set dev {} up", self.interface))?;
        self.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Sends a frame to the guest, without its qdisc.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.wait_for_carrier()?;
        let sent = nix::unistd::write(&self.fd, frame).context("write to the packet socket")?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    }

    /// Sends a frame behind a virtio-net header.
    pub fn send_with(&self, header: [u8; 10], frame: &[u8]) -> Result<()> {
        ensure!(self.vnet, "the socket was opened without headers");
        self.send(&[&header[..], frame].concat())
    }

    /// Waits for a frame of the guest.
    pub fn receive(&self) -> Result<Vec<u8>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let timeout = PollTimeout::try_from(PATIENCE)?;
        let ready = poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout)?;
        ensure!(ready == 1, "no frame of the guest within {PATIENCE:?}");
        let mut frame = vec![0; 1 << 17];
        let len = nix::unistd::read(&self.fd, &mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }
}

/// Runs the device and wants it to fail with all of these words.
pub fn fails(args: &[&str], words: &[&str]) -> Result<()> {
    let output = Command::new(BINARY).args(args).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} succeeded");
    for word in words {
        ensure!(text.contains(word), "{args:?}: no {word:?} in {text}");
    }
    Ok(())
}

fn set_option(fd: &OwnedFd, level: i32, option: i32) -> Result<()> {
    let one = 1i32;
    // SAFETY: the option's value is an int.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const one).cast(), 4) };
    ensure!(done == 0, "setsockopt({option}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// A broadcast Ethernet frame of a test protocol, filled by a seed.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

/// An IPv4 TCP frame with this much payload and the checksum fields as an offloading sender leaves them.
pub fn tcp_frame(payload: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 8, 0]);
    let total = (40 + payload) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let checksum = !(fold(fold(sum(&ip))) as u16);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = fold(fold(sum(&ip[12..20]) + 6 + 20 + payload as u32)) as u16;
    bytes.extend_from_slice(&ip);
    bytes.extend_from_slice(&[0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    bytes.extend_from_slice(&pseudo.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend((0..payload).map(|at| at as u8));
    bytes
}

/// Reads everything a stream has.
pub fn read_all(mut stream: UnixStream) -> Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
