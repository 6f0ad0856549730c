// SPDX-License-Identifier: Apache-2.0

//! Who reaches whom, without policies.

use std::net::SocketAddr;

use anyhow::Result;
use weft_testbed::{Bed, Protocol, Shell, service};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn containers_reach_each_other_on_one_node_and_across_nodes() -> Result<()> {
    let bed = Bed::new()?;
    let here = bed.container(1, "default/here", &[])?;
    let beside = bed.container(1, "default/beside", &[])?;
    let there = bed.container(2, "default/there", &[])?;
    for server in [&beside, &there] {
        server.serve(&server.label(), 8080)?;
        for to in server.sockets(8080) {
            for protocol in BOTH {
                let answer = here.ask(protocol, to)?;
                assert_eq!(answer.server, server.label());
                assert!(here.addresses().contains(&answer.client), "{answer:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_guest_is_a_workload_like_any_other() -> Result<()> {
    let bed = Bed::new()?;
    let guest = bed.vm(1, "default/guest", &[("app", "web")])?;
    let beside = bed.container(1, "default/beside", &[("app", "web")])?;
    let there = bed.container(2, "default/there", &[("app", "web")])?;
    bed.apply(&service("default/web", ["10.96.0.10", "fd00:96::10"], 80, 8080, &[("app", "web")]))?;
    guest.serve("guest", 8080)?;
    beside.serve("beside", 8080)?;
    there.serve("there", 8080)?;
    let pairs: [(&dyn Shell, Vec<SocketAddr>, &str); 4] = [
        (&guest, beside.sockets(8080), "beside"),
        (&guest, there.sockets(8080), "there"),
        (&beside, guest.sockets(8080), "guest"),
        (&there, guest.sockets(8080), "guest"),
    ];
    for (client, sockets, server) in pairs {
        for to in sockets {
            for protocol in BOTH {
                assert_eq!(client.ask(protocol, to)?.server, server, "{} -> {protocol} {to}", client.label());
            }
        }
    }
    Ok(())
}
