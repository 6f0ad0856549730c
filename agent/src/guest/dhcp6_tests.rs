// SPDX-License-Identifier: Apache-2.0

use std::net::Ipv6Addr;

use dhcproto::{
    Decodable, Encodable,
    v6::{DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, ORO, OptionCode, Status},
};

use super::{SERVER_DUID, answer};
use crate::guest::{lease::Lease, tests::port};

const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 5];

fn address() -> Ipv6Addr {
    "fd00:1::5".parse().unwrap()
}

fn other() -> Ipv6Addr {
    "fd00:1::6".parse().unwrap()
}

fn association(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
    let mut opts = DhcpOptions::new();
    for addr in addresses {
        opts.insert(DhcpOption::IAAddr(IAAddr {
            addr: *addr,
            preferred_life: 0,
            valid_life: 0,
            opts: DhcpOptions::new(),
        }));
    }
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
}

fn request(kind: MessageType, options: Vec<DhcpOption>) -> Vec<u8> {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    for option in options {
        message.opts_mut().insert(option);
    }
    message.to_vec().unwrap()
}

fn client() -> DhcpOption {
    DhcpOption::ClientId(CLIENT.to_vec())
}

fn server() -> DhcpOption {
    DhcpOption::ServerId(SERVER_DUID.to_vec())
}

fn ask(kind: MessageType, options: Vec<DhcpOption>) -> Option<Message> {
    let reply = answer(&Lease::new(&port()), &request(kind, options))?;
    Some(Message::from_bytes(&reply).unwrap())
}

/// What an association of a reply holds: addresses with their lifetimes.
fn bound(reply: &Message, id: u32) -> Vec<(Ipv6Addr, u32)> {
    let associations = reply.opts().get_all(OptionCode::IANA).unwrap_or_default();
    let found = associations.iter().find_map(|option| match option {
        DhcpOption::IANA(association) if association.id == id => Some(association),
        _ => None,
    });
    let options = found.expect("no such association").opts.iter();
    let mut bound: Vec<_> = options
        .filter_map(|option| match option {
            DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
            _ => None,
        })
        .collect();
    bound.sort_unstable();
    bound
}

fn status(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => Some(code.status),
        _ => None,
    }
}

#[test]
fn an_advertisement_byte_for_byte() {
    let asked = request(MessageType::Solicit, vec![client(), association(7, &[])]);
    let mut golden = vec![2, 1, 2, 3];
    golden.extend([0, 1, 0, 10]);
    golden.extend(CLIENT);
    golden.extend([0, 2, 0, 10, 0, 3, 0, 1, 0x02, 0x77, 0x65, 0x66, 0x74, 0x01]);
    golden.extend([0, 3, 0, 40, 0, 0, 0, 7, 0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0]);
    golden.extend([0, 5, 0, 24]);
    golden.extend(address().octets());
    golden.extend([0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80]);
    golden.extend([0, 23, 0, 16]);
    golden.extend("fd00:96::a".parse::<Ipv6Addr>().unwrap().octets());
    golden.extend([0, 24, 0, 27]);
    golden.extend(*b"\x07default\x03svc\x07cluster\x05local\x00");
    assert_eq!(answer(&Lease::new(&port()), &asked).unwrap(), golden);
}

#[test]
fn every_exchange_gets_its_answer() {
    use MessageType::{Advertise, Confirm, Decline, Rebind, Release, Renew, Reply, Request, Solicit};
    let rapid = ask(Solicit, vec![client(), association(7, &[]), DhcpOption::RapidCommit]).unwrap();
    assert_eq!(rapid.msg_type(), Reply);
    assert!(rapid.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(ask(Solicit, vec![client(), association(7, &[])]).unwrap().msg_type(), Advertise);
    for kind in [Request, Renew] {
        let reply = ask(kind, vec![client(), server(), association(7, &[address()])]).unwrap();
        assert_eq!((reply.msg_type(), bound(&reply, 7)), (Reply, vec![(address(), 86_400)]));
    }
    let rebound = ask(Rebind, vec![client(), association(7, &[other()])]).unwrap();
    assert_eq!(bound(&rebound, 7), [(address(), 86_400), (other(), 0)], "a stranger's address is taken back");
    for kind in [Release, Decline] {
        let reply = ask(kind, vec![client(), server(), association(7, &[address()])]).unwrap();
        assert_eq!((reply.msg_type(), status(reply.opts())), (Reply, Some(Status::Success)));
    }
    let confirmed = ask(Confirm, vec![client(), association(7, &[address()])]).unwrap();
    assert_eq!(status(confirmed.opts()), Some(Status::Success));
    let moved = ask(Confirm, vec![client(), association(7, &[other()])]).unwrap();
    assert_eq!(status(moved.opts()), Some(Status::NotOnLink));
    assert!(ask(Confirm, vec![client(), association(7, &[])]).is_none(), "nothing to confirm");
}

#[test]
fn information_alone_brings_no_address() {
    let oro = DhcpOption::ORO(ORO { opts: vec![OptionCode::DomainNameServers] });
    let reply = ask(MessageType::InformationRequest, vec![oro]).unwrap();
    assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());
    assert!(reply.opts().get(OptionCode::DomainSearchList).is_none(), "it was not asked for");
    assert!(reply.opts().get(OptionCode::IANA).is_none());
}

#[test]
fn one_address_and_no_prefixes() {
    let prefix = DhcpOption::IAPD(IAPD { id: 9, t1: 0, t2: 0, opts: DhcpOptions::new() });
    let reply = ask(MessageType::Solicit, vec![client(), association(7, &[]), association(8, &[]), prefix]).unwrap();
    assert_eq!(bound(&reply, 7), [(address(), 86_400)]);
    assert_eq!(bound(&reply, 8), []);
    let Some(DhcpOption::IAPD(refused)) = reply.opts().get(OptionCode::IAPD) else {
        panic!("no answer for the prefix")
    };
    assert_eq!(status(&refused.opts), Some(Status::NoPrefixAvail));
}

#[test]
fn invalid_messages_are_discarded() {
    use MessageType::{Advertise, Rebind, Renew, Reply, Request, Solicit};
    let foreign = || DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let cases = [
        ("a solicitation without client", Solicit, vec![association(7, &[])]),
        ("a solicitation with server", Solicit, vec![client(), server(), association(7, &[])]),
        ("a request without server", Request, vec![client(), association(7, &[])]),
        ("a request to another server", Request, vec![client(), foreign(), association(7, &[])]),
        ("a renewal without client", Renew, vec![server(), association(7, &[])]),
        ("a rebinding with server", Rebind, vec![client(), server(), association(7, &[])]),
        ("an empty client identifier", Solicit, vec![DhcpOption::ClientId(Vec::new())]),
        ("a server's advertisement", Advertise, vec![client(), server()]),
        ("a server's reply", Reply, vec![client(), server()]),
    ];
    for (name, kind, options) in cases {
        assert!(ask(kind, options).is_none(), "{name}");
    }
    let mut port = port();
    port.addresses.remove(1);
    let asked = request(Solicit, vec![client(), association(7, &[])]);
    assert!(answer(&Lease::new(&port), &asked).is_none(), "a port without IPv6");
}

#[test]
fn hostile_messages_do_no_harm() {
    let asked = request(MessageType::Request, vec![client(), server(), association(7, &[address(), other()])]);
    let lease = Lease::new(&port());
    for len in 0..asked.len() {
        drop(answer(&lease, &asked[..len]));
    }
    for offset in 0..asked.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut wrong = asked.clone();
            wrong[offset] = value;
            drop(answer(&lease, &wrong));
        }
    }
    // As deep as a frame allows: an association in an association, and a relayed message in a relayed message.
    let max = crate::guest::socket::MAX_FRAME;
    for (option, head) in [(3_u16, vec![0; 12]), (9, [vec![12, 0], vec![0; 32]].concat())] {
        let mut nested = Vec::new();
        while nested.len() < max {
            let len = u16::try_from(head.len() + nested.len()).unwrap();
            nested = [option.to_be_bytes().to_vec(), len.to_be_bytes().to_vec(), head.clone(), nested].concat();
        }
        drop(answer(&lease, &[vec![1, 1, 2, 3], nested].concat()));
    }
}

#[test]
fn an_option_that_does_not_decode_hides_none_after_it() {
    // Elapsed time, status code and preference shorter than their RFC has them; an address without its lifetimes.
    for odd in [&[0, 8, 0, 1, 7][..], &[0, 13, 0, 1, 0], &[0, 7, 0, 0], &[0, 24, 0, 1, 9], &[0, 5, 0, 2, 1, 2]] {
        let whole = request(MessageType::Request, vec![client(), server(), association(7, &[address()])]);
        let (header, options) = whole.split_at(4);
        let reply = answer(&Lease::new(&port()), &[header, odd, options].concat()).unwrap();
        let reply = Message::from_bytes(&reply).unwrap();
        assert_eq!(bound(&reply, 7), [(address(), 86_400)], "{odd:?}");
    }
}
