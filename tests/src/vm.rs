// SPDX-License-Identifier: Apache-2.0

//! A virtual machine: QEMU by software emulation on a tap of the CNI plugin.

use std::{
    cell::RefCell,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use weft_probe::clock::guest_parameters;

use crate::{
    bed::SHARED,
    cni::{Attachment, Plug},
    initramfs::{Kernel, build},
    namespace::Namespace,
    node::Node,
    process::{Outcome, Process},
    serial::Serial,
    shell::Shell,
};

/// How long each try to boot may take: 2 s on a quiet machine.
const BOOTS: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(120)];

/// Memory of a guest.
const MEMORY: &str = "128M";

/// What the guest's network card is joined to.
#[derive(Clone, Copy, Debug)]
pub enum Nic<'a> {
    /// The tap of this name: QEMU moves the frames.
    Tap(&'a str),
    /// The vhost-user socket at this path: its device moves them, and may go away and come back.
    VhostUser(&'a str),
}

impl Nic<'_> {
    fn arguments(self, mac: &str) -> Vec<String> {
        let card = ["-device".to_owned(), format!("virtio-net-device,netdev=n0,mac={mac}")];
        let backend: Vec<String> = match self {
            Self::Tap(tap) => {
                vec!["-netdev".into(), format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off")]
            }
            Self::VhostUser(socket) => vec![
                "-object".into(),
                format!("memory-backend-memfd,id=m0,size={MEMORY},share=on"),
                "-machine".into(),
                "memory-backend=m0".into(),
                "-chardev".into(),
                format!("socket,id=c0,path={socket},reconnect=1"),
                "-netdev".into(),
                "vhost-user,id=n0,chardev=c0".into(),
            ],
        };
        backend.into_iter().chain(card).collect()
    }
}

/// A guest that runs.
pub struct Guest {
    serial: RefCell<Serial>,
    _qemu: Process,
}

impl Guest {
    /// Boots a guest on the tap `tap` of `machine`, with `mac` as its Ethernet address; again if a boot hangs.
    ///
    /// # Errors
    /// As [`Guest::boot_on`].
    pub fn boot(machine: &Namespace, name: &str, tap: &str, mac: &str, probe: &Path) -> Result<Self> {
        Self::boot_on(machine, name, Nic::Tap(tap), mac, probe)
    }

    /// Boots a guest on `nic` of `machine`, with `mac` as its Ethernet address; again if a boot hangs.
    ///
    /// # Errors
    /// No kernel or QEMU on this machine, or the guest does not come up.
    pub fn boot_on(machine: &Namespace, name: &str, nic: Nic<'_>, mac: &str, probe: &Path) -> Result<Self> {
        let kernel = Kernel::find()?;
        let initrd = format!("{SHARED}/guest.cpio");
        let outer = machine.path(&initrd);
        if !outer.exists() {
            fs::write(&outer, build(&kernel, probe)?).context("write the initramfs")?;
        }
        let network = nic.arguments(mac);
        let mut failures = Vec::new();
        for patience in BOOTS {
            let qemu = Qemu { machine, name, kernel: &kernel, initrd: &initrd, network: &network };
            match qemu.boot(patience) {
                Ok(guest) => return Ok(guest),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("guest {name} did not boot: {}", failures.join("; "))
    }

    /// Runs a shell script in the guest.
    ///
    /// # Errors
    /// The guest does not answer within `patience`.
    pub fn run(&self, script: &str, patience: Duration) -> Result<Outcome> {
        self.serial.borrow_mut().run(script, patience)
    }
}

/// One try to boot.
struct Qemu<'a> {
    machine: &'a Namespace,
    name: &'a str,
    kernel: &'a Kernel,
    initrd: &'a str,
    network: &'a [String],
}

impl Qemu<'_> {
    fn boot(&self, patience: Duration) -> Result<Guest> {
        let socket = format!("/run/{}.serial", self.name);
        let log = self.machine.path(format!("/run/{}.qemu.log", self.name));
        drop(fs::remove_file(self.machine.path(&socket)));
        let (output, errors) = (fs::File::create(&log)?, fs::File::options().append(true).open(&log)?);
        let qemu = self.machine.start("qemu", |command| {
            // The guest's timers suffer when the emulator has to wait.
            command.args(["nice", "-n", "-10", "qemu-system-x86_64"]);
            command.args(["-M", "microvm,acpi=on,rtc=on", "-accel", "tcg,tb-size=32", "-m", MEMORY]);
            command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
            command.arg("-kernel").arg(&self.kernel.image).args(["-initrd", self.initrd]);
            command.arg("-append").arg(format!("{COMMAND_LINE} {}", guest_parameters()));
            command.args(self.network).args(["-serial", "chardev:s0", "-chardev"]);
            command.arg(format!("socket,id=s0,path={socket},server=on,wait=off"));
            command.stdout(output).stderr(errors);
        })?;
        let serial = Serial::connect(&self.machine.path(&socket), patience)
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Guest { serial: RefCell::new(serial), _qemu: qemu })
    }
}

const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check random.trust_cpu=on";

/// A pod's workload that is a guest.
pub struct Vm {
    pod: String,
    // Before the attachment: QEMU lets go of the tap before the tap goes.
    guest: Guest,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
}

impl Vm {
    /// Plugs in a tap for `pod` (`namespace/name`) on `node`, boots a guest on it, and lets it configure itself by DHCP
    /// and router advertisements.
    ///
    /// # Errors
    /// As [`Vm::on`].
    pub fn new(node: &Rc<Node>, pod: &str) -> Result<Self> {
        Self::on(node, pod, Plug::Tap)
    }

    /// As [`Vm::new`], plugged in by `plug`, which is no veth.
    ///
    /// # Errors
    /// The CNI plugin refused, or the guest does not boot or get its addresses.
    pub fn on(node: &Rc<Node>, pod: &str, plug: Plug) -> Result<Self> {
        let mut attachment = Attachment::new(node, pod, plug)?;
        attachment.add()?;
        let addresses = attachment.addresses()?;
        let tap = attachment.interface(false)?;
        let name = tap["name"].as_str().context("the tap has no name in the result")?.to_owned();
        let guest_side = attachment.interface(true).unwrap_or(tap);
        let mac = guest_side["mac"].as_str().context("the guest has no mac in the result")?.to_owned();
        let nic = match plug {
            Plug::VhostUser => {
                Nic::VhostUser(guest_side["socketPath"].as_str().context("no socketPath in the result")?)
            }
            _ => Nic::Tap(&name),
        };
        let probe = node.machine().path(format!("{SHARED}/bin/weft-probe"));
        let guest = Guest::boot_on(node.machine(), &attachment.container_id, nic, &mac, &probe)?;
        let vm = Self { pod: pod.to_owned(), guest, attachment, addresses };
        let outcome = vm.guest.run("network", Duration::from_secs(90))?;
        outcome.ok().with_context(|| format!("{pod}: the guest's network; agent log:\n{}", node.agent_log()))?;
        Ok(vm)
    }

    /// What the runtime knows of it.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its addresses with `port`.
    #[must_use]
    pub fn sockets(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }
}

impl Shell for Vm {
    fn label(&self) -> String {
        format!("{} (vm)", self.pod)
    }

    fn folder(&self) -> String {
        "/tmp".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.guest.run(script, Duration::from_secs(90))
    }
}
