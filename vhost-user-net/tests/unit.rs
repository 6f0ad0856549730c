// SPDX-License-Identifier: Apache-2.0
//! What is delivered beside the program: the systemd unit, its user, the manual page, the help, the capabilities.
//!
//! There is no systemd to start the unit here. It is checked by `systemd-analyze`, and its command line is run as it
//! stands there, with the unit's user, folder, capabilities and limits. Needs the Debian packages `systemd` and
//! `util-linux`.

mod peer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use peer::host::{Host, Wire, eventually, frame, run};
use peer::{MERGEABLE, Options, Peer};
use weft_vhost::protocol::features;

const BINARY: &str = env!("CARGO_BIN_EXE_weft-vhost");
const INSTALLED: &str = "/usr/bin/weft-vhost";

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(name)
}

/// The unit's settings in order, with continued lines joined.
fn unit() -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(dist("weft-vhost@.service"))?.replace("\\\n", " ");
    let settings = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    Ok(settings.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

fn setting(unit: &[(String, String)], name: &str) -> Result<String> {
    let (_, value) = unit.iter().find(|(known, _)| known == name).with_context(|| format!("no {name}= in the unit"))?;
    Ok(value.clone())
}

/// Runs a program; returns whether it succeeded, and what it said.
fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

fn printed(args: &[&str]) -> Result<String> {
    let (success, text) = output(Command::new(BINARY).args(args))?;
    ensure!(success, "{args:?}: {text}");
    Ok(text)
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = std::fs::read_to_string(dist("weft-vhost@.service"))?;
    ensure!(text.contains(INSTALLED), "the unit does not start {INSTALLED}");
    let path = dir.path().join("weft-vhost@vm1.service");
    std::fs::write(&path, text.replace(INSTALLED, BINARY))?;
    let (success, said) = output(Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&path))
        .context("install systemd for systemd-analyze")?;
    ensure!(success && said.is_empty(), "systemd-analyze verify: {said}");
    Ok(())
}

/// Puts this thread into a mount namespace of its own, with an empty `/run` and the unit's user.
fn own_mounts(dir: &Path) -> Result<()> {
    let etc = dir.join("root/etc");
    std::fs::create_dir_all(&etc)?;
    for name in ["passwd", "group"] {
        std::fs::copy(Path::new("/etc").join(name), etc.join(name))?;
    }
    let root = format!("--root={}", dir.join("root").display());
    let (success, said) = output(Command::new("systemd-sysusers").arg(root).arg(dist("weft-vhost.sysusers.conf")))?;
    ensure!(success, "systemd-sysusers: {said}");
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("mount(MS_PRIVATE)")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mount /run")?;
    for name in ["passwd", "group"] {
        let (from, to) = (etc.join(name), Path::new("/etc").join(name));
        mount(Some(&from), &to, none, MsFlags::MS_BIND, none).with_context(|| format!("mount {}", to.display()))?;
    }
    Ok(())
}

/// The command line systemd would run for this instance: specifiers and the variable replaced.
fn command_line(unit: &[(String, String)], instance: &str, options: &str) -> Result<Vec<String>> {
    let line = setting(unit, "ExecStart")?.replace("%i", instance).replace("$OPTIONS", options);
    ensure!(!line.contains(['%', '$', '"', '\'']), "{line}: more than this test knows");
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

/// The program under the unit's limits.
fn confined(unit: &[(String, String)], line: &[String]) -> Result<Command> {
    ensure!(line.first().is_some_and(|program| program == INSTALLED), "{line:?}");
    let names = setting(unit, "CapabilityBoundingSet")?.to_lowercase();
    let kept = names.split_whitespace().map(|name| format!(",+{}", name.trim_start_matches("cap_")));
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={}", setting(unit, "LimitNOFILE")?))
        .args(["setpriv", "--regid", &setting(unit, "Group")?, "--clear-groups"])
        .args(["--bounding-set", &format!("-all{}", kept.collect::<String>())])
        .arg(BINARY)
        .args(&line[1..]);
    Ok(command)
}

#[test]
fn the_command_of_the_unit_starts_a_device_a_vmm_can_use() -> Result<()> {
    let host = Host::new(2)?;
    own_mounts(host.dir.path())?;
    let unit = unit()?;
    let folder = Path::new("/run").join(setting(&unit, "RuntimeDirectory")?.replace("%i", &host.tap));
    std::fs::create_dir_all(&folder)?;
    run(&format!("chmod {} {}", setting(&unit, "RuntimeDirectoryMode")?, folder.display()))?;
    run(&format!("chgrp {} {}", setting(&unit, "Group")?, folder.display()))?;
    let mut command = confined(&unit, &command_line(&unit, &host.tap, "--queues 2")?)?;
    let mut device = command.stdin(Stdio::null()).spawn().context("prlimit, setpriv; install util-linux")?;
    let result = use_device(&host, &folder, device.id());
    device.kill()?;
    device.wait()?;
    result
}

fn use_device(host: &Host, folder: &Path, pid: u32) -> Result<()> {
    let socket = folder.join("vhost.sock");
    eventually("the unit's socket", || Ok(socket.exists().then_some(())))?;
    let wire = Wire::open(&host.tap, false)?;
    let options = Options { features: MERGEABLE | features::MQ, pairs: 2, ..Options::default() };
    let mut peer = Peer::start(&socket, options)?;
    let sent = frame(200, 1);
    peer.send(&sent)?;
    ensure!(wire.receive()? == sent, "another frame on the wire");
    let user = nix::unistd::User::from_name("weft-vhost")?.context("user weft-vhost")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    for line in [format!("Uid:\t{}", user.uid), "CapEff:\t0000000000000000".to_owned(), "Seccomp:\t2".to_owned()] {
        ensure!(status.contains(&line), "no {line:?} in {status}");
    }
    // Members of the group may connect, others may not.
    for name in ["vhost.sock", "control.sock"] {
        let path = folder.join(name);
        ensure!(may_connect(&path, "weft-vhost")? && !may_connect(&path, "nogroup")?, "{name}: {:?}", path.metadata()?);
    }
    Ok(())
}

/// Whether a user of this group who is not root may connect to the socket.
fn may_connect(socket: &Path, group: &str) -> Result<bool> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "nobody", "--regid", group, "--clear-groups", "test", "-w"]).arg(socket);
    Ok(command.status().context("setpriv; install util-linux")?.success())
}

/// Long options in a text, without their dashes.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    words.filter_map(|word| word.strip_prefix("--")).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_manual_the_help_and_the_unit_know_the_same_options() -> Result<()> {
    let help = printed(&["--help"])?;
    let known: BTreeSet<_> = help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(options).collect();
    ensure!(known.len() > 15, "options in the help: {known:?}");
    let manual = printed(&["--man"])?.replace("\\-", "-").replace("\\fB", " ").replace("\\fR", " ");
    for option in &known {
        ensure!(options(&manual).contains(option), "--{option} is not in the manual");
    }
    ensure!(manual.contains(".TH weft-vhost 1"), "no title in the manual");
    let unit = options(&setting(&unit()?, "ExecStart")?);
    ensure!(unit.is_subset(&known), "the unit has {unit:?}");
    // Every option says what it does.
    let bare = Command::new(BINARY).arg("-h").output()?;
    for line in String::from_utf8(bare.stdout)?.lines().filter(|line| line.trim_start().starts_with("-")) {
        ensure!(line.split("  ").filter(|part| !part.trim().is_empty()).count() > 1, "no words on {line}");
    }
    Ok(())
}

#[test]
fn capabilities_are_in_the_form_of_other_back_ends() -> Result<()> {
    let all = ["--print-capabilities", "--queues", "2", "--mac", "52:54:00:00:00:07", "--mtu", "1400"];
    let plain: serde_json::Value = serde_json::from_str(&printed(&all[..1])?)?;
    let full: serde_json::Value = serde_json::from_str(&printed(&all)?)?;
    for text in [&plain, &full] {
        // What QEMU's conventions for back-end programs want: a type, and features of that type, of which net has none.
        ensure!(text["type"] == "net" && text["features"].as_array().is_some_and(Vec::is_empty), "{text}");
    }
    let has = |text: &serde_json::Value, list: &str, name: &str| {
        text[list].as_array().is_some_and(|names| names.iter().any(|known| known == name))
    };
    for name in ["VERSION_1", "MRG_RXBUF", "EVENT_IDX", "IN_ORDER", "LOG_ALL", "CTRL_VQ", "GUEST_ANNOUNCE"] {
        ensure!(has(&plain, "virtio-features", name), "no {name} in {plain}");
    }
    for name in ["MQ", "MAC"] {
        ensure!(!has(&plain, "virtio-features", name) && has(&full, "virtio-features", name), "{name}");
    }
    ensure!(!has(&plain, "protocol-features", "CONFIG") && has(&full, "protocol-features", "CONFIG"), "CONFIG");
    ensure!(has(&plain, "protocol-features", "LOG_SHMFD"), "{plain}");
    Ok(())
}
