// SPDX-License-Identifier: Apache-2.0

//! The node that the programs think they run on: two pods, a VM, a Service, a pod of another node, and policies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use weft_abi::{
    Addr, AddressKey, Balancer, CidrKey, Config, Frontend, FrontendKey, GATEWAY_MAC, Interval, List, ListFlags, Member,
    MemberKey, MemberSet, Owner, Port, PortKind, Remote, RemoteKind, RuleKey, Run, part, rule,
};
use weft_dataplane::{Dataplane, bench::Traffic};

use super::{Load, Packets};

/// Where the bench's own bpf filesystem is mounted, in its own mount namespace.
const BPFFS: &str = "/sys/fs/bpf";

pub(super) const CLIENT: u32 = 101;
pub(super) const SERVER: u32 = 102;
const VM: u32 = 103;
pub(super) const OVERLAY: u32 = 104;
pub(super) const CLIENT_IP: [u8; 4] = [10, 1, 0, 10];
pub(super) const SERVER_IP: [u8; 4] = [10, 1, 0, 20];
pub(super) const VM_IP: [u8; 4] = [10, 1, 0, 30];
pub(super) const VIP: [u8; 4] = [10, 96, 0, 10];
/// A pod of another node, and that node.
const FAR_IP: [u8; 4] = [10, 2, 0, 10];
const PEER_IP: [u8; 4] = [192, 0, 2, 2];
const NODE_IP: [u8; 4] = [192, 0, 2, 1];
const VNI: u32 = 7;
/// What a packet out of the tunnel tells of the other node.
pub(super) const PEER: (u32, u32) = (u32::from_be_bytes(PEER_IP), VNI);
/// Decision lists of both directions: a rule each.
pub(super) const EGRESS: u64 = 1;
pub(super) const INGRESS: u64 = 2;
/// Slot and number of the Service.
const SERVICE: u32 = 50;
/// More connections than are ever made, and more flows a second: both are booked, and none is refused.
const ENOUGH: u32 = 1 << 30;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A network namespace with the devices, and a bpf filesystem; they end with the process. Returns the folder to pin in.
pub(super) fn enter_namespaces() -> Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare mount and network namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount bpffs on {BPFFS}"))?;
    for ifindex in [CLIENT, SERVER, VM, OVERLAY] {
        let mut ip = Command::new("ip");
        ip.args(["link", "add", "name", &format!("port{ifindex}"), "index", &ifindex.to_string(), "type", "bridge"]);
        ensure!(ip.status().context("start ip (iproute2)")?.success(), "{ip:?} failed");
    }
    Ok(Path::new(BPFFS).to_owned())
}

fn mac(ifindex: u32) -> [u8; 6] {
    let [low, ..] = ifindex.to_le_bytes();
    [2, 0, 0, 0, 0, low]
}

/// The client's packets to the Service.
pub(super) fn traffic() -> Traffic {
    let macs = [GATEWAY_MAC, mac(CLIENT)];
    Traffic { flows: 1, seed: 0, dst: u32::from_ne_bytes(VIP), dport: 80, spread: 0, macs, tunnel: None }
}

pub(super) fn addr(octets: [u8; 4]) -> Addr {
    Addr::v4(u32::from_ne_bytes(octets))
}

/// The IPv6 address of a workload.
fn v6_of(v4: [u8; 4]) -> [u8; 16] {
    let [.., last] = v4;
    [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Two pods, a VM and a Service of one backend.
pub(super) fn configure(dataplane: &Dataplane) -> Result<()> {
    let maps = dataplane.maps();
    let host = Config {
        uplink_ifindex: 1,
        host_ifindex: 1,
        overlay_ifindex: OVERLAY,
        vni: VNI,
        node_v4: addr(NODE_IP),
        flow_share: [ENOUGH; 2],
        flow_most: [ENOUGH; 2],
        flow_floor: [1; 2],
        flow_rate: ENOUGH,
        ..Config::default()
    };
    maps.config().set(0, &host)?;
    for (ifindex, kind, address) in
        [(CLIENT, PortKind::Veth, CLIENT_IP), (SERVER, PortKind::Veth, SERVER_IP), (VM, PortKind::Tap, VM_IP)]
    {
        let port = Port {
            workload: ifindex,
            ingress_list: INGRESS,
            egress_list: EGRESS,
            mac: mac(ifindex),
            kind: kind as u8,
            ..Port::default()
        };
        maps.ports().insert(&ifindex, &port)?;
        for address in [addr(address), Addr::from_octets(v6_of(address))].map(AddressKey::of_cluster) {
            maps.addresses().insert(&address, &Owner::workload(ifindex))?;
        }
    }
    let tcp = Interval::accept(6, 0, u16::MAX, rule::FIRST);
    for list in [EGRESS, INGRESS] {
        let run = Run::of(&[tcp]);
        maps.rules().insert(&RuleKey { list, part: part::ANY }, &run)?;
        let head = List { flags: ListFlags::ANY | ListFlags::ISOLATES, ..List::EMPTY };
        maps.lists().insert(&list, &head)?;
    }
    let far = Remote::new(addr(PEER_IP), RemoteKind::Tunnel);
    maps.remotes().insert(&CidrKey::of_cluster(addr([10, 2, 0, 0]), 96 + 24), &far)?;
    let key = FrontendKey::of_cluster(addr(VIP), 80_u16.to_be(), 6);
    let member = Member::new(addr(SERVER_IP), 8080_u16.to_be());
    maps.members().insert(&MemberKey { service: SERVICE, set: 1, index: 0 }, &member)?;
    let set = MemberSet::even(1, 1);
    let balancer = Balancer { internal: set, external: set, cluster: set, ..Balancer::default() };
    maps.balancers().insert(&SERVICE, &balancer)?;
    Ok(maps.frontends().insert(&key, &Frontend { service: SERVICE, flags: 0 })?)
}

/// A packet of the load: Ethernet, IP, TCP, 32 bytes of data. What is new begins with a SYN.
pub(super) fn packet(load: &Load) -> Vec<u8> {
    let mut packet = [GATEWAY_MAC, mac(CLIENT)].concat();
    let flags = if load.is_new() { SYN } else { ACK };
    if load.packets == Packets::V6 {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 52, 6, 64]);
        packet.extend([v6_of(CLIENT_IP), v6_of(SERVER_IP)].concat());
    } else {
        let src = if load.packets == Packets::Far { FAR_IP } else { CLIENT_IP };
        packet.extend([8, 0, 0x45, 0, 0, 72, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([src, VIP].concat());
    }
    packet.extend([0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    packet.resize(packet.len() + 32, 0);
    packet
}
