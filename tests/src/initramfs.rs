// SPDX-License-Identifier: Apache-2.0

//! The guest's whole system: Debian's cloud kernel, busybox, the virtio modules, `weft-probe`, and an init script.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Modules in the order in which they must be loaded (virtio needs virtio_ring, and says nothing where it is missing).
const MODULES: [&str; 6] = ["virtio_ring", "virtio", "virtio_mmio", "failover", "net_failover", "virtio_net"];

/// Folders of the kernel's package that have them.
const MODULE_FOLDERS: [&str; 3] = ["drivers/virtio", "net/core", "drivers/net"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Debian's cloud kernel.
pub(crate) struct Kernel {
    /// The image.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Finds the newest one.
    pub(crate) fn find() -> Result<Self> {
        let mut versions: Vec<String> = fs::read_dir("/boot")
            .context("read /boot")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
            .filter(|version| version.contains("cloud"))
            .collect();
        versions.sort();
        let version = versions.pop().context("no cloud kernel in /boot: run `make setup`")?;
        Ok(Self {
            image: format!("/boot/vmlinuz-{version}").into(),
            modules: format!("/lib/modules/{version}/kernel").into(),
        })
    }

    fn module(&self, name: &str) -> Result<PathBuf> {
        MODULE_FOLDERS
            .iter()
            .map(|folder| self.modules.join(folder).join(format!("{name}.ko")))
            .find(|path| path.exists())
            .with_context(|| format!("no module {name} in {}", self.modules.display()))
    }
}

/// The guest's first process: it loads the modules and lets the probe serve the serial line.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /tmp /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox --install -s /bin
dmesg -n 1
for module in MODULES; do insmod /modules/$module.ko || echo "no module $module"; done
for file in all default eth0; do echo 0 >/proc/sys/net/ipv6/conf/$file/accept_dad; done
ip link set lo up
stty -F /dev/ttyS0 raw -echo
weft-probe console </dev/ttyS0 >/dev/ttyS0 2>&1
poweroff -f
"#;

/// What udhcpc does with its lease.
const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip address flush dev $interface scope global
ip address add $ip/${mask:-32} dev $interface
[ -z "$mtu" ] || ip link set $interface mtu $mtu
if [ -n "$staticroutes" ]; then
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        if [ $2 = 0.0.0.0 ]; then ip route replace $1 dev $interface scope link
        else ip route replace $1 via $2 dev $interface onlink; fi
        shift 2
    done
else
    for gateway in $router; do
        ip route replace $gateway dev $interface scope link
        ip route replace default via $gateway dev $interface
    done
fi
for server in $dns; do echo "nameserver $server"; done >/tmp/resolv.conf
"#;

/// Brings the guest's network up as the network tells it: DHCPv4, router advertisement, DHCPv6.
const NETWORK: &str = r#"#!/bin/sh
set -e
echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set eth0 up
udhcpc -i eth0 -s /bin/lease -n -q -f -t 20 -T 1 -O mtu -O staticroutes
address=$(weft-probe dhcp6 eth0 --timeout 20000)
ip address add $address/128 dev eth0
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    ip -6 route | grep -q ^default && exit 0
    sleep 1
done
echo "no IPv6 default route: no router advertisement came"
exit 1
"#;

/// The archive that the kernel unpacks: the `newc` form of cpio, `Documentation/driver-api/early-userspace/buffer-format`.
pub(crate) fn build(kernel: &Kernel, probe: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "dev"] {
        archive.add(folder, DIRECTORY, &[]);
    }
    archive.add("init", PROGRAM, INIT.replace("MODULES", &MODULES.join(" ")).as_bytes());
    archive.add("bin/lease", PROGRAM, LEASE.as_bytes());
    archive.add("bin/network", PROGRAM, NETWORK.as_bytes());
    archive.add("bin/busybox", PROGRAM, &read(Path::new("/bin/busybox"))?);
    archive.add("bin/weft-probe", PROGRAM, &read(probe)?);
    for name in MODULES {
        archive.add(&format!("modules/{name}.ko"), PROGRAM, &read(&kernel.module(name)?)?);
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, length(content.len()), 0, 0, 0, 0, length(name.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Lengths in the archive are 32 bits; no file of a guest comes near.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Archive, PROGRAM};

    #[test]
    fn entries_are_aligned_and_closed() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
