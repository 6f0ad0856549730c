// SPDX-License-Identifier: Apache-2.0
//! A node's maps with a few workloads and Services, and packets through its hooks.

use std::{
    fmt::Write as _,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use weft_abi::{
    Addr, AddressKey, BackendFlags, BackendKey, Balancer, CLUSTER_NET, CidrKey, Config, Counter, Deliver, DropReason,
    Event, EventKind, Flow, FlowKey4, FlowKey6, Frontend, FrontendFlags, FrontendKey, MARK_DELIVERED, Member,
    MemberKey, MemberSet, Owner, Port, PortKind, Remote, RemoteKind, Timeouts, generation,
};
use weft_dataplane::{Arrival, Maps, Options, Program};

use crate::{
    packet::{self, Seen, ip},
    support::{Sandbox, ip as run_ip, pool::Pooled},
};

/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: u32 = 7;
/// `TC_ACT_SHOT`.
pub(crate) const SHOT: u32 = 2;
/// `TCX_NEXT`.
pub(crate) const NEXT: u32 = u32::MAX;

/// Devices; the index is the port's.
pub(crate) const CLIENT: u32 = 101;
pub(crate) const SERVER: u32 = 102;
/// A tap's port.
pub(crate) const VM: u32 = 103;
pub(crate) const HOST: u32 = 104;
pub(crate) const UPLINK: u32 = 105;
pub(crate) const OVERLAY: u32 = 106;
/// A device that has no port.
pub(crate) const STRANGER: u32 = 107;

pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 4];
/// Of the node that [`NATIVE_IP`] is on.
pub(crate) const NATIVE_MAC: [u8; 6] = [2, 0, 0, 0, 3, 3];
pub(crate) const VNI: u32 = 7;
/// The port that nodes hear encapsulated packets on.
pub(crate) const VXLAN_PORT: u16 = 8472;
/// First port of the masquerade range, and how many.
pub(crate) const MASQUERADE: (u16, u16) = (61_000, 16);

/// Addresses of both families.
pub(crate) const CLIENT_IP: [&str; 2] = ["10.1.0.10", "fd01::10"];
pub(crate) const SERVER_IP: [&str; 2] = ["10.1.0.20", "fd01::20"];
pub(crate) const VM_IP: [&str; 2] = ["10.1.0.30", "fd01::30"];
pub(crate) const HOST_IP: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Addresses of the host that other nodes do not know.
pub(crate) const HOST_OTHER_IP: [&str; 2] = ["192.0.2.101", "2001:db8::101"];
/// A node whose workloads are reached through the tunnel.
pub(crate) const NODE_IP: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// A workload on it.
pub(crate) const FAR_IP: [&str; 2] = ["10.2.0.5", "fd02::5"];
/// A workload on a node that is reached natively.
pub(crate) const NATIVE_IP: [&str; 2] = ["10.3.0.5", "fd03::5"];
pub(crate) const OUTSIDE_IP: [&str; 2] = ["198.51.100.7", "2001:db8:ffff::7"];
/// The source that the host sees of clients whose answers have to come back by its port: itself, and those from beyond the node.
pub(crate) const HAIRPIN_IP: [&str; 2] = ["169.254.119.101", "fd77:6566:7400::1"];
/// Frontends: (address, port 80) leads to (server, port 8080).
pub(crate) const VIP: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// A backend that takes connections, of whichever set.
pub(crate) const IN_ALL_SETS: u32 =
    BackendFlags::SERVING | BackendFlags::INTERNAL | BackendFlags::EXTERNAL | BackendFlags::CLUSTER;

/// Ethernet address of a port.
pub(crate) fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(ifindex).expect("a small index")]
}

/// Generation slot of a port's workload.
pub(crate) fn workload(ifindex: u32) -> u32 {
    ifindex + 1000
}

/// In namespaces of its own, with programs and maps that other tests have had before and that are as new ones.
pub(crate) struct Node {
    dataplane: Pooled,
    /// Last: the programs are given back before their namespaces go.
    _sandbox: Sandbox,
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) action: u32,
    pub(crate) mark: u32,
    pub(crate) bytes: Vec<u8>,
    /// Counters that moved, by how much.
    pub(crate) drops: Vec<(DropReason, u64)>,
    pub(crate) counts: Vec<(Counter, u64)>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// With a dataplane that is opened in another way.
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let sandbox = Sandbox::enter();
        for ifindex in CLIENT..=STRANGER {
            run_ip(&[
                "link",
                "add",
                "name",
                &format!("port{ifindex}"),
                "index",
                &ifindex.to_string(),
                "type",
                "bridge",
            ]);
        }
        let mut options = sandbox.options();
        change(&mut options);
        let node = Self { dataplane: Pooled::take(&sandbox, &options), _sandbox: sandbox };
        node.configure();
        for (ifindex, kind, addresses) in
            [(CLIENT, PortKind::Veth, CLIENT_IP), (SERVER, PortKind::Veth, SERVER_IP), (VM, PortKind::Tap, VM_IP)]
        {
            node.add_port(ifindex, kind, addresses);
        }
        node.add_routes();
        for family in 0..2 {
            for protocol in [6, 17, 132] {
                node.set_service(VIP[family], 80, protocol, 500, 1, &[(SERVER_IP[family], 8080)]);
            }
        }
        node
    }

    pub(crate) fn maps(&self) -> &Maps {
        self.dataplane.maps()
    }

    fn configure(&self) {
        let config = Config {
            masquerade_v4: Addr::from(ip(HOST_IP[0])),
            masquerade_v6: Addr::from(ip(HOST_IP[1])),
            uplink_ifindex: UPLINK,
            host_ifindex: HOST,
            overlay_ifindex: OVERLAY,
            vni: VNI,
            masquerade_first: MASQUERADE.0,
            masquerade_count: MASQUERADE.1,
            host_mac: HOST_MAC,
            vxlan_port: VXLAN_PORT.to_be(),
            node_v4: Addr::from(ip(HOST_IP[0])),
            node_v6: Addr::from(ip(HOST_IP[1])),
            // No shares and rates but where a test sets them.
            ..Config::default()
        };
        self.maps().config().set(0, &config).unwrap();
        for address in HOST_IP.into_iter().chain(HOST_OTHER_IP) {
            let host = Owner::host(HOST);
            self.maps().addresses().insert(&address_key(CLUSTER_NET, address), &host).unwrap();
        }
    }

    pub(crate) fn add_port(&self, ifindex: u32, kind: PortKind, addresses: [&str; 2]) {
        self.add_port_in(CLUSTER_NET, ifindex, kind, addresses);
    }

    /// A workload's port in a network.
    pub(crate) fn add_port_in(&self, net: u32, ifindex: u32, kind: PortKind, addresses: [&str; 2]) {
        let port = Port { net, workload: workload(ifindex), mac: mac(ifindex), kind: kind as u8, ..Port::default() };
        self.maps().ports().insert(&ifindex, &port).unwrap();
        addresses.into_iter().for_each(|address| self.give(net, address, ifindex));
    }

    /// Lets an address be a workload's.
    pub(crate) fn give(&self, net: u32, address: &str, ifindex: u32) {
        let owner = Owner::workload(ifindex);
        self.maps().addresses().insert(&address_key(net, address), &owner).unwrap();
    }

    fn add_routes(&self) {
        for (prefix, kind, via) in [
            ("10.1.0.0/24", RemoteKind::OwnPods, "0.0.0.0"),
            ("fd01::/64", RemoteKind::OwnPods, "0.0.0.0"),
            ("10.2.0.0/24", RemoteKind::Tunnel, "192.0.2.2"),
            ("fd02::/64", RemoteKind::Tunnel, "192.0.2.2"),
            ("10.3.0.0/24", RemoteKind::Native, "192.0.2.3"),
            ("fd03::/64", RemoteKind::Native, "2001:db8::3"),
            ("192.0.2.2/32", RemoteKind::Node, "192.0.2.2"),
            ("2001:db8::2/128", RemoteKind::Node, "192.0.2.2"),
            ("10.4.0.0/24", RemoteKind::Unreachable, "0.0.0.0"),
            ("fd04::/64", RemoteKind::Unreachable, "0.0.0.0"),
            ("10.96.0.0/16", RemoteKind::Services, "0.0.0.0"),
            ("fd96::/112", RemoteKind::Services, "0.0.0.0"),
        ] {
            let key = cidr(prefix);
            let prefix_len = u8::try_from(key.address_bits()).unwrap();
            let mut remote = Remote { prefix_len, ..Remote::new(Addr::from(ip(via)), kind) };
            if kind == RemoteKind::Native {
                remote.mac = NATIVE_MAC;
            }
            self.maps().remotes().insert(&key, &remote).unwrap();
        }
    }

    /// Writes a ClusterIP Service of `protocol` with these backends as its set number `set`, without publishing it.
    pub(crate) fn set_service(&self, vip: &str, port: u16, protocol: u8, id: u32, set: u32, backends: &[(&str, u16)]) {
        // Families and protocols share the numbers in the tests only where they share the backends.
        let service = service_number(id, protocol, usize::from(ip(vip).is_ipv6()));
        let set = self.set_members(service, set, backends);
        let name = u64::from(service);
        let balancer = Balancer { internal: set, external: set, cluster: set, name, ..Balancer::default() };
        self.maps().balancers().insert(&service, &balancer).unwrap();
        self.set_frontend((vip, port, protocol), Frontend { service, flags: 0 });
        let address = Frontend { service: 0, flags: FrontendFlags::ADDRESS };
        self.maps().frontends().insert(&FrontendKey::of_address(CLUSTER_NET, Addr::from(ip(vip))), &address).unwrap();
    }

    /// Writes a set of members, whose backends are of all sets to the map that tells of each.
    pub(crate) fn set_members(&self, service: u32, set: u32, backends: &[(&str, u16)]) -> MemberSet {
        for (index, (backend, port)) in (0..).zip(backends) {
            let member = Member::new(Addr::from(ip(backend)), port.to_be());
            let name = BackendKey::new(service, member.addr, member.port);
            self.maps().backends().insert(&name, &IN_ALL_SETS).unwrap();
            self.maps().members().insert(&MemberKey { service, set, index }, &member).unwrap();
        }
        MemberSet::even(set, u32::try_from(backends.len()).expect("few"))
    }

    /// Lets an address, port and protocol lead to a Service port.
    pub(crate) fn set_frontend(&self, (vip, port, protocol): (&str, u16, u8), frontend: Frontend) {
        let key = FrontendKey::of_cluster(Addr::from(ip(vip)), port.to_be(), protocol);
        self.maps().frontends().insert(&key, &frontend).unwrap();
    }

    /// Publishes a change of these generations, as [`weft_abi::generation`] says.
    pub(crate) fn publish(&self, slots: &[u32]) {
        self.bump(generation::EPOCH);
        for slot in slots {
            self.bump(*slot);
        }
        self.bump(generation::EPOCH);
    }

    /// The same of a Service port.
    pub(crate) fn publish_service(&self, number: u32) {
        self.bump(generation::EPOCH);
        let generations = self.maps().service_generations();
        generations.set(number, &(generations.get(number).unwrap() + 1)).unwrap();
        self.bump(generation::EPOCH);
    }

    fn bump(&self, slot: u32) {
        let generations = self.maps().generations();
        generations.set(slot, &(generations.get(slot).unwrap() + 1)).unwrap();
    }

    /// Runs a hook's program on a packet and tells all that changed. What comes from the host it has made itself.
    pub(crate) fn send(&self, program: Program, ifindex: u32, packet: &[u8]) -> Outcome {
        let received_by = if program == Program::FromHost { 0 } else { ifindex };
        self.send_as(program, packet, Arrival { ifindex, received_by, ..Arrival::default() })
    }

    /// [`Node::send`] of a packet that comes in this way.
    pub(crate) fn send_as(&self, program: Program, packet: &[u8], arrival: Arrival) -> Outcome {
        let (drops, counts) = (self.drops(), self.counts());
        let run = self.dataplane.test_run(program, packet, arrival, 1);
        let report = run.unwrap_or_else(|error| panic!("{error} on {packet:02x?}"));
        let moved = |before: Vec<u64>, after: Vec<u64>| -> Vec<u64> {
            after.iter().zip(before).map(|(after, before)| after - before).collect()
        };
        let drops = DropReason::ALL.iter().copied().zip(moved(drops, self.drops()));
        let counts = Counter::ALL.iter().copied().zip(moved(counts, self.counts()));
        Outcome {
            action: report.action,
            mark: report.mark,
            bytes: report.packet,
            drops: drops.filter(|(_, count)| *count != 0).collect(),
            counts: counts.filter(|(_, count)| *count != 0).collect(),
        }
    }

    pub(crate) fn from_workload(&self, ifindex: u32, packet: &[u8]) -> Outcome {
        self.send(Program::FromWorkload, ifindex, packet)
    }

    /// A workload's packet so many times, as fast as the kernel can.
    pub(crate) fn flood(&self, ifindex: u32, packet: &[u8], times: u32) {
        let arrival = Arrival { ifindex, received_by: ifindex, ..Arrival::default() };
        let run = self.dataplane.test_run(Program::FromWorkload, packet, arrival, times).unwrap();
        assert_eq!(run.action, SHOT);
    }

    /// A workload's packet on four threads at once.
    pub(crate) fn at_once(&self, ifindex: u32, packet: &[u8]) -> Vec<Seen> {
        const THREADS: usize = 4;
        let together = std::sync::Barrier::new(THREADS);
        let dataplane = &self.dataplane;
        let send = || {
            together.wait();
            let arrival = Arrival { ifindex, received_by: ifindex, ..Arrival::default() };
            let run = dataplane.test_run(Program::FromWorkload, packet, arrival, 1).unwrap();
            assert_eq!(run.action, REDIRECT);
            packet::parse(&run.packet)
        };
        thread::scope(|scope| {
            let threads = [(); THREADS].map(|()| scope.spawn(send));
            threads.map(|thread| thread.join().unwrap()).into()
        })
    }

    pub(crate) fn from_host(&self, packet: &[u8]) -> Outcome {
        self.send(Program::FromHost, HOST, packet)
    }

    pub(crate) fn from_uplink(&self, packet: &[u8]) -> Outcome {
        self.send(Program::FromUplink, UPLINK, packet)
    }

    fn drops(&self) -> Vec<u64> {
        DropReason::ALL.iter().map(|reason| self.maps().dropped(*reason).unwrap().packets).collect()
    }

    fn counts(&self) -> Vec<u64> {
        Counter::ALL.iter().map(|counter| self.maps().counted(*counter).unwrap()).collect()
    }

    /// The entry of packets like this one.
    pub(crate) fn flow(&self, key: &FlowKey6) -> Option<Flow> {
        if key.src.is_v4() {
            let &FlowKey6 { ifindex, src, dst, sport, dport, protocol } = key;
            let (src, dst) = (src.v4_word(), dst.v4_word());
            return self.maps().flows4().get(&FlowKey4 { ifindex, src, dst, sport, dport, protocol }).unwrap();
        }
        self.maps().flows6().get(key).unwrap()
    }

    /// Replaces an entry.
    pub(crate) fn set_flow(&self, key: &FlowKey6, flow: &Flow) {
        if key.src.is_v4() {
            let &FlowKey6 { ifindex, src, dst, sport, dport, protocol } = key;
            let (src, dst) = (src.v4_word(), dst.v4_word());
            let key = FlowKey4 { ifindex, src, dst, sport, dport, protocol };
            return self.maps().flows4().insert(&key, flow).unwrap();
        }
        self.maps().flows6().insert(key, flow).unwrap();
    }

    /// Lets the table forget an entry of IPv4.
    pub(crate) fn remove_flow(&self, key: &FlowKey6) {
        let &FlowKey6 { ifindex, src, dst, sport, dport, protocol } = key;
        let key = FlowKey4 { ifindex, src: src.v4_word(), dst: dst.v4_word(), sport, dport, protocol };
        assert!(self.maps().flows4().remove(&key).unwrap());
    }

    /// The events that are told from here on.
    pub(crate) fn told(&self) -> impl FnMut() -> Vec<Event> {
        let mut events = self.dataplane.events().unwrap();
        move || std::iter::from_fn(|| events.next()).collect()
    }

    /// The drops that are told from here on, with device and reason.
    pub(crate) fn drops_told(&self) -> impl FnMut() -> Vec<(u32, u8)> {
        let mut told = self.told();
        move || {
            let drops = told().into_iter().filter(|event| event.kind == EventKind::Drop as u8);
            drops.map(|event| (event.ifindex, event.reason)).collect()
        }
    }

    /// How many flow entries there are.
    pub(crate) fn flows(&self) -> usize {
        self.maps().flows4().len().unwrap() + self.maps().flows6().len().unwrap()
    }

    /// Lets all flows be idle for too long.
    pub(crate) fn age(&self) {
        self.age_by(LONG);
    }

    /// Lets all flows be idle for `ticks` more.
    pub(crate) fn age_by(&self, ticks: u32) {
        for (key, flow) in self.maps().flows4().iter().map(Result::unwrap) {
            self.maps().flows4().insert(&key, &idle_for(flow, ticks)).unwrap();
        }
        for (key, flow) in self.maps().flows6().iter().map(Result::unwrap) {
            self.maps().flows6().insert(&key, &idle_for(flow, ticks)).unwrap();
        }
    }

    /// Changes the node's facts.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.maps().config().get(0).unwrap();
        change(&mut config);
        self.maps().config().set(0, &config).unwrap();
    }

    /// Removes all flow entries.
    pub(crate) fn flush(&self) {
        self.maps().flows4().retain(|_, _| false).unwrap();
        self.maps().flows6().retain(|_, _| false).unwrap();
    }
}

/// Tries until it works, for ten seconds: tokens and what is remembered for a second come and go with time.
#[track_caller]
pub(crate) fn eventually(mut works: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !works() {
        assert!(Instant::now() < end, "not within ten seconds");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The flow key of packets from a port, [`weft_abi::UPLINK`] or [`weft_abi::OVERLAY`].
pub(crate) fn key(ifindex: u32, protocol: u8, tuple: packet::Tuple) -> FlowKey6 {
    FlowKey6 {
        ifindex,
        src: Addr::from(tuple.src),
        dst: Addr::from(tuple.dst),
        sport: tuple.sport.to_be(),
        dport: tuple.dport.to_be(),
        protocol: protocol.into(),
    }
}

/// A prefix as maps have it.
pub(crate) fn cidr(text: &str) -> CidrKey {
    let (address, len) = text.split_once('/').expect("a prefix");
    let address: IpAddr = ip(address);
    let offset = if address.is_ipv4() { 96 } else { 0 };
    CidrKey::of_cluster(Addr::from(address), offset + len.parse::<u32>().expect("a length"))
}

/// An address of a network.
pub(crate) fn address_key(net: u32, text: &str) -> AddressKey {
    AddressKey { net, addr: Addr::from(ip(text)) }
}

/// Number of a Service port of [`Node::set_service`].
pub(crate) fn service_number(id: u32, protocol: u8, family: usize) -> u32 {
    id + u32::from(protocol) + if family == 1 { 250 } else { 0 }
}

/// More ticks than any timeout has; on a machine that is not up for so long they wrap.
pub(crate) const LONG: u32 = Timeouts::DEFAULT.established + 1;

/// The entry, idle for `ticks` more.
const fn idle_for(mut flow: Flow, ticks: u32) -> Flow {
    flow.way.last_seen = flow.way.last_seen.wrapping_sub(ticks);
    flow
}

/// The address of the node that tunnels lead to.
pub(crate) fn tunnel_end() -> Addr {
    Addr::from(ip("192.0.2.2"))
}

impl Outcome {
    fn describe(&self) -> String {
        let mut text = format!("action {}, drops {:?}, counts {:?}", self.action as i32, self.drops, self.counts);
        write!(text, ", packet {:02x?}", self.bytes).expect("into memory");
        text
    }

    /// Asserts that the packet was dropped and counted once, under `reason`.
    #[track_caller]
    pub(crate) fn dropped(&self, reason: DropReason) -> &Self {
        assert_eq!((self.action, self.drops.as_slice()), (SHOT, [(reason, 1)].as_slice()), "{}", self.describe());
        self
    }

    /// Asserts that the packet was dropped and counted once, under `reason`, and that its sender is told; what it hears.
    #[track_caller]
    pub(crate) fn refused(&self, reason: DropReason) -> Seen {
        assert_eq!((self.action, self.drops.as_slice()), (REDIRECT, [(reason, 1)].as_slice()), "{}", self.describe());
        packet::parse(&self.bytes)
    }

    /// Asserts that the packet was dropped without being counted: it did its work.
    #[track_caller]
    pub(crate) fn consumed(&self) -> &Self {
        assert_eq!((self.action, self.drops.as_slice()), (SHOT, [].as_slice()), "{}", self.describe());
        self
    }

    /// Asserts that the packet goes up the host's stack as it came.
    #[track_caller]
    pub(crate) fn passed(&self, packet: &[u8]) -> &Self {
        assert_eq!((self.action, self.drops.as_slice()), (NEXT, [].as_slice()), "{}", self.describe());
        assert_eq!(self.bytes, packet, "changed on its way");
        self
    }

    /// Asserts that the packet was redirected, and parses what it became.
    #[track_caller]
    pub(crate) fn redirected(&self) -> Seen {
        assert_eq!((self.action, self.drops.as_slice()), (REDIRECT, [].as_slice()), "{}", self.describe());
        packet::parse(&self.bytes)
    }

    /// Asserts that the packet was redirected with nothing but its Ethernet addresses changed.
    #[track_caller]
    pub(crate) fn redirected_unchanged(&self, packet: &[u8]) {
        self.redirected();
        assert_eq!(self.bytes[12..], packet[12..], "changed on its way");
    }

    /// Asserts that the packet was redirected with nothing but its Ethernet addresses changed, and one router passed.
    #[track_caller]
    pub(crate) fn redirected_a_hop_on(&self, packet: &[u8]) {
        self.redirected();
        let mut expected = packet.to_vec();
        if packet[14] >> 4 == 4 {
            expected[22] -= 1;
            expected[24..26].fill(0);
            let checksum = !packet::sum(&[&expected[14..34]]);
            expected[24..26].copy_from_slice(&checksum.to_be_bytes());
        } else {
            expected[21] -= 1;
        }
        assert_eq!(self.bytes[12..], expected[12..], "changed on its way");
    }

    /// Asserts that a flow entry alone decided.
    #[track_caller]
    pub(crate) fn hit(&self) -> &Self {
        assert_eq!(self.counts, [(Counter::FlowHits, 1)], "{}", self.describe());
        self
    }

    /// Asserts that there was no entry.
    #[track_caller]
    pub(crate) fn missed(&self) -> &Self {
        assert_eq!(self.counts, [(Counter::FlowMisses, 1)], "{}", self.describe());
        self
    }

    /// Asserts that there was an entry, which did not count any more.
    #[track_caller]
    pub(crate) fn redecided(&self) -> &Self {
        assert_eq!(self.counts, [(Counter::FlowsRedecided, 1)], "{}", self.describe());
        self
    }

    /// Asserts that the mark is the one that `to_workload` lets through, or none.
    #[track_caller]
    pub(crate) fn marked(&self, marked: bool) -> &Self {
        assert_eq!(self.mark, if marked { MARK_DELIVERED } else { 0 }, "{}", self.describe());
        self
    }
}

/// Asserts how an entry delivers.
#[track_caller]
pub(crate) fn delivers(flow: &Flow, deliver: Deliver, ifindex: u32) {
    assert_eq!((flow.way.deliver, flow.way.ifindex), (deliver as u8, ifindex), "{flow:?}");
}
