// SPDX-License-Identifier: Apache-2.0
//! `loadBalancerSourceRanges`: whom a limited frontend serves.

use weft_abi::{Addr, AddressKey, DropReason, FrontendFlags, Owner};
use weft_logic::walk::Sender;

use crate::world::{FIRST_PORT, HOST, World, decide, host, v4, vip, walk, workload};

/// The Service of the workload 1, by TCP.
const SERVICE: u32 = 1002;

/// Whether the Service serves this client, where only those of `sources` are.
fn serves(sources: &[Addr], sender: (Sender, u32, Addr)) -> bool {
    let mut world = World::new([[false; 2]; 3], true);
    world.addresses.insert(AddressKey::of_cluster(v4(50, 9)), Owner::host(HOST));
    let frontend = world.frontends.get_mut(&(vip(1).v4_word(), 80, 6)).expect("a frontend");
    // At an address that is a ClusterIP no external one is served.
    frontend.flags = FrontendFlags::LIMITED;
    world.sources = sources.iter().map(|source| (SERVICE, *source)).collect();
    let (sender, ifindex, src) = sender;
    let mut walk = walk(sender, ifindex, src, vip(1), (4000, 80), 6);
    match decide(&world, &mut walk) {
        Ok(()) => true,
        Err(reason) => {
            assert_eq!(reason, DropReason::SourceRange);
            false
        }
    }
}

#[test]
fn a_workload_is_known_by_its_own_address() {
    let client = (Sender::Workload, FIRST_PORT, workload(0));
    assert!(serves(&[workload(0)], client));
    assert!(!serves(&[], client) && !serves(&[workload(2), host()], client));
}

/// It may send with any of its addresses.
#[test]
fn the_host_is_the_address_that_others_know() {
    for src in [host(), v4(50, 9)] {
        let client = (Sender::Host, HOST, src);
        assert!(serves(&[host()], client), "{src:?}");
        assert!(!serves(&[v4(50, 9)], client), "{src:?}");
    }
}
