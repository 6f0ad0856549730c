// SPDX-License-Identifier: Apache-2.0
//! Linux guests in QEMU (software emulation), their monitors, and the traffic that watches them.
#![allow(unreachable_pub, clippy::allow_attributes, reason = "shared in the manner of `peer`")]

pub mod monitor;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::peer::host::{Host, run};

/// How long a guest may take to its first words, on a machine that does many other things.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a stream may stand still.
pub const STREAM_PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the files that are fetched from the guest and by it.
pub const FILE_BYTES: usize = 24 << 20;
/// Bytes of a guest's memory, in the form of QEMU's options.
const MEMORY: &str = "256M";

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

/// What the guest does after its modules: an address, a web server with random bytes, one download, a stream of records
/// that it checks one by one and keeps, and then a word on its link again and again.
const INIT: &str = "
ifconfig lo up
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
dd if=/dev/urandom of=/www/big bs=1048576 count=24 2>/dev/null
md5sum /www/big > /www/sum
httpd -h /www
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset $((1 << cpu)) ping -q -c 5 10.9.0.1 >/dev/null; done
echo GUEST-READY $(nproc) processors
echo LINK-AT-FIRST $(cat /sys/class/net/eth0/carrier_changes) changes
until wget -q -O /www/down http://10.9.0.1:8000/big; do sleep 1; done
echo DOWNLOADED $(md5sum < /www/down)
rm /www/down
nc 10.9.0.1 8001 | tee /records | awk -f /check
echo RECORDS-SUM $(md5sum < /records)
while true; do echo LINK $(cat /sys/class/net/eth0/carrier_changes) changes; sleep 1; done
";

/// Checks records as [`traffic::record`] makes them: number, hash of the number, as many letters as the number says.
const CHECK: &str = r#"
{
    n = NR - 1
    if (NF != 3 || $1 != n || $2 != (n * 2654435 + 12345) % 1000003 || length($3) != 1 + n % 700) bad++
}
END { print "RECORDS " NR " bad " bad + 0 }
"#;

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

/// Makes a guest's initial file system. Each guest has a file of its own: QEMU reads it while the next one is made.
fn initramfs(dir: &Path, name: &str, modules: &Path) -> Result<PathBuf> {
    let root = dir.join(format!("{name}.root"));
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
    std::fs::write(root.join("check"), CHECK)?;
    run(&format!("chmod 755 {}", root.join("init").display()))?;
    let image = dir.join(format!("{name}.initrd"));
    let pack = format!("cd {} && find . | cpio -o -H newc --quiet > {}", root.display(), image.display());
    ensure!(Command::new("sh").args(["-c", &pack]).status()?.success(), "cpio");
    Ok(image)
}

/// What kind of guest to boot.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Name for its files.
    pub name: String,
    /// Where its network device finds the back end: a QEMU chardev.
    pub chardev: String,
    /// Whether it speaks what was before virtio 1.
    pub legacy: bool,
    /// Queue pairs and processors.
    pub pairs: usize,
    /// Whether QEMU tells the guest of its link: that it is down while no device is connected.
    pub status: bool,
    /// More arguments for QEMU.
    pub more: Vec<String>,
}

impl Machine {
    /// A guest with one processor and one pair, whose device connects to `socket` and connects again.
    pub fn connecting(name: &str, socket: &Path) -> Self {
        let chardev = format!("socket,id=c0,path={},reconnect=1", socket.display());
        Self { name: name.to_owned(), chardev, pairs: 1, status: true, ..Self::default() }
    }

    /// The same, but the guest's device listens.
    pub fn listening(name: &str, socket: &Path) -> Self {
        let chardev = format!("socket,id=c0,path={},server=on,wait=off", socket.display());
        Self { chardev, ..Self::connecting(name, socket) }
    }

    /// Boots the guest.
    pub fn boot(&self, host: &Host) -> Result<Guest> {
        let (kernel, modules) = kernel()?;
        let initrd = initramfs(host.dir.path(), &self.name, &modules)?;
        let console = host.path(&format!("{}.console", self.name));
        let (pairs, legacy) = (self.pairs, self.legacy);
        // A busy machine calibrates for ever what it can be told.
        let clock = weft_probe::clock::guest_parameters();
        let multi = if pairs > 1 { ",mq=on" } else { "" };
        let status = if self.status { "on" } else { "off" };
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "q35,memory-backend=m", "-accel", "tcg,tb-size=32", "-cpu", "max", "-smp", &pairs.to_string()])
            .args(["-m", MEMORY, "-object", &format!("memory-backend-memfd,id=m,size={MEMORY},share=on")])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check {clock}"))
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", &self.chardev, "-netdev", &format!("vhost-user,id=n0,chardev=c0,queues={pairs}")])
            // QEMU 7.2 crashes in software emulation when a vhost-user device has MSI-X vectors.
            .arg("-device")
            .arg(format!(
                "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02,romfile=,vectors=0,disable-modern={legacy},\
                 status={status}{multi}"
            ))
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(host.path(&format!("{}.qemu", self.name)))?)
            .spawn()
            .context("qemu-system-x86_64; install qemu-system-x86")?;
        Ok(Guest { child, console })
    }
}

/// A running guest, killed on drop.
pub struct Guest {
    child: Child,
    console: PathBuf,
}

impl Guest {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn text(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a line on the console and returns what follows the words.
    pub fn wait_for(&mut self, words: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = self.text();
            // The last line may not be whole yet.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some((_, rest)) = whole.lines().find_map(|line| line.split_once(words)) {
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
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("ending qemu: {error}");
        }
        eprintln!("console of {}:\n{}", self.console.display(), self.text());
    }
}
