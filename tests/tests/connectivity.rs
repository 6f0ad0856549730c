// SPDX-License-Identifier: Apache-2.0

//! Who reaches whom, without policies.

use anyhow::Result;
use weft_testbed::{Bed, Protocol, Shell};

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
