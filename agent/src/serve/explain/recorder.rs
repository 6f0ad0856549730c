// SPDX-License-Identifier: Apache-2.0
//! The maps as the logic sees them, with every look-up written down and compared with the plan.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt::Debug,
};

use weft_abi::{
    Addr, AddressKey, BackendKey, Balancer, CidrKey, Config, Frontend, FrontendKey, Member, MemberKey, Owner, Port,
    Remote, RuleKey, Rules,
};
use weft_api::ExplainStep;
use weft_dataplane::Maps;
use weft_logic::decide::Step;

use crate::{model::Desired, plan::Planner};

/// Look-ups of one map at most: a decision needs some dozens.
const MAX_LOOKUPS: usize = 128;

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
    /// `BACKENDS`.
    fn backend(&self, key: &BackendKey) -> Read<u32>;
    /// `IDENTITIES`, of one network.
    fn single(&self, net: u32, addr: &Addr) -> Read<u32>;
    /// `CIDRS`, longest prefix of one network.
    fn prefix(&self, net: u32, addr: &Addr) -> Read<u32>;
    /// `RULES`.
    fn rules(&self, key: &RuleKey) -> Read<Rules>;
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

    fn backend(&self, key: &BackendKey) -> Read<u32> {
        self.backends().get(key)
    }

    fn single(&self, net: u32, addr: &Addr) -> Read<u32> {
        self.identities().get(&AddressKey { net, addr: *addr })
    }

    fn prefix(&self, net: u32, addr: &Addr) -> Read<u32> {
        self.cidrs().get(&CidrKey::new(net, *addr, 128))
    }

    fn rules(&self, key: &RuleKey) -> Read<Rules> {
        self.rules().get(key)
    }

    fn generation(&self, slot: u32) -> Read<u32> {
        self.generations().get(slot).map(Some)
    }

    fn service_generation(&self, service: u32) -> Read<u32> {
        self.service_generations().get(service).map(Some)
    }
}

/// Values that were read, at places that stay: the logic borrows them.
pub(super) struct Shelf<T>([OnceCell<T>; MAX_LOOKUPS]);

impl<T> Shelf<T> {
    const fn new() -> Self {
        Self([const { OnceCell::new() }; MAX_LOOKUPS])
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
    differences: RefCell<Vec<String>>,
    error: RefCell<Option<String>>,
    pub(super) configs: Shelf<Config>,
    pub(super) ports: Shelf<Port>,
    pub(super) owners: Shelf<Owner>,
    pub(super) remotes: Shelf<Remote>,
    pub(super) frontends: Shelf<Frontend>,
    pub(super) balancers: Shelf<Balancer>,
    pub(super) members: Shelf<Member>,
    pub(super) rules: Shelf<Rules>,
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
            rules: Shelf::new(),
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
