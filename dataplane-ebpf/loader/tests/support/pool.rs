// SPDX-License-Identifier: Apache-2.0
//! Dataplanes that tests of one process use one after the other: the kernel takes seconds to verify the programs of a new one.
//!
//! Only the programs and their maps are used again. A test has namespaces and a bpf filesystem of its own in any case, and the maps are as
//! new ones: see [`Loaded::reset`].

use std::{
    fs,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
    thread,
};

use weft_dataplane::{Dataplane, Options};

use super::{
    Sandbox,
    content::{AnyMap, Content, maps_of},
};

/// Those that no test uses now.
static FREE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// A dataplane, and what its maps held when it was new.
pub(crate) struct Loaded {
    pub(crate) dataplane: Dataplane,
    options: Options,
    /// By map. Of a stream nothing.
    new: Vec<(AnyMap, Content)>,
}

impl Loaded {
    pub(crate) fn open(sandbox: &Sandbox, options: &Options) -> Self {
        // Programs for sockets know the network namespace that they were loaded in.
        assert_eq!(options.cgroup, None, "a dataplane of the namespace that it is opened in");
        let dataplane = open(options);
        let maps = maps_of(&sandbox.pins("maps")).into_iter();
        let new = maps.filter(|map| !map.is_stream()).map(|map| {
            let content = map.content();
            (map, content)
        });
        let new = new.collect();
        Self { dataplane, options: options.clone(), new }
    }

    /// The maps, each with what it held when it was new.
    pub(crate) fn new_content(&self) -> &[(AnyMap, Content)] {
        &self.new
    }

    /// Lets every map hold what it held when it was new: nothing, but for the flow table's seeds and the programs' constants. No program may
    /// run meanwhile.
    pub(crate) fn reset(&self) {
        self.new.iter().for_each(|(map, content)| map.restore(content));
        let mut events = self.dataplane.events().expect("open the ring");
        while events.next().is_some() {}
    }
}

/// Opens a dataplane.
pub(crate) fn open(options: &Options) -> Dataplane {
    // Not expect: a verifier log is for reading.
    Dataplane::open(options).unwrap_or_else(|error| panic!("open the dataplane: {error}"))
}

/// A dataplane of the pool, whose maps are as new ones but are not pinned. After a test that did not fail it goes back to it.
pub(crate) struct Pooled {
    /// `None`: on its way back.
    loaded: Option<Loaded>,
}

impl Pooled {
    /// One that is free, or a new one. `options`: with the pin folder of the sandbox.
    pub(crate) fn take(sandbox: &Sandbox, options: &Options) -> Self {
        let free = {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            let found = free.iter().position(|loaded| loaded.options == *options);
            found.map(|index| free.swap_remove(index))
        };
        let loaded = free.map_or_else(
            || Loaded::open(sandbox, options),
            |loaded| {
                loaded.reset();
                // Where it pins links, as it did when it was opened, in another sandbox.
                fs::create_dir_all(sandbox.pins("links")).expect("make the folder of links");
                loaded
            },
        );
        Self { loaded: Some(loaded) }
    }

    /// Whether no program of it is attached anywhere: it could run while another test does.
    pub(crate) fn is_idle(&self) -> bool {
        self.attachments().is_ok_and(|attachments| attachments.is_empty())
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let may_come_back = !thread::panicking() && self.is_idle();
        if let Some(loaded) = self.loaded.take_if(|_| may_come_back) {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(loaded);
        }
    }
}

impl Deref for Pooled {
    type Target = Dataplane;

    fn deref(&self) -> &Dataplane {
        &self.loaded.as_ref().expect("there until it is dropped").dataplane
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Dataplane {
        &mut self.loaded.as_mut().expect("there until it is dropped").dataplane
    }
}
