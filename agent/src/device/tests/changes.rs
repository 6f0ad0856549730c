// SPDX-License-Identifier: Apache-2.0
//! What others change is told, and repaired.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::{config, everything, ip, on_a_node, to_host};
use crate::{
    device::{self, Change, Changes, Due, OVERLAY, links},
    model::Mode,
};

#[test]
fn what_others_changed_is_repaired_in_place() {
    on_a_node(|| async {
        let first = device::apply(&config(Mode::Vxlan)).await.unwrap();
        device::apply_routes(&first, &[]).await.unwrap();
        let before = everything();
        for command in [
            "link set weft0 down",
            "link set weft0 mtu 1300 address 02:00:00:00:00:99 arp on addrgenmode eui64",
            "link set weft1 down multicast on",
            "addr add 10.1.1.9/32 dev weft0",
            "addr del 10.1.1.1/32 dev weft0",
            "link set weft_vxlan down mtu 1200",
        ] {
            ip(command);
        }
        let second = device::apply(&config(Mode::Vxlan)).await.unwrap();
        device::apply_routes(&second, &[]).await.unwrap();
        assert_eq!(first, second);
        assert_eq!(everything(), before);
    });
}

#[test]
fn every_kind_of_change_is_told() {
    on_a_node(|| async {
        let mut changes = Changes::open().unwrap();
        for command in [
            "link add weftx type veth peer name wefty",
            "link set weftx up",
            "addr add 198.51.100.1/32 dev up0",
            "addr add 2001:db8:1::1/128 dev up0",
            "route add 203.0.113.0/24 via 192.0.2.1",
            "route add 2001:db8:2::/64 via 2001:db8::1",
            "route flush 203.0.113.0/24",
            "link del weftx",
        ] {
            ip(command);
            next_change(&mut changes).await;
        }
        let done = Command::new("sysctl").args(["-q", "-w", "net.ipv4.conf.up0.forwarding=1"]).status().unwrap();
        assert!(done.success());
        next_change(&mut changes).await;
        for command in ["qdisc add dev up0 clsact", "qdisc del dev up0 clsact"] {
            assert!(Command::new("tc").args(command.split(' ')).status().unwrap().success());
            next_change(&mut changes).await;
        }
    });
}

/// Every few seconds the kernel tells of each neighbour that it is still there.
#[test]
fn of_neighbours_only_a_new_ethernet_address_is_told() {
    on_a_node(|| async {
        let mut changes = Changes::open().unwrap();
        let silent = async |changes: &mut Changes| {
            tokio::time::timeout(Duration::from_millis(500), changes.changed()).await.is_err()
        };
        let kept = |mac: &str, state: &str| {
            ip(&format!("neigh replace 192.0.2.20 lladdr {mac} nud {state} extern_learn dev up0 protocol 119"));
        };
        kept("02:00:00:00:00:20", "stale");
        next_change(&mut changes).await;
        kept("02:00:00:00:00:20", "reachable");
        ip("neigh replace 192.0.2.21 lladdr 02:00:00:00:00:21 nud reachable dev up0");
        assert!(silent(&mut changes).await, "the same address, and a neighbour of others");
        kept("02:00:00:00:00:22", "reachable");
        next_change(&mut changes).await;
        ip("neigh del 192.0.2.20 dev up0");
        next_change(&mut changes).await;
    });
}

/// Waits for a change, and for the end of what follows from it (the kernel's link watch, addresses); what it was.
async fn next_change(changes: &mut Changes) -> Change {
    let first = tokio::time::timeout(Duration::from_secs(20), changes.changed()).await;
    let mut all = first.expect("a change that the kernel did not report");
    changes.looked(Duration::ZERO);
    while let Ok(more) = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await {
        all = all.max(more);
        changes.looked(Duration::ZERO);
    }
    all
}

/// A node has two routes for each other one: they are not looked at for each ADD.
#[test]
fn what_is_of_a_port_alone_asks_for_no_look_at_the_node() {
    on_a_node(|| async {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let mut changes = Changes::open().unwrap();
        let run = |program: &str, arguments: &str| {
            assert!(Command::new(program).args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
        };
        for (program, arguments) in [
            ("ip", "tuntap add weft0123456789 mode tap"),
            ("sysctl", "-q -w net.ipv4.conf.weft0123456789.forwarding=1"),
            ("tc", "qdisc add dev weft0123456789 clsact"),
            ("ip", "link set weft0123456789 up mtu 1400"),
            ("tc", "qdisc del dev weft0123456789 clsact"),
            ("ip", "tuntap del weft0123456789 mode tap"),
            ("ip", "tuntap add weft0123456789 mode tap"),
            ("ip", "link set weft0123456789 up"),
        ] {
            run(program, arguments);
            assert_eq!(next_change(&mut changes).await, Change::Ports, "{program} {arguments}");
        }
        for (program, arguments) in [
            ("ip", "addr add 198.51.100.1/32 dev weft0123456789"),
            ("ip", "link set up0 mtu 1400"),
            ("tc", "qdisc add dev up0 clsact"),
            ("ip", "route add 203.0.113.0/24 via 192.0.2.1"),
            ("ip", "tuntap add weft012345678 mode tap"),
            ("ip", "route replace default dev weft0123456789"),
            ("ip", "tuntap add other1 mode tap"),
            ("ip", "link set other1 name weft00000000aa"),
        ] {
            run(program, arguments);
            assert_eq!(next_change(&mut changes).await, Change::Node, "{program} {arguments}");
        }
        ip("link set weft0123456789 down name other0");
        assert_eq!(next_change(&mut changes).await, Change::Node, "it is no port any more");
    });
}

#[test]
fn changes_that_do_not_fit_the_socket_are_one_change() {
    on_a_node(|| async {
        let mut changes = Changes::open().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: String = (0..5000)
            .map(|round| format!("addr {} 198.51.100.{}/32 dev lo\n", ["add", "del"][round / 200 % 2], round % 200 + 1))
            .collect();
        std::fs::write(file.path(), lines).unwrap();
        ip(&format!("-batch {}", file.path().display()));
        next_change(&mut changes).await;
        ip("link set up0 mtu 1400");
        next_change(&mut changes).await;
    });
}

#[test]
fn flushed_routes_and_an_uplink_that_is_away_are_repaired() {
    on_a_node(|| async {
        let config = config(Mode::Vxlan);
        let first = device::apply(&config).await.unwrap();
        let planned = [to_host("10.1.2.0/24"), to_host("fd00:1:2::/64")];
        let all = device::apply_routes(&first, &planned).await.unwrap();
        let before = everything();
        for command in ["route flush proto 119", "-6 route flush proto 119"] {
            ip(command);
        }
        let (changes, result) = device::repair_routes(&first, &planned).await;
        result.unwrap();
        assert_eq!((changes, everything()), (all, before.clone()));

        ip("route del default");
        ip("-6 route del default");
        ip("link del weft_vxlan");
        ip("addr flush dev weft0");
        device::repair(&config).await.unwrap_err();
        let kept = device::keep(&config, &first).await.unwrap();
        // The overlay and both addresses.
        assert!(kept.changes >= 3, "{kept:?}");
        let overlay = links::find(OVERLAY).await.unwrap().unwrap();
        assert_eq!(kept.observation.facts.config.overlay_ifindex, overlay.index);
        device::repair_routes(&kept.observation, &planned).await.1.unwrap();
        assert_eq!(device::keep(&config, &first).await.unwrap().changes, 0);
        ip("route add default via 192.0.2.1");
        ip("route add default via 2001:db8::1");
        let repaired = device::repair(&config).await.unwrap();
        assert_eq!((&repaired.observation, repaired.changes), (&kept.observation, 0));
    });
}

/// How many moves of the routes' generation follow from what was done, until all is quiet.
async fn moves(changes: &mut Changes) -> usize {
    let mut moves = 0;
    while let Ok(due) = tokio::time::timeout(Duration::from_millis(700), changes.due()).await {
        match due {
            Due::Move => moves += 1,
            Due::Look(_) => changes.looked(Duration::ZERO),
        }
    }
    moves
}

#[test]
fn routes_addresses_links_and_rules_of_others_move_decisions_and_nothing_else_does() {
    on_a_node(|| async {
        device::apply(&config(Mode::Vxlan)).await.unwrap();
        let mut changes = Changes::open().unwrap();
        for command in [
            "route add 203.0.113.0/24 via 192.0.2.1",
            "route replace 203.0.113.0/24 via 192.0.2.2",
            "route del 203.0.113.0/24",
            "-6 route add 2001:db8:2::/64 via 2001:db8::1",
            "route add 203.0.113.0/24 nexthop via 192.0.2.1 dev up0 nexthop via 192.0.2.2 dev up0",
            "nexthop add id 7 via 192.0.2.1 dev up0",
            "route add 198.51.100.0/24 nhid 7",
            "nexthop replace id 7 via 192.0.2.2 dev up0",
            "addr add 192.0.2.77/32 dev up0",
            "addr del 192.0.2.77/32 dev up0",
            "rule add from 192.0.2.77 table 7",
            "-6 rule add from 2001:db8::77 table 7",
            "link add up1 type veth peer name wire1",
            "link set up1 up",
            "link set up0 mtu 1400",
            "link set up0 address 02:00:00:00:00:07",
            "link del up1",
        ] {
            ip(command);
            assert!(moves(&mut changes).await > 0, "{command}");
        }
        // What Weft does, and what the kernel says again.
        let observation = device::apply(&config(Mode::Native)).await.unwrap();
        device::apply_routes(&observation, &[to_host("10.97.0.1/32")]).await.unwrap();
        device::remove().await.unwrap();
        ip("addr add 192.0.2.78/24 dev up0 valid_lft 1000 preferred_lft 1000");
        assert!(moves(&mut changes).await > 0);
        for command in [
            "addr change 192.0.2.78/24 dev up0 valid_lft 2000 preferred_lft 2000",
            "link set up0 alias uplink",
            "link set up0 txqueuelen 500",
            "neigh replace 192.0.2.20 lladdr 02:00:00:00:00:20 dev up0",
            "tuntap add weft0123456789 mode tap",
            "link set weft0123456789 up",
            "route add 10.1.1.7/32 dev weft0123456789",
            "route add 10.1.1.8/32 via 192.0.2.1 proto 119",
            "link del weft0123456789",
        ] {
            ip(command);
            assert_eq!(moves(&mut changes).await, 0, "{command}");
        }
    });
}

/// A routing daemon's table: the moves are as many as time allows, not as many as routes.
#[test]
fn a_storm_of_routes_is_a_few_moves() {
    on_a_node(|| async {
        let mut changes = Changes::open().unwrap();
        let batch = tempfile::NamedTempFile::new().unwrap();
        let route = |number: u32| {
            format!("route add 172.{}.{}.{}/32 via 192.0.2.1\n", 16 + (number >> 16), (number >> 8) & 255, number & 255)
        };
        std::fs::write(batch.path(), (0..10_000).map(route).collect::<String>()).unwrap();
        let began = Instant::now();
        let mut child = tokio::process::Command::new("ip").arg("-batch").arg(batch.path()).spawn().unwrap();
        let (all, done) = tokio::join!(moves(&mut changes), child.wait());
        assert!(done.unwrap().success());
        // The first at once, one more for each pause.
        let most = 2 + began.elapsed().as_millis() / 250;
        assert!((1..=most).contains(&(all as u128)), "{all} moves, {most} at most");
        assert!(all < 100, "{all} moves");
    });
}
