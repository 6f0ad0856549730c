// SPDX-License-Identifier: Apache-2.0

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Message, MessageType, Opcode, OptionCode},
};

use super::{Reply, answer};
use crate::guest::{lease::Lease, tests::port};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 6);

fn request(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message.set_chaddr(&port().mac.0).set_xid(0x1234_5678);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    message.to_vec().unwrap()
}

fn ask(payload: &[u8]) -> Option<(Message, Reply)> {
    let reply = answer(&Lease::new(&port()), payload)?;
    Some((Message::from_bytes(&reply.payload).unwrap(), reply))
}

fn kind_for(kind: MessageType, change: impl FnOnce(&mut Message)) -> Option<MessageType> {
    ask(&request(kind, change)).map(|(reply, _)| reply.opts().msg_type().unwrap())
}

/// Ends a chain of setters.
fn set(_: &mut Message) {}

fn add(message: &mut Message, option: DhcpOption) {
    message.opts_mut().insert(option);
}

fn selecting(message: &mut Message, server: Ipv4Addr, address: Ipv4Addr) {
    message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
    message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
}

#[test]
fn an_offer_byte_for_byte() {
    let list = vec![OptionCode::ClasslessStaticRoute, OptionCode::DomainSearch];
    let asked = request(MessageType::Discover, |message| {
        message.opts_mut().insert(DhcpOption::ParameterRequestList(list));
        message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![1, 2, 0, 0, 0, 0, 5]));
    });
    let (_, reply) = ask(&asked).unwrap();
    let mut golden = vec![2, 1, 6, 0, 0x12, 0x34, 0x56, 0x78];
    golden.extend([0; 8]); // secs, flags, ciaddr
    golden.extend([10, 1, 1, 5]); // yiaddr
    golden.extend([0; 8]); // siaddr, giaddr
    golden.extend([2, 0, 0, 0, 0, 5]);
    golden.extend([0; 10 + 64 + 128]); // rest of chaddr, sname, file
    golden.extend([99, 130, 83, 99]);
    golden.extend([1, 4, 255, 255, 255, 0]);
    golden.extend([3, 4, 10, 1, 1, 1]);
    golden.extend([6, 4, 10, 96, 0, 10]);
    golden.extend(*b"\x0c\x04vm-a");
    golden.extend(*b"\x0f\x19default.svc.cluster.local");
    golden.extend([26, 2, 0x05, 0xaa]);
    golden.extend([51, 4, 0, 1, 0x51, 0x80]);
    golden.extend([53, 1, 2]);
    golden.extend([54, 4, 10, 1, 1, 1]);
    golden.extend([58, 4, 0, 0, 0xa8, 0xc0]);
    golden.extend([59, 4, 0, 1, 0x27, 0x50]);
    golden.extend([61, 7, 1, 2, 0, 0, 0, 0, 5]);
    golden.extend(*b"\x77\x1b\x07default\x03svc\x07cluster\x05local\x00");
    golden.extend([121, 5, 0, 10, 1, 1, 1]);
    golden.push(255);
    assert_eq!(reply.payload, golden);
    assert_eq!(reply.destination, ADDRESS);
}

#[test]
fn a_short_answer_is_padded_for_old_clients() {
    let (_, nak) = ask(&request(MessageType::Request, |message| selecting(message, GATEWAY, OTHER))).unwrap();
    assert_eq!(nak.payload.len(), 300);
}

#[test]
fn every_state_of_a_client_gets_its_answer() {
    let kind = |kind, change: fn(&mut Message)| kind_for(kind, change);
    use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
    assert_eq!(kind(Discover, |_| {}), Some(Offer));
    assert_eq!(kind(Discover, |m| add(m, DhcpOption::RapidCommit)), Some(Ack), "RFC 4039");
    assert_eq!(kind(Request, |m| selecting(m, GATEWAY, ADDRESS)), Some(Ack), "selecting");
    assert_eq!(kind(Request, |m| selecting(m, GATEWAY, OTHER)), Some(Nak), "selecting another address");
    assert_eq!(kind(Request, |m| selecting(m, OTHER, ADDRESS)), None, "selecting another server");
    let reboot = |address| move |m: &mut Message| add(m, DhcpOption::RequestedIpAddress(address));
    assert_eq!(kind_for(Request, reboot(ADDRESS)), Some(Ack), "rebooting");
    assert_eq!(kind_for(Request, reboot(OTHER)), Some(Nak), "rebooting with a stranger's address");
    assert_eq!(kind(Request, |m| set(m.set_ciaddr(ADDRESS))), Some(Ack), "renewing or rebinding");
    assert_eq!(kind(Request, |m| set(m.set_ciaddr(OTHER))), Some(Nak), "renewing a stranger's address");
    assert_eq!(kind(Request, |_| {}), Some(Nak), "a request for nothing");
    assert_eq!(kind(Inform, |m| set(m.set_ciaddr(ADDRESS))), Some(Ack));
    assert_eq!(kind(Release, |m| set(m.set_ciaddr(ADDRESS))), None);
    assert_eq!(kind(Decline, |m| selecting(m, GATEWAY, ADDRESS)), None);
    assert_eq!(kind(Offer, |_| {}), None, "a server's message");
}

#[test]
fn information_alone_brings_no_lease() {
    let (reply, sent) = ask(&request(MessageType::Inform, |message| set(message.set_ciaddr(ADDRESS)))).unwrap();
    assert!(reply.yiaddr().is_unspecified());
    assert!(!reply.opts().contains(OptionCode::AddressLeaseTime));
    assert!(reply.opts().contains(OptionCode::DomainNameServer));
    assert_eq!(sent.destination, ADDRESS);
}

#[test]
fn a_refusal_says_nothing_else_and_is_heard_by_everybody() {
    let (reply, sent) = ask(&request(MessageType::Request, |message| set(message.set_ciaddr(OTHER)))).unwrap();
    let codes: Vec<_> = reply.opts().iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [OptionCode::MessageType, OptionCode::ServerIdentifier]);
    assert!(reply.yiaddr().is_unspecified() && reply.ciaddr().is_unspecified());
    assert_eq!(sent.destination, Ipv4Addr::BROADCAST);
}

#[test]
fn the_broadcast_flag_is_heeded() {
    let flags = dhcproto::v4::Flags::default().set_broadcast();
    let (reply, sent) = ask(&request(MessageType::Discover, |message| set(message.set_flags(flags)))).unwrap();
    assert_eq!(sent.destination, Ipv4Addr::BROADCAST);
    assert!(reply.flags().broadcast());
}

#[test]
fn other_clients_and_relays_are_ignored() {
    let changes: [fn(&mut Message); 3] = [
        |message| set(message.set_chaddr(&[2, 0, 0, 0, 0, 6])),
        |message| set(message.set_opcode(Opcode::BootReply)),
        |message| set(message.set_giaddr(OTHER)),
    ];
    for change in changes {
        assert_eq!(kind_for(MessageType::Discover, change), None);
    }
    let mut port = port();
    port.addresses.remove(0);
    assert!(answer(&Lease::new(&port), &request(MessageType::Discover, |_| {})).is_none(), "a port without IPv4");
}

#[test]
fn a_gateway_outside_of_the_subnet_gets_its_own_route() {
    let mut port = port();
    port.addresses[0].address = "10.1.1.5/32".parse().unwrap();
    let asked = request(MessageType::Discover, |message| {
        let list = vec![OptionCode::ClasslessStaticRoute];
        message.opts_mut().insert(DhcpOption::ParameterRequestList(list));
    });
    let reply = answer(&Lease::new(&port), &asked).unwrap();
    let reply = Message::from_bytes(&reply.payload).unwrap();
    assert_eq!(reply.opts().get(OptionCode::SubnetMask), Some(&DhcpOption::SubnetMask(Ipv4Addr::BROADCAST)));
    let routes = vec![("10.1.1.1/32".parse().unwrap(), Ipv4Addr::UNSPECIFIED), ("0.0.0.0/0".parse().unwrap(), GATEWAY)];
    assert_eq!(reply.opts().get(OptionCode::ClasslessStaticRoute), Some(&DhcpOption::ClasslessStaticRoute(routes)));
}

#[test]
fn names_that_are_none_are_left_out() {
    let mut port = port();
    port.hostname = Some("vm a".to_owned());
    port.dns.search = vec!["..".to_owned(), "ok.example".to_owned()];
    let reply = answer(&Lease::new(&port), &request(MessageType::Discover, |_| {})).unwrap();
    let reply = Message::from_bytes(&reply.payload).unwrap();
    assert!(!reply.opts().contains(OptionCode::Hostname));
    assert_eq!(reply.opts().get(OptionCode::DomainName), Some(&DhcpOption::DomainName("ok.example".to_owned())));
}

#[test]
fn hostile_messages_do_no_harm() {
    let asked = request(MessageType::Request, |message| {
        selecting(message, GATEWAY, ADDRESS);
        message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![1; 255]));
        message.opts_mut().insert(DhcpOption::Hostname("x".repeat(255)));
    });
    // Up to the options nothing can be missing; after that some prefixes are messages of their own.
    for len in 0..asked.len() {
        let answered = ask(&asked[..len]).is_some();
        assert!(!answered || len > 240, "answered {len} bytes");
    }
    for offset in 0..asked.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut wrong = asked.clone();
            wrong[offset] = value;
            if let Some((reply, _)) = ask(&wrong) {
                assert!(reply.yiaddr().is_unspecified() || reply.yiaddr() == ADDRESS);
            }
        }
    }
}

/// A request with `options` as they are.
fn raw(options: &[u8]) -> Vec<u8> {
    let mut message = request(MessageType::Request, set);
    message.truncate(240);
    message.extend(options);
    message
}

#[test]
fn an_option_that_does_not_decode_hides_none_after_it() {
    let wanted = [&[53, 1, 3, 50, 4][..], &ADDRESS.octets(), &[55, 2, 119, 121, 255]].concat();
    // Windows' FQDN in ASCII (RFC 4702, section 2.3.1), and options shorter than their RFC has them.
    for odd in
        [&b"\x51\x0c\0\0\0WIN-7T2Q9"[..], &[81, 2, 0, 0], &[94, 2, 1, 2], &[80, 1, 0], &[12, 1, 0xff], &[119, 1, 9]]
    {
        let (reply, _) = ask(&raw(&[odd, &wanted].concat())).unwrap();
        assert_eq!(reply.opts().msg_type(), Some(MessageType::Ack), "{odd:?}");
        for code in [OptionCode::DomainSearch, OptionCode::ClasslessStaticRoute] {
            assert!(reply.opts().contains(code), "{odd:?}: {code:?}");
        }
    }
}
