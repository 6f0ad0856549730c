// SPDX-License-Identifier: Apache-2.0
//! Devices of vhost-user ports with the real `weft-vhost` on a real tap, in a network namespace of the test's own (needs root
//! and iproute2; `cargo build -p weft-vhost` first).

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod support;

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    net::if_::if_nametoindex,
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};
use weft_agent::{
    model::Attachment,
    vhost::{Board, Cgroups, DeviceState, DeviceStatus, Devices, remove_all, socket_path},
};
use weft_api::{Allocation, AttachmentId, AttachmentSpec, DnsSettings, Mac, PortKind, PortLink};

use crate::support::{ip, on_a_node};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node: a thread in a network namespace of its own, and a folder for devices.
struct Node {
    folder: tempfile::TempDir,
    cgroups: Cgroups,
    board: Board,
}

impl Node {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), cgroups: Cgroups::none(), board: Board::default() }
    }

    /// The supervisor of one life of the agent.
    fn agent(&mut self) -> Devices {
        self.board = Board::default();
        Devices::new(binary(), self.folder.path().into(), self.cgroups.clone(), self.board.clone())
    }

    async fn wait(&self, id: &AttachmentId, what: impl Fn(&DeviceStatus) -> bool) -> DeviceStatus {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.board.get(id) {
                    Some(status) if what(&status) => return status,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("{:?}", self.board.get(id)))
    }

    fn files(&self) -> usize {
        fs::read_dir(self.folder.path()).unwrap().count()
    }
}

/// Beside the test: target/PROFILE/deps/../weft-vhost.
fn binary() -> PathBuf {
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("weft-vhost");
    assert!(path.exists(), "{} is missing; run cargo build -p weft-vhost", path.display());
    path
}

/// An attachment with its tap, as the CNI plugin makes it.
fn plug(node: &Node, tap: &str, queues: u16) -> Attachment {
    let several = if queues > 1 { " multi_queue" } else { "" };
    ip(&format!("tuntap add dev {tap} mode tap vnet_hdr{several}"));
    ip(&format!("link set {tap} up"));
    Attachment {
        spec: AttachmentSpec {
            id: AttachmentId { network: "weft".into(), container_id: tap.into(), ifname: "eth0".into() },
            netns: String::new(),
            port: PortKind::VhostUser,
            pod: None,
            addresses: Vec::new(),
            mac: None,
            mtu: None,
            queues,
            owner: Some(107),
            group: Some(36),
            host_ports: Vec::new(),
        },
        allocation: Allocation {
            addresses: Vec::new(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_mac: Mac::default(),
            host_ifname: tap.into(),
            mtu: 1450,
            routes: Vec::new(),
            dns: DnsSettings::default(),
            socket_path: Some(socket_path(node.folder.path(), tap).display().to_string()),
        },
        link: Some(PortLink { ifindex: if_nametoindex(tap).unwrap(), ifname: tap.into() }),
    }
}

fn is_running(pid: u32) -> bool {
    // Whom nobody has waited for is gone as well.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// A supervisor that ends as the agent's process does: without a word to its devices.
async fn end_agent(devices: Devices) {
    drop(devices);
    tokio::task::yield_now().await;
}

#[test]
fn an_add_waits_for_a_device_that_is_confined_and_serves_its_owner() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let attachment = plug(&node, "t-own", 2);
        let id = attachment.spec.id.clone();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let DeviceStatus { spec, pid, .. } = node.wait(&id, |status| status.state == DeviceState::Ready).await;
        let pid = pid.unwrap();

        let socket = fs::metadata(&spec.socket).unwrap();
        assert_eq!((socket.uid(), socket.gid(), socket.mode() & 0o777), (107, 36, 0o660));
        UnixStream::connect(&spec.socket).unwrap();
        let process = fs::metadata(format!("/proc/{pid}")).unwrap();
        assert_eq!((process.uid(), process.gid()), (spec.user, spec.user), "a user of its own");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"), "{status}");
        assert_eq!(getsid(Some(Pid::from_raw(pid.cast_signed()))).unwrap().as_raw(), pid.cast_signed());

        let reports = node.board.reports().await;
        assert_eq!((reports.len(), reports[0].state.as_str(), reports[0].pid), (1, "ready", Some(pid)));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let memory = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
        assert!(memory.contains(&(48 << 20).to_string()), "its own memory is bounded: {memory}");
        let metrics = reports[0].metrics.as_ref().unwrap();
        assert_eq!((&metrics["tap"], metrics["rings"].as_array().unwrap().len()), (&"t-own".into(), 4));

        devices.stopped(&id).await;
        assert!(!is_running(pid) && node.board.get(&id).is_none());
        assert_eq!(node.files(), 0);
    });
}

#[test]
fn a_device_that_is_killed_comes_back_on_the_same_socket() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let attachment = plug(&node, "t-kill", 1);
        let id = attachment.spec.id.clone();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let first = node.board.get(&id).unwrap().pid.unwrap();
        signal(first, Signal::SIGKILL);
        let status = node.wait(&id, |status| status.restarts == 1 && status.state == DeviceState::Ready).await;
        assert_ne!(status.pid, Some(first));
        UnixStream::connect(&status.spec.socket).unwrap();

        // Without its tap it cannot start: the state says why, and it comes back with the tap.
        ip("link del t-kill");
        signal(status.pid.unwrap(), Signal::SIGKILL);
        let status = node.wait(&id, |status| status.restarts > 2).await;
        let state = status.state.to_string();
        assert!(
            state.starts_with("device restarting: exit status 1: ") && state.contains("no interface t-kill"),
            "{state}"
        );
        plug(&node, "t-kill", 1);
        node.wait(&id, |status| status.state == DeviceState::Ready).await;
        devices.stopped(&id).await;
    });
}

#[test]
fn the_next_agent_adopts_a_device_and_looks_after_it() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let attachment = plug(&node, "t-adopt", 1);
        let id = attachment.spec.id.clone();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let pid = node.board.get(&id).unwrap().pid.unwrap();
        end_agent(devices).await;
        assert!(is_running(pid));

        let mut devices = node.agent();
        devices.start(&attachment).unwrap();
        devices.sweep().await.unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let status = node.board.get(&id).unwrap();
        assert_eq!((status.pid, status.restarts), (Some(pid), 0), "the same process");

        signal(pid, Signal::SIGKILL);
        let status = node.wait(&id, |status| status.restarts == 1 && status.state == DeviceState::Ready).await;
        let pid = status.pid.unwrap();
        end_agent(devices).await;

        // An adopted device ends at Release like any other.
        let mut devices = node.agent();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        assert_eq!(node.board.get(&id).unwrap().pid, Some(pid));
        devices.stopped(&id).await;
        assert!(!is_running(pid));
        assert_eq!(node.files(), 0);
    });
}

#[test]
fn a_device_with_another_command_line_is_replaced_and_one_without_a_port_is_ended() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let [first, second] = ["t-old", "t-gone"].map(|tap| plug(&node, tap, 1));
        for attachment in [&first, &second] {
            devices.start(attachment).unwrap();
            devices.ready(&attachment.spec.id).unwrap().await.unwrap();
        }
        let pids = [&first, &second].map(|attachment| node.board.get(&attachment.spec.id).unwrap().pid.unwrap());
        end_agent(devices).await;

        let mut devices = node.agent();
        let changed = Attachment { allocation: Allocation { mtu: 1400, ..first.allocation.clone() }, ..first };
        devices.start(&changed).unwrap();
        devices.sweep().await.unwrap();
        devices.ready(&changed.spec.id).unwrap().await.unwrap();
        assert_ne!(node.board.get(&changed.spec.id).unwrap().pid, Some(pids[0]));
        assert!(pids.iter().all(|pid| !is_running(*pid)));
        assert_eq!(node.files(), 1);

        let pid = node.board.get(&changed.spec.id).unwrap().pid.unwrap();
        end_agent(devices).await;
        remove_all(node.folder.path(), &node.cgroups).await.unwrap();
        assert!(!is_running(pid));
        assert_eq!(node.files(), 0);
    });
}

#[test]
fn a_record_of_somebody_elses_process_is_left_alone() {
    on_a_node(|| async {
        let node = Node::new();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let folder = node.folder.path().join("t-other");
        fs::create_dir(&folder).unwrap();
        record(&folder, &format!("{{\"pid\": {}, \"start_time\": 1}}", other.id()));
        remove_all(node.folder.path(), &node.cgroups).await.unwrap();
        assert!(is_running(other.id()), "the number was given again");
        assert_eq!(node.files(), 0);

        fs::create_dir(&folder).unwrap();
        record(&folder, "{\"pid\": 1");
        fs::write(folder.join("mine"), "").unwrap();
        remove_all(node.folder.path(), &node.cgroups).await.unwrap();
        assert!(folder.join("mine").exists(), "what is not a device's stays");
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

fn record(folder: &Path, text: &str) {
    fs::write(folder.join("device.json"), text).unwrap();
}

/// What is left of an agent that was killed between starting a device and recording it.
#[test]
fn a_device_that_was_never_recorded_is_adopted() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let attachment = plug(&node, "t-orphan", 1);
        let id = attachment.spec.id.clone();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let pid = node.board.get(&id).unwrap().pid.unwrap();
        let folder = node.folder.path().join("t-orphan");
        for torn in [None, Some("{\"pid\":")] {
            end_agent(devices).await;
            fs::remove_file(folder.join("device.json")).unwrap();
            torn.into_iter().for_each(|torn| record(&folder, torn));
            devices = node.agent();
            devices.start(&attachment).unwrap();
            devices.ready(&id).unwrap().await.unwrap();
            assert_eq!(node.board.get(&id).unwrap().pid, Some(pid), "the same process");
            let text = fs::read_to_string(folder.join("device.json")).unwrap();
            assert!(text.contains(&pid.to_string()), "recorded now: {text}");
        }
        devices.stopped(&id).await;
        assert!(!is_running(pid));
        assert_eq!(node.files(), 0);
    });
}

#[test]
fn devices_that_were_never_recorded_end_without_their_port() {
    on_a_node(|| async {
        let mut node = Node::new();
        let mut devices = node.agent();
        let [first, second] = ["t-lost1", "t-lost2"].map(|tap| plug(&node, tap, 1));
        for attachment in [&first, &second] {
            devices.start(attachment).unwrap();
            devices.ready(&attachment.spec.id).unwrap().await.unwrap();
        }
        let [first, second] =
            [&first, &second].map(|attachment| node.board.get(&attachment.spec.id).unwrap().pid.unwrap());
        end_agent(devices).await;
        for tap in ["t-lost1", "t-lost2"] {
            fs::remove_file(node.folder.path().join(tap).join("device.json")).unwrap();
        }
        // The folder may be gone as well: a device is known by its command line alone.
        fs::remove_dir_all(node.folder.path().join("t-lost1")).unwrap();
        let mut devices = node.agent();
        devices.sweep().await.unwrap();
        assert!(!is_running(first) && !is_running(second));
        assert_eq!(node.files(), 0);
    });
}

/// Folders of this test alone in every hierarchy of the machine, removed with their contents.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_group = |line: &&str| line.contains(" - cgroup");
        let points = mounts.lines().filter(is_group).map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
        let folders = points.map(|point| point.join(format!("weft-test-{}", std::process::id())));
        let folders: Vec<_> = folders.filter(|folder| folder.starts_with("/sys/fs/cgroup")).collect();
        assert!(!folders.is_empty(), "no control groups below /sys/fs/cgroup: {mounts}");
        for folder in &folders {
            fs::create_dir(folder).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"].map(|file| folder.join(file)) {
                let parent = folder.parent().unwrap().join(file.file_name().unwrap());
                if let Some(value) = fs::read_to_string(parent).ok().filter(|value| !value.trim().is_empty()) {
                    fs::write(file, value.trim()).unwrap();
                }
            }
        }
        Self(folders)
    }

    /// How many groups are below.
    fn count(&self) -> usize {
        let groups = |folder: &Path| -> usize {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name().to_str().unwrap().starts_with("vhost-")).count()
        };
        self.0.iter().map(|folder| groups(&folder.join("weft"))).sum()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for folder in &self.0 {
            let groups = fs::read_dir(folder.join("weft")).into_iter().flatten().flatten().map(|entry| entry.path());
            let below: Vec<_> =
                groups.filter(|group| group.is_dir()).chain([folder.join("weft"), folder.clone()]).collect();
            for group in below {
                if let Err(error) = fs::remove_dir(&group) {
                    eprintln!("{}: {error}", group.display());
                }
            }
        }
    }
}

/// The lines of /proc/PID/cgroup that are of other groups than the device's own.
fn strange_groups(pid: u32, tap: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = format!("/weft-test-{}/weft/vhost-{tap}", std::process::id());
    text.lines().filter(|line| !line.ends_with(&own)).map(str::to_owned).collect()
}

#[test]
fn a_device_lives_in_control_groups_of_its_own_that_go_with_it() {
    on_a_node(|| async {
        let groups = Groups::new();
        let mut node = Node::new();
        node.cgroups = Cgroups::below(groups.0.clone());
        let mut devices = node.agent();
        let attachment = plug(&node, "t-group", 1);
        let id = attachment.spec.id.clone();
        devices.start(&attachment).unwrap();
        devices.ready(&id).unwrap().await.unwrap();
        let pid = node.board.get(&id).unwrap().pid.unwrap();
        assert_eq!(strange_groups(pid, "t-group"), Vec::<String>::new());
        assert_eq!(groups.count(), groups.0.len());

        // A device that is started anew is there again.
        signal(pid, Signal::SIGKILL);
        let status = node.wait(&id, |status| status.restarts == 1 && status.state == DeviceState::Ready).await;
        assert_eq!(strange_groups(status.pid.unwrap(), "t-group"), Vec::<String>::new());
        devices.stopped(&id).await;
        assert_eq!(groups.count(), 0);

        // What an agent that was killed has left goes with the next sweep, or at the cleanup.
        fs::create_dir(groups.0[0].join("weft/vhost-t-past")).unwrap();
        node.agent().sweep().await.unwrap();
        assert_eq!(groups.count(), 0);
        remove_all(node.folder.path(), &node.cgroups).await.unwrap();
        assert!(groups.0.iter().all(|folder| !folder.join("weft").exists()));
    });
}

#[test]
fn a_device_starts_where_no_control_group_can_be_made() {
    on_a_node(|| async {
        let mut node = Node::new();
        node.cgroups = Cgroups::below(vec!["/proc".into(), "/nonexistent".into()]);
        let mut devices = node.agent();
        let attachment = plug(&node, "t-nogroup", 1);
        devices.start(&attachment).unwrap();
        devices.ready(&attachment.spec.id).unwrap().await.unwrap();
        devices.stopped(&attachment.spec.id).await;
        assert_eq!(node.files(), 0);
    });
}
