// SPDX-License-Identifier: Apache-2.0
//! What the tests of this room share.

use weft_api::{AssignedAddress, DnsSettings, Mac};

use super::{GuestPort, LINK_LOCAL_GATEWAY};

/// A dual-stack port.
pub(super) fn port() -> GuestPort {
    GuestPort {
        ifindex: 0,
        mac: Mac([2, 0, 0, 0, 0, 5]),
        addresses: vec![
            AssignedAddress { address: "10.1.1.5/24".parse().unwrap(), gateway: "10.1.1.1".parse().unwrap() },
            AssignedAddress { address: "fd00:1::5/128".parse().unwrap(), gateway: LINK_LOCAL_GATEWAY.into() },
        ],
        mtu: 1450,
        dns: DnsSettings {
            nameservers: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
            search: vec!["default.svc.cluster.local".to_owned()],
        },
        hostname: Some("vm-a".to_owned()),
    }
}

mod pace {
    //! How many answers a guest may have.

    use std::time::Duration;

    use crate::guest::{ANSWERS_PER_SECOND, BURST, Pace};

    #[test]
    fn a_guest_has_a_burst_and_then_its_rate() {
        let mut pace = Pace::new();
        let mut now = pace.since;
        for number in 0..BURST {
            assert_eq!(pace.take(now), None, "{number}");
        }
        let began = now;
        for _ in 0..ANSWERS_PER_SECOND * 3 {
            now = pace.take(now).expect("a token that nobody saved up");
        }
        assert_eq!(now - began, Duration::from_secs(3));
        now += Duration::from_secs(3600);
        for number in 0..BURST {
            assert_eq!(pace.take(now), None, "{number}");
        }
        assert!(pace.take(now).is_some(), "no more than a burst is saved up");
    }
}

mod frames {
    //! Whole frames in, whole frames out.

    use std::net::{IpAddr, Ipv4Addr};

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use weft_abi::GATEWAY_MAC;

    use super::port;
    use crate::guest::{
        frame::{self, Link, Udp},
        lease::Lease,
        respond::respond,
    };

    const LINK: Link = Link { source: [2, 0, 0, 0, 0, 5], destination: [0xff; 6] };

    fn discover(broadcast: bool) -> Vec<u8> {
        let mut payload = vec![1, 1, 6, 0, 0, 0, 0, 1, 0, 0, if broadcast { 0x80 } else { 0 }, 0];
        payload.resize(28, 0);
        payload.extend(LINK.source);
        payload.resize(236, 0);
        payload.extend([99, 130, 83, 99, 53, 1, 1, 255]);
        let (source, destination) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        frame::udp4(LINK, &Udp { source, destination, source_port: 68, destination_port: 67, payload: &payload })
            .unwrap()
    }

    fn solicit(destination: &str) -> Vec<u8> {
        let payload = [1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1, 0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        let (source, destination) = ("fe80::5".parse().unwrap(), destination.parse().unwrap());
        frame::udp6(LINK, &Udp { source, destination, source_port: 546, destination_port: 547, payload: &payload })
            .unwrap()
    }

    fn router_solicitation() -> Vec<u8> {
        frame::neighbour_discovery(LINK, "fe80::5".parse().unwrap(), "ff02::2".parse().unwrap(), 133, &[0; 4]).unwrap()
    }

    /// Destination MAC, addresses and ports of an answer; its source MAC is the gateway's.
    fn summary(answer: &[u8]) -> ([u8; 6], IpAddr, IpAddr, Option<(u16, u16)>) {
        assert_eq!(answer[6..12], GATEWAY_MAC);
        let packet = SlicedPacket::from_ethernet(answer).unwrap();
        let (source, destination): (IpAddr, IpAddr) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            other => panic!("{other:?}"),
        };
        let ports = match packet.transport.unwrap() {
            TransportSlice::Udp(udp) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        (answer[..6].try_into().unwrap(), source, destination, ports)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_protocol_is_answered_from_the_gateway() {
        let lease = Lease::new(&port());
        let answered = |frame: &[u8]| summary(&respond(&lease, frame).unwrap());
        assert_eq!(answered(&discover(false)), (LINK.source, ip("10.1.1.1"), ip("10.1.1.5"), Some((67, 68))));
        assert_eq!(answered(&discover(true)), ([0xff; 6], ip("10.1.1.1"), ip("255.255.255.255"), Some((67, 68))));
        assert_eq!(answered(&solicit("ff02::1:2")), (LINK.source, ip("fe80::1"), ip("fe80::5"), Some((547, 546))));
        assert_eq!(answered(&router_solicitation()), ([0x33, 0x33, 0, 0, 0, 1], ip("fe80::1"), ip("ff02::1"), None));
        assert!(respond(&lease, &solicit("fe80::1")).is_none(), "DHCPv6 to the server's own address");
    }

    #[test]
    fn an_advertisement_is_valid_neighbour_discovery() {
        let frame = respond(&Lease::new(&port()), &router_solicitation()).unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("not ipv6") };
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("not icmpv6") };
        assert_eq!(ip.header().hop_limit(), 255);
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (134, 0));
        let addresses = (ip.header().source_addr().octets(), ip.header().destination_addr().octets());
        assert!(icmp.is_checksum_valid(addresses.0, addresses.1));
    }

    #[test]
    fn frames_cut_anywhere_or_changed_anywhere_do_no_harm() {
        let lease = Lease::new(&port());
        for frame in [discover(false), solicit("ff02::1:2"), router_solicitation()] {
            for len in 0..frame.len() {
                assert!(respond(&lease, &frame[..len]).is_none(), "{len} of {} bytes", frame.len());
            }
            for offset in 0..frame.len() {
                for value in [0, 1, 0x0f, 0x7f, 0x80, 0xff] {
                    let mut wrong = frame.clone();
                    wrong[offset] = value;
                    drop(respond(&lease, &wrong));
                }
            }
        }
    }
}
