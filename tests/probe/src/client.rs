// SPDX-License-Identifier: Apache-2.0
//! `connect`: asks a server who it is.

use std::{
    io::{self, BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use crate::arguments::Arguments;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let protocol = arguments.required("tcp, udp or udp-unconnected")?;
    let server = parse_server(&arguments.required("ADDR:PORT")?)?;
    let timeout = Duration::from_millis(arguments.option("--timeout")?.unwrap_or(2000));
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    arguments.finish()?;
    let mut failure = None;
    for _ in 0..count {
        let answer = match protocol.as_str() {
            "tcp" => ask_tcp(server, timeout),
            "udp" => ask_udp(server, timeout),
            "udp-unconnected" => ask_unconnected(server, timeout),
            other => return Err(format!("'{other}' is neither tcp, udp nor udp-unconnected")),
        };
        match answer {
            Ok(line) => println!("{line}"),
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(()), |error| Err(format!("{protocol} {server}: {}", describe(&error))))
}

/// Reads `ADDR:PORT`, with brackets around an IPv6 address.
pub(crate) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not ADDR:PORT"))
}

/// An unconnected socket of `server`'s family.
pub(crate) fn unbound(server: SocketAddr) -> io::Result<UdpSocket> {
    if server.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    }
}

fn ask_tcp(server: SocketAddr, timeout: Duration) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&server, timeout)?;
    check_name(stream.peer_addr()?, server)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(line.trim_end().to_owned()) }
}

fn ask_udp(server: SocketAddr, timeout: Duration) -> io::Result<String> {
    let socket = unbound(server)?;
    socket.connect(server)?;
    check_name(socket.peer_addr()?, server)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(b"who")?;
    let mut buffer = [0; 2048];
    let read = socket.recv(&mut buffer)?;
    Ok(first_line(&buffer[..read]))
}

/// By a socket that asks nobody else and is connected to nobody: the answer has to come from whom it asked.
fn ask_unconnected(server: SocketAddr, timeout: Duration) -> io::Result<String> {
    let socket = unbound(server)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"who", server)?;
    let mut buffer = [0; 2048];
    let (read, from) = socket.recv_from(&mut buffer)?;
    check_name(from, server)?;
    Ok(first_line(&buffer[..read]))
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned()
}

/// Whoever answers is told to be the one that was asked.
fn check_name(told: SocketAddr, asked: SocketAddr) -> io::Result<()> {
    if (told.ip(), told.port()) == (asked.ip(), asked.port()) {
        return Ok(());
    }
    Err(io::Error::other(format!("the other end is named {told}")))
}

/// One word for the outcomes that tests tell apart.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "timeout".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        _ => error.to_string(),
    }
}
