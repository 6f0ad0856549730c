// SPDX-License-Identifier: Apache-2.0
//! A checksum that a sender leaves to whoever has the packet last: what the kernel has of it is no packet's that a test run makes.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem,
    os::fd::{AsRawFd as _, FromRawFd as _},
};

use etherparse::{IpNumber, PacketBuilder};
use weft_abi::{
    Addr, AddressKey, BackendFlags, BackendKey, Balancer, Config, Frontend, FrontendKey, GATEWAY_MAC, Member,
    MemberKey, MemberSet, Owner, Port, PortKind,
};
use weft_dataplane::{Maps, Program};

use crate::support::{Netns, Sandbox, Veth};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 1, 0, 10];
const SERVER: [u8; 4] = [10, 1, 0, 20];
const VIP: [u8; 4] = [10, 96, 0, 10];
const SCTP: u8 = 132;
/// Where the transport header is.
const L4: usize = 34;

/// `struct virtio_net_hdr`: a checksum over what is behind [`L4`] is still to be written, 8 bytes from there.
const LEFT: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 8, 0];

/// A socket for all packets of the other end of a veth in the calling thread's namespace, each behind such a header.
fn packets() -> File {
    // SAFETY: plain numbers; the descriptor is this function's own.
    let socket = unsafe {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32);
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 10, tv_usec: 0 });
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = nix::net::if_::if_nametoindex(Veth::PEER).expect("its index").cast_signed();
    // SAFETY: the address lives over the call, its size is told.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), mem::size_of::<libc::sockaddr_ll>() as u32)
    };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

fn set<T>(socket: &File, level: i32, name: i32, value: &T) {
    let from = std::ptr::from_ref(value).cast();
    // SAFETY: the value lives over the call, its size is told.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, from, mem::size_of::<T>() as u32) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// The Service's port 80 of SCTP leads to the server's port 8080.
fn fill(maps: &Maps, client: u32, server: u32) {
    const SERVICE: u32 = 7;
    maps.config().set(0, &Config::default()).expect("write the map");
    for (ifindex, kind, address) in [(client, PortKind::Veth, CLIENT), (server, PortKind::Tap, SERVER)] {
        let port = Port { workload: 1000 + ifindex, mac: CLIENT_MAC, kind: kind as u8, ..Port::default() };
        maps.ports().insert(&ifindex, &port).expect("write the map");
        maps.addresses()
            .insert(&AddressKey::of_cluster(v4(address)), &Owner::workload(ifindex))
            .expect("write the map");
    }
    let set = MemberSet::even(1, 1);
    let balancer = Balancer { internal: set, external: set, cluster: set, name: 7, ..Balancer::default() };
    maps.balancers().insert(&SERVICE, &balancer).expect("write the map");
    let member = Member::new(v4(SERVER), 8080_u16.to_be());
    maps.members().insert(&MemberKey { service: SERVICE, set: 1, index: 0 }, &member).expect("write the map");
    let serves = BackendFlags::SERVING | BackendFlags::INTERNAL;
    maps.backends().insert(&BackendKey::new(SERVICE, member.addr, member.port), &serves).expect("write the map");
    let frontend = FrontendKey::of_cluster(v4(VIP), 80_u16.to_be(), SCTP);
    maps.frontends().insert(&frontend, &Frontend { service: SERVICE, flags: 0 }).expect("write the map");
}

fn v4(octets: [u8; 4]) -> Addr {
    Addr::from(std::net::IpAddr::from(octets))
}

/// Linux sums up over what the field has: a difference there would be part of the sum.
#[test]
fn an_sctp_checksum_that_is_left_to_others_stays_0() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let [client, server] = [(); 2].map(|()| Netns::new());
    let [client_veth, server_veth] = [("client", &client), ("server", &server)].map(|(name, end)| Veth::new(name, end));
    fill(dataplane.maps(), client_veth.ifindex, server_veth.ifindex);
    dataplane.attach(Program::FromWorkload, &client_veth.name, client_veth.ifindex).unwrap();
    let transport =
        [&4000_u16.to_be_bytes()[..], &80_u16.to_be_bytes(), &[0, 0, 0, 9, 0, 0, 0, 0], b"payload"].concat();
    let mut frame = LEFT.to_vec();
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC).ipv4(CLIENT, VIP, 64);
    builder.write(&mut frame, IpNumber::SCTP, &transport).unwrap();
    let mut receiver = server.run(packets);
    client.run(packets).write_all(&frame).expect("send");
    let mut buffer = [0; 2048];
    let seen = loop {
        let len = receiver.read(&mut buffer).expect("the packet within ten seconds");
        let seen = &buffer[..len];
        if seen.get(LEFT.len() + 23) == Some(&SCTP) && seen[LEFT.len() + 12..][..2] == [8, 0] {
            break seen;
        }
    };
    let (header, packet) = seen.split_at(LEFT.len());
    assert_eq!((header[0], &header[6..]), (1, &LEFT[6..]), "still to be written");
    assert_eq!(packet[L4..L4 + 4], [4000_u16.to_be_bytes(), 8080_u16.to_be_bytes()].concat());
    assert_eq!(packet[L4 + 4..], transport[4..]);
}
