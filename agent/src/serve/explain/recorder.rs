// SPDX-License-Identifier: Apache-2.0
//! The maps as the logic sees them, with every look-up written down and compared with the plan.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt::Debug,
};

use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Frontend,
    FrontendKey, KnownVerdict, List, MAX_STEPS, Member, MemberKey, Owner, Port, Remote, RingNode, RuleKey, Run,
    VerdictKey,
};
use weft_api::ExplainStep;
use weft_dataplane::Maps;
use weft_logic::decide::Step;

use crate::{model::Desired, plan::Planner};

/// Look-ups of one map at most: a decision needs some dozens.
const MAX_LOOKUPS: usize = 128;
/// Decision lists that a decision asks: the sender's and the receiver's.
const MAX_LISTS: usize = 2;

type Read<T> = Result<Option<T>, weft_dataplane::Error>;

/// What is read of the maps.
pub(crate) trait Reads {
    /// `CONFIG`.
    fn config(&self) -> Read<Config>;
    /// `PORTS`.
    fn port(&self, ifindex: u32) -> Read<Port>;
    /// `ADDRESSES`, of one network.
    fn owner(&self, net: u32, addr: &Addr) -> Read<Owner>;
    /// `REMOTES`, longest prefix of one network.
    fn remote(&self, net: u32, addr: &Addr) -> Read<Remote>;
    /// `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Read<Frontend>;
    /// `BALANCERS`.
    fn balancer(&self, service: u32) -> Read<Balancer>;
    /// `MEMBERS`.
    fn member(&self, key: &MemberKey) -> Read<Member>;
    /// `RINGS`.
    fn ring(&self, key: &MemberKey) -> Read<RingNode>;
    /// `LOADS`.
    fn load(&self, key: &BackendKey) -> Read<u32>;
    /// `BACKENDS`.
    fn backend(&self, key: &BackendKey) -> Read<u32>;
    /// `SOURCES`, longest prefix of one Service port.
    fn source(&self, service: u32, client: &Addr) -> Read<u32>;
    /// `AFFINITIES`.
    fn affinity(&self, key: &AffinityKey) -> Read<Affinity>;
    /// `PEERS`, of one network.
    fn class_of(&self, net: u32, addr: &Addr) -> Read<u64>;
    /// `CLASSES`.
    fn class(&self, class: u64) -> Read<Class>;
    /// `LISTS`.
    fn list(&self, list: u64) -> Read<List>;
    /// `RULES`.
    fn run(&self, key: &RuleKey) -> Read<Run>;
    /// `BLOCKS`.
    fn block(&self, key: &BlockKey) -> Read<u64>;
    /// `VERDICTS`.
    fn verdict(&self, key: &VerdictKey) -> Read<KnownVerdict>;
    /// `GENERATIONS`.
    fn generation(&self, slot: u32) -> Read<u32>;
    /// `SERVICE_GENERATIONS`.
    fn service_generation(&self, service: u32) -> Read<u32>;
}

impl Reads for Maps {
    fn config(&self) -> Read<Config> {
        Self::config(self).get(0).map(Some)
    }

    fn port(&self, ifindex: u32) -> Read<Port> {
        self.ports().get(&ifindex)
    }

    fn owner(&self, net: u32, addr: &Addr) -> Read<Owner> {
        self.addresses().get(&AddressKey { net, addr: *addr })
    }

    fn remote(&self, net: u32, addr: &Addr) -> Read<Remote> {
        self.remotes().get(&CidrKey::new(net, *addr, 128))
    }

    fn frontend(&self, key: &FrontendKey) -> Read<Frontend> {
        self.frontends().get(key)
    }

    fn balancer(&self, service: u32) -> Read<Balancer> {
        self.balancers().get(&service)
    }

    fn member(&self, key: &MemberKey) -> Read<Member> {
        self.members().get(key)
    }

    fn ring(&self, key: &MemberKey) -> Read<RingNode> {
        self.rings().get(key)
    }

    fn load(&self, key: &BackendKey) -> Read<u32> {
        self.loads().get(key)
    }

    fn backend(&self, key: &BackendKey) -> Read<u32> {
        self.backends().get(key)
    }

    fn source(&self, service: u32, client: &Addr) -> Read<u32> {
        self.sources().get(&CidrKey::new(service, *client, 128))
    }

    fn affinity(&self, key: &AffinityKey) -> Read<Affinity> {
        self.affinities().get(key)
    }

    fn class_of(&self, net: u32, addr: &Addr) -> Read<u64> {
        self.peers().get(&AddressKey { net, addr: *addr })
    }

    fn class(&self, class: u64) -> Read<Class> {
        self.classes().get(&class)
    }

    fn list(&self, list: u64) -> Read<List> {
        self.lists().get(&list)
    }

    fn run(&self, key: &RuleKey) -> Read<Run> {
        self.rules().get(key)
    }

    fn block(&self, key: &BlockKey) -> Read<u64> {
        self.blocks().get(key)
    }

    fn verdict(&self, key: &VerdictKey) -> Read<KnownVerdict> {
        self.verdicts().get(key)
    }

    fn generation(&self, slot: u32) -> Read<u32> {
        self.generations().get(slot).map(Some)
    }

    fn service_generation(&self, service: u32) -> Read<u32> {
        self.service_generations().get(service).map(Some)
    }
}

/// Values that were read, at places that stay: the logic borrows them.
pub(super) struct Shelf<T, const N: usize = MAX_LOOKUPS>([OnceCell<T>; N]);

impl<T, const N: usize> Shelf<T, N> {
    const fn new() -> Self {
        Self([const { OnceCell::new() }; N])
    }

    /// `None`: it is full.
    pub(super) fn keep(&self, value: T) -> Option<&T> {
        let free = self.0.iter().find(|cell| cell.get().is_none())?;
        Some(free.get_or_init(|| value))
    }
}

/// See the module.
pub(super) struct Recorder<'a, R> {
    pub(super) maps: &'a R,
    pub(super) planner: &'a Planner,
    pub(super) desired: &'a Desired,
    pub(super) step: Cell<Step>,
    steps: RefCell<Vec<ExplainStep>>,
    pub(super) differences: RefCell<Vec<String>>,
    error: RefCell<Option<String>>,
    pub(super) configs: Shelf<Config>,
    pub(super) ports: Shelf<Port>,
    pub(super) owners: Shelf<Owner>,
    pub(super) remotes: Shelf<Remote>,
    pub(super) frontends: Shelf<Frontend>,
    pub(super) balancers: Shelf<Balancer>,
    pub(super) members: Shelf<Member>,
    pub(super) rings: Shelf<RingNode>,
    /// Each is looked at when a list is begun, and when it is done.
    pub(super) classes: Shelf<Class, { 2 * MAX_LISTS }>,
    pub(super) lists: Shelf<List, { 2 * MAX_LISTS }>,
    pub(super) runs: Shelf<Run, { MAX_LISTS * MAX_STEPS as usize }>,
}

impl<'a, R: Reads> Recorder<'a, R> {
    pub(super) fn new(maps: &'a R, planner: &'a Planner) -> Self {
        Self {
            maps,
            planner,
            desired: planner.desired(),
            step: Cell::new(Step::Admit),
            steps: RefCell::default(),
            differences: RefCell::default(),
            error: RefCell::default(),
            configs: Shelf::new(),
            ports: Shelf::new(),
            owners: Shelf::new(),
            remotes: Shelf::new(),
            frontends: Shelf::new(),
            balancers: Shelf::new(),
            members: Shelf::new(),
            rings: Shelf::new(),
            classes: Shelf::new(),
            lists: Shelf::new(),
            runs: Shelf::new(),
        }
    }

    /// The look-ups, and those in which map and plan differ.
    ///
    /// # Errors
    /// A map could not be read.
    pub(super) fn finish(self) -> Result<(Vec<ExplainStep>, Vec<String>), String> {
        match self.error.into_inner() {
            Some(error) => Err(error),
            None => Ok((self.steps.into_inner(), self.differences.into_inner())),
        }
    }

    /// The value of a look-up; an error ends the explanation.
    pub(super) fn read<T>(&self, read: Read<T>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert_with(|| error.to_string());
            None
        })
    }

    pub(super) fn note(&self, map: &str, key: &impl ToString, value: Option<String>) {
        let value = value.unwrap_or_else(|| "-".to_owned());
        let step = self.step.get().name().to_owned();
        let step = ExplainStep { step, map: map.to_owned(), key: key.to_string(), value };
        let mut steps = self.steps.borrow_mut();
        // The logic asks twice for some things.
        if !steps.contains(&step) {
            steps.push(step);
        }
    }

    pub(super) fn compare<T: PartialEq + Debug>(
        &self,
        map: &str,
        key: &impl ToString,
        found: Option<&T>,
        planned: Option<&T>,
    ) {
        if found != planned {
            let difference = format!("{map} {}: the map has {found:?}, the plan {planned:?}", key.to_string());
            let mut differences = self.differences.borrow_mut();
            if !differences.contains(&difference) {
                differences.push(difference);
            }
        }
    }

    pub(super) fn name(&self, addr: &Addr) -> String {
        super::named(self.planner, addr)
    }
}
