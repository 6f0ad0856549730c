// SPDX-License-Identifier: Apache-2.0
//! `serve`: says its name and whom it sees, then echoes.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use crate::{arguments::Arguments, room};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let name: String = arguments.option("--name")?.ok_or("serve needs --name")?;
    let bind: IpAddr = arguments.option("--bind")?.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    let tcp: Vec<u16> = arguments.every("--tcp")?;
    let udp: Vec<u16> = arguments.every("--udp")?;
    arguments.finish()?;
    let mut threads = Vec::new();
    for port in tcp {
        let listener = TcpListener::bind((bind, port)).map_err(|error| format!("tcp port {port}: {error}"))?;
        let name = name.clone();
        threads.push(thread::spawn(move || accept(&listener, &name)));
    }
    for port in udp {
        let socket = UdpSocket::bind((bind, port)).map_err(|error| format!("udp port {port}: {error}"))?;
        room::make(&socket).map_err(|error| format!("udp port {port}: receive buffer: {error}"))?;
        let name = name.clone();
        threads.push(thread::spawn(move || answer(&socket, &name)));
    }
    println!("READY");
    for thread in threads {
        thread.join().map_err(|_| "a server thread panicked")?;
    }
    Ok(())
}

/// What the server says to `peer`: a v4-mapped address is told as the IPv4 address that it is.
fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn accept(listener: &TcpListener, name: &str) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        // A client that goes away is its own business: the test looks at the client's side.
        thread::spawn(move || drop(serve(stream, &name)));
    }
}

fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting(name, stream.peer_addr()?).as_bytes())?;
    let mut buffer = [0; 16384];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn answer(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 65536];
    loop {
        // Errors here are ICMP messages about earlier answers.
        let Ok((read, peer)) = socket.recv_from(&mut buffer) else { continue };
        let mut reply = greeting(name, peer).into_bytes();
        reply.extend_from_slice(&buffer[..read]);
        drop(socket.send_to(&reply, peer));
    }
}
