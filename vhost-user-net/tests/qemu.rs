// SPDX-License-Identifier: Apache-2.0
//! A Linux guest in QEMU (software emulation) behind the device: ping, TCP streams both ways, the device killed and
//! restarted under a stream, both socket roles, live migration between two devices.
//!
//! Needs the Debian packages `qemu-system-x86`, `busybox-static`, `linux-image-cloud-amd64`, `cpio`, `iproute2` and
//! `iputils-ping`; a missing one is a failure.

mod peer;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peer::host::{Backend, Host, eventually, run};

const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
const STREAM_PATIENCE: Duration = Duration::from_secs(60);
const STREAM_BYTES: usize = 24 << 20;

/// What the guest does after its modules: an address, a web server with random bytes, one download.
const INIT: &str = "
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
dd if=/dev/urandom of=/www/big bs=1048576 count=24 2>/dev/null
md5sum /www/big > /www/sum
httpd -h /www
echo GUEST-READY
until wget -q -O /www/down http://10.9.0.1:8000/big; do sleep 1; done
echo DOWNLOADED $(md5sum < /www/down)
while true; do sleep 1000; done
";

/// Where the kernel and its modules are.
fn kernel() -> Result<(PathBuf, PathBuf)> {
    let mut found: Vec<_> = std::fs::read_dir("/lib/modules")
        .context("/lib/modules; install linux-image-cloud-amd64")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().ends_with("cloud-amd64"))
        .collect();
    found.sort();
    let modules = found.pop().context("no cloud kernel; install linux-image-cloud-amd64")?;
    let release = modules.file_name().context("modules folder")?.to_string_lossy().into_owned();
    Ok((PathBuf::from(format!("/boot/vmlinuz-{release}")), modules))
}

/// Makes the guest's initial file system.
fn initramfs(dir: &Path, modules: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    for folder in ["bin", "proc", "sys", "dev", "www", "lib"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).context("busybox; install busybox-static")?;
    let mut init = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n".to_owned();
    init.push_str("mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n");
    for module in MODULES {
        let name = format!("{module}.ko");
        let found = Command::new("find").arg(modules).args(["-name", &name]).output()?;
        let path = String::from_utf8(found.stdout)?;
        std::fs::copy(path.trim(), root.join("lib").join(&name)).with_context(|| format!("module {name}"))?;
        init.push_str(&format!("insmod /lib/{name}\n"));
    }
    init.push_str(INIT);
    std::fs::write(root.join("init"), init)?;
    run(&format!("chmod 755 {}", root.join("init").display()))?;
    let image = dir.join("initrd");
    let pack = format!("cd {} && find . | cpio -o -H newc --quiet > {}", root.display(), image.display());
    ensure!(Command::new("sh").args(["-c", &pack]).status()?.success(), "cpio");
    Ok(image)
}

/// A running guest, killed on drop.
struct Guest {
    child: Child,
    console: PathBuf,
}

impl Guest {
    /// Boots a guest whose network device is on `chardev` and speaks virtio 1 or what was before it.
    fn boot(host: &Host, chardev: &str, legacy: bool) -> Result<Self> {
        Self::boot_as("guest", host, chardev, legacy, &[])
    }

    /// The same with a name for its files and more arguments.
    fn boot_as(name: &str, host: &Host, chardev: &str, legacy: bool, more: &[&str]) -> Result<Self> {
        let (kernel, modules) = kernel()?;
        let initrd = initramfs(host.dir.path(), &modules)?;
        let console = host.path(&format!("{name}.console"));
        let child = Command::new("qemu-system-x86_64")
            // microvm boots faster, but one boot in a few hangs before its first line under load.
            .args(["-M", "q35,memory-backend=m", "-accel", "tcg,tb-size=32", "-cpu", "max"])
            .args(["-m", "192", "-object", "memory-backend-memfd,id=m,size=192M,share=on"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-chardev", chardev, "-netdev", "vhost-user,id=n0,chardev=c0"])
            // QEMU 7.2 crashes in software emulation when a vhost-user device has MSI-X vectors.
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02,romfile=,vectors=0,disable-modern={legacy}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .args(more)
            .stderr(std::fs::File::create(host.path(&format!("{name}.qemu")))?)
            .spawn()
            .context("qemu-system-x86_64; install qemu-system-x86")?;
        Ok(Self { child, console })
    }

    /// Waits for a line on the console and returns what follows the words.
    fn wait_for(&mut self, words: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = std::fs::read_to_string(&self.console).unwrap_or_default();
            let line = text.lines().find_map(|line| line.split_once(words));
            if let Some((_, rest)) = line.filter(|_| text.ends_with('\n')) {
                return Ok(rest.trim().to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("qemu ended with {status}; console:\n{text}");
            }
            ensure!(Instant::now() < deadline, "no {words:?} within {patience:?}; console:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(|_| ())) {
            eprintln!("ending qemu: {error}");
        }
    }
}

fn md5(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.split_whitespace().next().context("md5sum")?.to_owned())
}

/// Fetches a file from the guest; `midway` is called once after a part of it came.
fn fetch(path: &str, mut midway: impl FnMut() -> Result<()>) -> Result<Vec<u8>> {
    let address = "10.9.0.2:80".parse()?;
    let mut stream = TcpStream::connect_timeout(&address, STREAM_PATIENCE)?;
    stream.set_read_timeout(Some(STREAM_PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut all = Vec::new();
    let mut part = vec![0; 1 << 16];
    let mut called = false;
    loop {
        let count = stream.read(&mut part).context("reading from the guest")?;
        if count == 0 {
            break;
        }
        all.extend_from_slice(&part[..count]);
        if all.len() > STREAM_BYTES / 8 && !called {
            called = true;
            midway()?;
        }
    }
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no HTTP header")?;
    Ok(all.split_off(end + 4))
}

/// Serves `bytes` to the first client that asks.
fn serve_once(listener: &TcpListener, bytes: &[u8]) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut request = [0; 1024];
    let _len = stream.read(&mut request)?;
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
    stream.write_all(bytes)?;
    Ok(())
}

fn set_address(host: &Host) -> Result<()> {
    run(&format!("ip addr add 10.9.0.1/24 dev {}", host.tap))
}

/// Everything a guest has to be able to do; `midway` happens during a download from it.
fn exercise(guest: &mut Guest, midway: impl FnMut() -> Result<()>) -> Result<()> {
    guest.wait_for("GUEST-READY", BOOT_PATIENCE)?;
    run("ping -c 3 -i 0.2 -W 5 10.9.0.2")?;
    let listener = TcpListener::bind("10.9.0.1:8000")?;
    let bytes: Vec<u8> = (0..STREAM_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    serve_once(&listener, &bytes)?;
    let got = guest.wait_for("DOWNLOADED", STREAM_PATIENCE)?;
    ensure!(got.starts_with(&md5(&bytes)?), "the guest got {got}");
    let sum = String::from_utf8(fetch("sum", || Ok(()))?)?;
    let big = fetch("big", midway)?;
    ensure!(sum.starts_with(&md5(&big)?), "{} bytes of the guest, sum {sum}", big.len());
    Ok(())
}

#[test]
fn a_guest_talks_through_a_device_that_is_killed_and_restarted() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&["--user", "65534:65534", "--socket-mode", "0666"])?;
    set_address(&host)?;
    let chardev = format!("socket,id=c0,path={},reconnect=1", host.socket().display());
    let mut guest = Guest::boot(&host, &chardev, false)?;
    exercise(&mut guest, || {
        let metrics = backend.metrics()?;
        for feature in ["MRG_RXBUF", "EVENT_IDX", "VERSION_1", "HOST_TSO4", "GUEST_TSO4", "GUEST_CSUM"] {
            let features = metrics["features"].as_array().context("features")?;
            ensure!(features.iter().any(|name| name == feature), "{feature} is not in force: {metrics}");
        }
        for ring in [0, 1] {
            ensure!(metrics["rings"][ring]["violations"] == 0, "violations: {metrics}");
        }
        backend.kill()?;
        backend = host.backend(&["--user", "65534:65534", "--socket-mode", "0666"])?;
        Ok(())
    })?;
    ensure!(backend.metrics()?["connected"] == true, "not connected");
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

#[test]
fn a_legacy_guest_whose_vmm_listens_is_served_again_after_a_restart() -> Result<()> {
    let host = Host::new(1)?;
    set_address(&host)?;
    let socket = host.socket();
    let chardev = format!("socket,id=c0,path={},server=on,wait=off", socket.display());
    let mut guest = Guest::boot(&host, &chardev, true)?;
    let socket = socket.to_str().context("path")?.to_owned();
    let args = ["--socket", &socket, "--tap", &host.tap, "--client"];
    let mut backend = host.spawn(&args, &[])?;
    exercise(&mut guest, || {
        backend.kill()?;
        backend = host.spawn(&args, &[])?;
        Ok(())
    })?;
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

/// A QEMU monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let stream = eventually("the monitor", || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(STREAM_PATIENCE))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line()?;
        monitor.ask(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<serde_json::Value> {
        let mut text = String::new();
        self.0.read_line(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("monitor: {text:?}"))
    }

    fn ask(&mut self, request: &str) -> Result<serde_json::Value> {
        self.0.get_mut().write_all(request.as_bytes())?;
        loop {
            let answer = self.line()?;
            ensure!(answer.get("error").is_none(), "{request}: {answer}");
            if answer.get("event").is_none() {
                return Ok(answer);
            }
        }
    }

    fn migrate(&mut self, uri: &str) -> Result<()> {
        self.ask(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#))?;
        let deadline = Instant::now() + STREAM_PATIENCE;
        loop {
            let answer = self.ask(r#"{"execute":"query-migrate"}"#)?;
            match answer["return"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => bail!("{answer}"),
                _ => ensure!(Instant::now() < deadline, "migration not done: {answer}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_guest_migrates_between_two_devices_under_a_stream() -> Result<()> {
    let host = Host::new(1)?;
    for command in [
        "ip tuntap add dev vm1 mode tap vnet_hdr",
        "ip link add br0 type bridge",
        "ip link set vm0 master br0",
        "ip link set vm1 master br0 up",
        "ip link set br0 up",
        "ip addr add 10.9.0.1/24 dev br0",
    ] {
        run(command)?;
    }
    let source_device = host.backend(&[])?;
    let target_socket = host.path("target.sock");
    let target_text = target_socket.to_str().context("path")?;
    let target_device = host.spawn_as("target", &["--socket", target_text, "--tap", "vm1"], &[])?;
    eventually("the target's socket", || Ok(target_socket.exists().then_some(())))?;
    let chardev = |path: &Path| format!("socket,id=c0,path={},reconnect=1", path.display());
    let monitor = host.path("monitor.sock");
    let monitor_arg = format!("unix:{},server=on,wait=off", monitor.display());
    let stream = format!("unix:{}", host.path("migrate.sock").display());
    let mut source = Guest::boot_as("source", &host, &chardev(&host.socket()), false, &["-qmp", &monitor_arg])?;
    let target = Guest::boot_as("target", &host, &chardev(&target_socket), false, &["-incoming", &stream])?;
    exercise(&mut source, || {
        Monitor::connect(&monitor)?.migrate(&stream)?;
        Ok(())
    })?;
    run("ping -c 2 -i 0.2 -W 5 10.9.0.2")?;
    let frames = |device: &Backend, ring: usize| -> Result<u64> {
        device.metrics()?["rings"][ring]["frames"].as_u64().context("frames")
    };
    ensure!(frames(&target_device, 0)? > 100 && frames(&target_device, 1)? > 100, "the target moved nothing");
    ensure!(source_device.log()?.contains("ring stopped"), "the source still runs");
    drop(target);
    Ok(())
}
