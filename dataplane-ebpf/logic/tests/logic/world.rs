// SPDX-License-Identifier: Apache-2.0
//! Tables and a packet in memory, and what lives in them.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
};

use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, BackendFlags, BackendKey, Balancer, BlockKey, CLUSTER_NET, Class, Config,
    DropReason, Frontend, FrontendFlags, FrontendKey, Interval, List, ListFlags, Member, MemberKey, MemberSet, Owner,
    PROTOCOL_ANY, Port, PortKind, Remote, RemoteKind, RingNode, RuleKey, Run, generation, part,
};
use weft_logic::{
    Frame, Tables, admit, decide,
    walk::{End, Sender, Walk},
};

/// Devices of the host, and of the first of the workloads.
pub(crate) const HOST: u32 = 90;
pub(crate) const UPLINK: u32 = 91;
pub(crate) const OVERLAY: u32 = 92;
pub(crate) const FIRST_PORT: u32 = 100;
pub(crate) const WORKLOADS: u32 = 3;
pub(crate) const VNI_PEER: u8 = 200;
pub(crate) const VXLAN_PORT: u16 = 8472;

/// Maps by key; prefixes are the third octet (10.X.0.0/16).
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) ports: HashMap<u32, Port>,
    pub(crate) addresses: HashMap<AddressKey, Owner>,
    pub(crate) remotes: HashMap<u8, Remote>,
    pub(crate) frontends: HashMap<(u32, u16, u8), Frontend>,
    pub(crate) balancers: HashMap<u32, Balancer>,
    /// By Service number, set and index.
    pub(crate) members: HashMap<(u32, u32, u32), Member>,
    /// By Service number, set and number of the node.
    pub(crate) rings: HashMap<(u32, u32, u32), RingNode>,
    pub(crate) loads: HashMap<BackendKey, u32>,
    /// Clients of limited frontends, by Service number.
    pub(crate) sources: HashSet<(u32, Addr)>,
    pub(crate) affinities: HashMap<AffinityKey, Affinity>,
    /// So many look-ups of members come after their set has gone.
    pub(crate) late: Cell<u32>,
    pub(crate) lists: HashMap<u64, List>,
    /// What every list allows to everybody.
    pub(crate) allowed: Run,
    pub(crate) generations: HashMap<u32, u32>,
    pub(crate) service_generations: HashMap<u32, u32>,
}

/// `10.net.0.host`.
pub(crate) fn v4(net: u8, host: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, net, 0, host]))
}

/// Address of a workload of this node.
pub(crate) fn workload(index: u32) -> Addr {
    v4(1, u8::try_from(index).expect("few") + 10)
}

/// The host's address.
pub(crate) fn host() -> Addr {
    v4(0, 1)
}

/// Address of a Service: its port 80 leads to `backends`.
pub(crate) fn vip(index: u8) -> Addr {
    v4(96, index)
}

pub(crate) fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(ifindex).expect("small")]
}

impl World {
    /// Workloads (the last one a VM), a host, a Service per target, routes of every kind, and these policies: for each
    /// workload whether ingress and egress are isolated, and whether a rule then lets everything pass.
    pub(crate) fn new(isolated: [[bool; 2]; WORKLOADS as usize], lenient: bool) -> Self {
        let mut world = Self {
            config: Config {
                masquerade_v4: host(),
                uplink_ifindex: UPLINK,
                host_ifindex: HOST,
                overlay_ifindex: OVERLAY,
                vxlan_port: VXLAN_PORT.to_be(),
                node_v4: host(),
                masquerade_first: 61_000,
                masquerade_count: 100,
                ..Config::default()
            },
            ..Self::default()
        };
        for (index, [ingress, egress]) in (0..WORKLOADS).zip(isolated) {
            let kind = if index + 1 == WORKLOADS { PortKind::Tap } else { PortKind::Veth };
            world.add_port(index, kind, ingress, egress);
        }
        world.addresses.insert(AddressKey::of_cluster(host()), Owner::host(HOST));
        for (net, kind) in [
            (1, RemoteKind::OwnPods),
            (2, RemoteKind::Tunnel),
            (3, RemoteKind::Native),
            (4, RemoteKind::Node),
            (96, RemoteKind::Services),
        ] {
            let mac = if kind == RemoteKind::Native { mac(UPLINK) } else { [0; 6] };
            world.remotes.insert(net, Remote { mac, ..Remote::new(v4(0, VNI_PEER), kind) });
        }
        let targets = [workload(0), workload(1), workload(2), v4(2, 5), v4(3, 5), host(), v4(50, 5)];
        for (index, target) in (0_u8..).zip(targets) {
            world.add_service(index, target);
        }
        let head = List { flags: ListFlags::ISOLATES | ListFlags::ANY, ..List::EMPTY };
        world.lists = (1..=2 * u64::from(WORKLOADS)).map(|list| (list, head)).collect();
        if lenient {
            world.allow(PROTOCOL_ANY, 0, u16::MAX);
        }
        world
    }

    /// Lets this pass wherever policy isolates, and nothing else.
    pub(crate) fn allow(&mut self, protocol: u8, first: u16, last: u16) {
        self.allowed = Run::of(&[Interval::accept(protocol, first, last, 16)]);
    }

    fn add_port(&mut self, index: u32, kind: PortKind, ingress: bool, egress: bool) {
        let ifindex = FIRST_PORT + index;
        let port = Port {
            workload: ifindex,
            ingress_list: if ingress { u64::from(index) * 2 + 1 } else { 0 },
            egress_list: if egress { u64::from(index) * 2 + 2 } else { 0 },
            mac: mac(ifindex),
            kind: kind as u8,
            ..Port::default()
        };
        self.ports.insert(ifindex, port);
        self.addresses.insert(AddressKey::of_cluster(workload(index)), Owner::workload(ifindex));
    }

    fn add_service(&mut self, index: u8, target: Addr) {
        for protocol in [6, 17] {
            let service = 1000 + u32::from(index) * 2 + u32::from(protocol == 17);
            let key = (vip(index).v4_word(), 80, protocol);
            self.frontends.insert(key, Frontend { service, flags: 0 });
            let set = MemberSet::even(3, 1);
            let name = u64::from(service) << 32;
            let balancer = Balancer { internal: set, external: set, cluster: set, name, ..Balancer::default() };
            self.balancers.insert(service, balancer);
            self.members.insert((service, 3, 0), Member::new(target, 8080_u16.to_be()));
        }
        self.frontends.insert((vip(index).v4_word(), 0, 0), Frontend { service: 0, flags: FrontendFlags::ADDRESS });
    }

    /// Moves a generation as a published change does.
    pub(crate) fn publish(&mut self, slot: u32) {
        *self.generations.entry(generation::EPOCH).or_default() += 2;
        *self.generations.entry(slot).or_default() += 1;
    }

    /// The same of a Service port.
    pub(crate) fn publish_service(&mut self, number: u32) {
        *self.generations.entry(generation::EPOCH).or_default() += 2;
        *self.service_generations.entry(number).or_default() += 1;
    }
}

impl Tables for World {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn port(&self, ifindex: u32) -> Option<&Port> {
        self.ports.get(&ifindex)
    }

    fn owner(&self, net: u32, addr: &Addr) -> Option<&Owner> {
        self.addresses.get(&AddressKey { net, addr: *addr })
    }

    fn remote(&self, net: u32, addr: &Addr) -> Option<&Remote> {
        let [first, prefix, ..] = addr.v4_word().to_ne_bytes();
        self.remotes.get(&prefix).filter(|_| first == 10 && net == CLUSTER_NET)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends
            .get(&(key.addr.v4_word(), u16::from_be(key.port), key.protocol))
            .filter(|_| key.net == CLUSTER_NET)
    }

    fn balancer(&self, service: &u32) -> Option<&Balancer> {
        self.balancers.get(service)
    }

    fn member(&self, key: &MemberKey) -> Option<&Member> {
        let late = self.late.get();
        self.late.set(late.saturating_sub(1));
        self.members.get(&(key.service, key.set, key.index)).filter(|_| late == 0)
    }

    fn ring(&self, key: &MemberKey) -> Option<&RingNode> {
        self.rings.get(&(key.service, key.set, key.index))
    }

    fn load(&self, backend: &BackendKey) -> u32 {
        self.loads.get(backend).copied().unwrap_or_default()
    }

    /// One that is a member of any set serves, and is of the sets of the balancer that it is in.
    fn backend(&self, backend: &BackendKey) -> u32 {
        let is_it = |member: &Member| (member.addr, member.port) == (backend.addr, backend.port);
        let of_service = self.members.iter().filter(|((service, ..), _)| *service == backend.service);
        let sets: Vec<u32> = of_service.filter(|(_, member)| is_it(member)).map(|((_, set, _), _)| *set).collect();
        let balancer = self.balancers.get(&backend.service).copied().unwrap_or_default();
        let flags = balancer.sets().into_iter().zip(BackendFlags::OF_SETS);
        let flags = flags.filter(|(set, _)| sets.contains(&set.set)).fold(0, |flags, (_, flag)| flags | flag);
        if sets.is_empty() { 0 } else { flags | BackendFlags::SERVING }
    }

    fn admits(&self, service: u32, client: &Addr) -> bool {
        self.sources.contains(&(service, *client))
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.get(key).copied()
    }

    fn class_of(&self, _: u32, _: &Addr) -> Option<u64> {
        None
    }

    fn class(&self, _: &u64) -> Option<&Class> {
        None
    }

    fn list(&self, list: &u64) -> Option<&List> {
        self.lists.get(list)
    }

    fn run(&self, key: &RuleKey) -> Option<&Run> {
        (key.part == part::ANY).then_some(&self.allowed)
    }

    fn block(&self, _: &BlockKey) -> Option<u64> {
        None
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generations.get(&slot).copied().unwrap_or(0)
    }

    fn service_generation(&self, service: u32) -> u32 {
        self.service_generations.get(&service).copied().unwrap_or(0)
    }
}

/// A walk of a packet as the programs begin it.
pub(crate) fn walk(sender: Sender, ifindex: u32, src: Addr, dst: Addr, ports: (u16, u16), protocol: u8) -> Walk {
    let mut walk = Walk::default();
    let question = &mut walk.question;
    (question.sender, question.sender_mac) = (sender as u32, mac(ifindex));
    (question.now, question.random) = (1000, 0x1234_5678);
    question.key.ifindex = match sender {
        Sender::Overlay => weft_abi::OVERLAY,
        Sender::Uplink => weft_abi::UPLINK,
        Sender::Workload | Sender::Host => ifindex,
    };
    (question.key.src, question.key.dst) = (src, dst);
    (question.key.sport, question.key.dport) = (ports.0.to_be(), ports.1.to_be());
    question.key.protocol = protocol.into();
    if sender == Sender::Overlay {
        question.tunnel_peer = v4(0, VNI_PEER);
    }
    walk
}

/// Decides on a walk.
pub(crate) fn decide(world: &World, walk: &mut Walk) -> Result<(), DropReason> {
    decide::decide(world, &walk.question, &walk.forward, &mut walk.decision)
}

/// Whether a packet may go on to the host's stack.
pub(crate) fn admit_for_host(world: &World, walk: &Walk) -> Result<(), DropReason> {
    admit::admit_for_host(world, &walk.question, &mut End::default())
}

/// A frame in memory, all of it linear.
pub(crate) struct Bytes<'b>(pub(crate) &'b [u8]);

impl Frame for Bytes<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.0.len()).expect("a frame")
    }

    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        self.load(offset)
    }

    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice has the size of a `T`, which the trait lets be of any bits.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}
