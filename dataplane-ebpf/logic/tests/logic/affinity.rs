// SPDX-License-Identifier: Apache-2.0
//! Clients that keep their backend, beside chance: the random word of the test chooses the first of two.

use weft_abi::{Addr, Affinity, AffinityKey, CLUSTER_NET, DropReason, Member, MemberSet};
use weft_logic::{
    affinity, plan,
    walk::{Sender, Standing, Walk},
};

use crate::world::{FIRST_PORT, World, decide, v4, vip, walk, workload};

/// The Service of the workload 1, by TCP.
const SERVICE: u32 = 1002;
const NAME: u64 = 77;
const TIMEOUT: u32 = 50;
const PORT: u16 = 8080_u16.to_be();

/// The workload 0 asks a Service of the backends workload 1 and `10.2.0.5` that keeps its clients.
fn world() -> World {
    let mut world = World::new([[false; 2]; 3], true);
    world.members.insert((SERVICE, 3, 1), Member::new(v4(2, 5), PORT));
    let balancer = world.balancers.get_mut(&SERVICE).expect("a balancer");
    let set = MemberSet::even(3, 2);
    (balancer.internal, balancer.affinity, balancer.name) = (set, TIMEOUT, NAME);
    world
}

fn ask(world: &World) -> Result<Walk, DropReason> {
    let mut walk = walk(Sender::Workload, FIRST_PORT, workload(0), vip(1), (4000, 80), 6);
    decide(world, &mut walk).map(|()| walk)
}

fn key() -> AffinityKey {
    AffinityKey::new(NAME, CLUSTER_NET, workload(0))
}

/// The client had this backend so many ticks before the test's walk.
fn had(world: &mut World, addr: Addr, ago: u32) {
    let last = ask(world).expect("a decision").question.now - ago;
    world.affinities.insert(key(), Affinity { addr, port: PORT, pad: 0, last });
}

#[test]
fn the_last_backend_counts_up_to_the_timeout_and_while_it_is_of_the_set() {
    let mut world = world();
    assert_eq!(ask(&world).unwrap().decision.target, workload(1), "by chance");
    for (ago, target) in [(0, v4(2, 5)), (TIMEOUT, v4(2, 5)), (TIMEOUT + 1, workload(1))] {
        had(&mut world, v4(2, 5), ago);
        assert_eq!(ask(&world).unwrap().decision.target, target, "{ago} ticks ago");
    }
    // It serves on, of another set.
    had(&mut world, v4(2, 5), 0);
    world.members.remove(&(SERVICE, 3, 1));
    world.members.insert((SERVICE, 4, 0), Member::new(v4(2, 5), PORT));
    let balancer = world.balancers.get_mut(&SERVICE).unwrap();
    balancer.internal.count = 1;
    balancer.external = MemberSet::even(4, 1);
    assert_eq!(ask(&world).unwrap().decision.target, workload(1));
    // At another port it is another one.
    world.balancers.get_mut(&SERVICE).unwrap().external = MemberSet::even(3, 1);
    had(&mut world, workload(1), 0);
    world.affinities.get_mut(&key()).unwrap().port = 1;
    assert_eq!(ask(&world).unwrap().decision.target_port, PORT);
}

#[test]
fn what_is_kept_is_the_client_as_it_sent_and_the_backend_as_it_was_chosen() {
    let mut world = world();
    let walk = ask(&world).unwrap();
    assert_eq!((walk.decision.keeps_client, walk.decision.affinity), (1, key()));
    let kept = Affinity { addr: workload(1), port: PORT, pad: 0, last: walk.question.now };
    assert_eq!(affinity::remembered(&walk.question, &walk.decision), kept);
    // A set may go between the look-ups: the second try remembers as well.
    world.late.set(1);
    assert_eq!(ask(&world).unwrap().decision.keeps_client, 1);
    world.balancers.get_mut(&SERVICE).unwrap().affinity = 0;
    had(&mut world, v4(2, 5), 0);
    let walk = ask(&world).unwrap();
    assert_eq!((walk.decision.keeps_client, walk.decision.target), (0, workload(1)), "it keeps nobody any more");
}

/// What stands keeps its backend, and tells nothing of what its client has next.
#[test]
fn a_connection_that_stands_is_no_new_one() {
    let mut world = world();
    let mut walk = ask(&world).unwrap();
    plan::plan(&mut walk, &world.config);
    had(&mut world, v4(2, 5), 0);
    walk.question.standing = Standing::Opener as u8;
    decide(&world, &mut walk).unwrap();
    assert_eq!((walk.decision.keeps_client, walk.decision.target), (0, workload(1)));
}
