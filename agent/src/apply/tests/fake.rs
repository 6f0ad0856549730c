// SPDX-License-Identifier: Apache-2.0
//! Maps in memory, with a reader that looks after every single write.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::{Rc, Weak},
};

use weft_abi::{
    AddressKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Device, Frontend, FrontendKey, List, Member,
    MemberKey, MemberSet, Owner, Port, Remote, RingNode, RuleKey, Run, generation,
};
use weft_dataplane::Error;

use crate::apply::{Array, Table, Tables};

/// Service ports that have a generation.
pub(crate) const SERVICE_PORTS: u32 = 65_536;

type Reader = Box<dyn Fn(&Fake)>;

type Refused<V> = Box<dyn Fn(&V) -> bool>;

pub(crate) struct Fake {
    pub(crate) config: FakeArray<Config>,
    pub(crate) generations: FakeArray<u32>,
    pub(crate) service_generations: FakeArray<u32>,
    pub(crate) digests: FakeTable<u32, u64>,
    pub(crate) numbering: FakeArray<[u64; 2]>,
    pub(crate) devices: FakeTable<u32, Device>,
    pub(crate) ports: FakeTable<u32, Port>,
    pub(crate) addresses: FakeTable<AddressKey, Owner>,
    pub(crate) remotes: FakeTable<CidrKey, Remote>,
    pub(crate) sources: FakeTable<CidrKey, u32>,
    pub(crate) frontends: FakeTable<FrontendKey, Frontend>,
    pub(crate) balancers: FakeTable<u32, Balancer>,
    pub(crate) members: FakeTable<MemberKey, Member>,
    pub(crate) rings: FakeTable<MemberKey, RingNode>,
    pub(crate) backends: FakeTable<BackendKey, u32>,
    pub(crate) peers: FakeTable<AddressKey, u64>,
    pub(crate) classes: FakeTable<u64, Class>,
    pub(crate) lists: FakeTable<u64, List>,
    pub(crate) rules: FakeTable<RuleKey, Run>,
    pub(crate) blocks: FakeTable<BlockKey, u64>,
    reader: RefCell<Option<Reader>>,
    /// Writes that still work; none: all do.
    left: Cell<Option<usize>>,
    /// Writes by number, from the last: these fail, and those after them work again.
    failing: RefCell<Vec<bool>>,
    /// Writes that found a full map.
    full: Cell<usize>,
    /// How often verdicts were forgotten.
    pub(crate) forgotten: Cell<usize>,
}

pub(crate) struct FakeTable<K, V> {
    entries: RefCell<BTreeMap<K, V>>,
    most: Cell<usize>,
    /// Values that are refused; none: no value is.
    refused: RefCell<Option<Refused<V>>>,
    owner: Weak<Fake>,
}

pub(crate) struct FakeArray<V> {
    values: RefCell<BTreeMap<u32, V>>,
    len: u32,
    owner: Weak<Fake>,
}

impl Fake {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new_cyclic(|owner| Self {
            config: FakeArray::new(owner, 1),
            generations: FakeArray::new(owner, generation::SLOTS),
            service_generations: FakeArray::new(owner, SERVICE_PORTS + 1),
            digests: FakeTable::new(owner),
            numbering: FakeArray::new(owner, 1),
            devices: FakeTable::new(owner),
            ports: FakeTable::new(owner),
            addresses: FakeTable::new(owner),
            remotes: FakeTable::new(owner),
            sources: FakeTable::new(owner),
            frontends: FakeTable::new(owner),
            balancers: FakeTable::new(owner),
            members: FakeTable::new(owner),
            rings: FakeTable::new(owner),
            backends: FakeTable::new(owner),
            peers: FakeTable::new(owner),
            classes: FakeTable::new(owner),
            lists: FakeTable::new(owner),
            rules: FakeTable::new(owner),
            blocks: FakeTable::new(owner),
            reader: RefCell::new(None),
            left: Cell::new(None),
            failing: RefCell::default(),
            full: Cell::new(0),
            forgotten: Cell::new(0),
        })
    }

    /// `reader` looks after every write from now on.
    pub(crate) fn watch(&self, reader: impl Fn(&Fake) + 'static) {
        *self.reader.borrow_mut() = Some(Box::new(reader));
    }

    /// After `writes` more writes every one fails; none: all work.
    pub(crate) fn fail_after(&self, writes: Option<usize>) {
        self.left.set(writes);
    }

    /// The next writes fail where this says so, each for itself.
    pub(crate) fn fail(&self, mut writes: Vec<bool>) {
        writes.reverse();
        *self.failing.borrow_mut() = writes;
    }

    /// How often a map was full.
    pub(crate) fn was_full(&self) -> usize {
        self.full.get()
    }

    fn write(&self, change: impl FnOnce()) -> Result<(), Error> {
        if self.failing.borrow_mut().pop().unwrap_or_default() {
            return refused();
        }
        match self.left.get() {
            Some(0) => return refused(),
            Some(left) => self.left.set(Some(left - 1)),
            None => {}
        }
        change();
        if let Some(reader) = &*self.reader.borrow() {
            reader(self);
        }
        Ok(())
    }
}

fn refused() -> Result<(), Error> {
    Err(Error::Map { map: "FAKE", operation: "write to", source: io::Error::other("broken off") })
}

impl<K, V> FakeTable<K, V> {
    fn new(owner: &Weak<Fake>) -> Self {
        let (entries, refused) = (RefCell::default(), RefCell::new(None));
        Self { entries, most: Cell::new(usize::MAX), refused, owner: owner.clone() }
    }

    /// From now on it takes no values of which this is true.
    pub(crate) fn refuse(&self, refused: impl Fn(&V) -> bool + 'static) {
        *self.refused.borrow_mut() = Some(Box::new(refused));
    }

    /// It holds no more than this.
    pub(crate) fn limit(&self, most: usize) {
        self.most.set(most);
    }
}

impl<K: Clone + Ord, V: Clone> FakeTable<K, V> {
    pub(crate) fn all(&self) -> BTreeMap<K, V> {
        self.entries.borrow().clone()
    }

    pub(crate) fn find(&self, key: &K) -> Option<V> {
        self.entries.borrow().get(key).cloned()
    }
}

impl<V> FakeArray<V> {
    fn new(owner: &Weak<Fake>, len: u32) -> Self {
        Self { values: RefCell::default(), len, owner: owner.clone() }
    }

    fn check(&self, index: u32) -> Result<(), Error> {
        if index < self.len { Ok(()) } else { Err(Error::Index { map: "FAKE", index, max_entries: self.len }) }
    }
}

impl<V: Clone> FakeArray<V> {
    pub(crate) fn all(&self) -> BTreeMap<u32, V> {
        self.values.borrow().clone()
    }
}

impl<K: Copy + Ord, V: Copy> Table<K, V> for FakeTable<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, Error> {
        Ok(self.all())
    }

    fn insert(&self, key: &K, value: &V) -> Result<(), Error> {
        if self.refused.borrow().as_ref().is_some_and(|is_refused| is_refused(value)) {
            return refused();
        }
        if self.entries.borrow().len() >= self.most.get() && !self.entries.borrow().contains_key(key) {
            let owner = self.owner.upgrade().unwrap();
            owner.full.set(owner.full.get() + 1);
            return Err(Error::Full { map: "FAKE", max_entries: 0 });
        }
        self.owner.upgrade().unwrap().write(|| self.entries.borrow_mut().extend([(*key, *value)]))
    }

    fn remove(&self, key: &K) -> Result<(), Error> {
        self.owner.upgrade().unwrap().write(|| self.entries.borrow_mut().retain(|known, _| known != key))
    }

    fn capacity(&self) -> usize {
        self.most.get()
    }
}

impl<V: Copy + Default> Array<V> for FakeArray<V> {
    fn get(&self, index: u32) -> Result<V, Error> {
        self.check(index)?;
        Ok(self.values.borrow().get(&index).copied().unwrap_or_default())
    }

    fn set(&self, index: u32, value: &V) -> Result<(), Error> {
        self.check(index)?;
        self.owner.upgrade().unwrap().write(|| self.values.borrow_mut().extend([(index, *value)]))
    }

    fn capacity(&self) -> u32 {
        self.len
    }
}

impl Fake {
    /// The member of a set, by its index, that has this position on its ring.
    pub(crate) fn find_on_ring(&self, service: u32, set: &MemberSet, position: u32) -> Option<u32> {
        (0..set.levels).try_fold(0, |index, _| {
            let node = self.rings.find(&MemberKey { service, set: set.set, index })?;
            let place = node.ends.iter().position(|end| *end >= position)?;
            Some(node.next[place])
        })
    }
}

impl Tables for Fake {
    fn config(&self) -> &dyn Array<Config> {
        &self.config
    }

    fn generations(&self) -> &dyn Array<u32> {
        &self.generations
    }

    fn service_generations(&self) -> &dyn Array<u32> {
        &self.service_generations
    }

    fn digests(&self) -> &dyn Table<u32, u64> {
        &self.digests
    }

    fn numbering(&self) -> &dyn Array<[u64; 2]> {
        &self.numbering
    }

    fn devices(&self) -> &dyn Table<u32, Device> {
        &self.devices
    }

    fn ports(&self) -> &dyn Table<u32, Port> {
        &self.ports
    }

    fn addresses(&self) -> &dyn Table<AddressKey, Owner> {
        &self.addresses
    }

    fn remotes(&self) -> &dyn Table<CidrKey, Remote> {
        &self.remotes
    }

    fn sources(&self) -> &dyn Table<CidrKey, u32> {
        &self.sources
    }

    fn frontends(&self) -> &dyn Table<FrontendKey, Frontend> {
        &self.frontends
    }

    fn balancers(&self) -> &dyn Table<u32, Balancer> {
        &self.balancers
    }

    fn members(&self) -> &dyn Table<MemberKey, Member> {
        &self.members
    }

    fn rings(&self) -> &dyn Table<MemberKey, RingNode> {
        &self.rings
    }

    fn backends(&self) -> &dyn Table<BackendKey, u32> {
        &self.backends
    }

    fn peers(&self) -> &dyn Table<AddressKey, u64> {
        &self.peers
    }

    fn classes(&self) -> &dyn Table<u64, Class> {
        &self.classes
    }

    fn lists(&self) -> &dyn Table<u64, List> {
        &self.lists
    }

    fn rules(&self) -> &dyn Table<RuleKey, Run> {
        &self.rules
    }

    fn blocks(&self) -> &dyn Table<BlockKey, u64> {
        &self.blocks
    }

    fn forget_verdicts(&self) -> Result<(), Error> {
        self.forgotten.set(self.forgotten.get() + 1);
        Ok(())
    }
}
