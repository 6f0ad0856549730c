// SPDX-License-Identifier: Apache-2.0
//! The server: one connection after the other.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream},
    time::Duration,
};

use super::{SINK, hurry, pin};
use crate::arguments::Arguments;

/// A client that is silent for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let port: u16 = arguments.required("PORT")?.parse().map_err(|_| "PORT is not a number up to 65535".to_owned())?;
    let cpu = arguments.option("--cpu")?;
    arguments.finish()?;
    hurry();
    pin(cpu)?;
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).map_err(|error| format!("tcp port {port}: {error}"))?;
    println!("READY");
    let mut buffer = vec![0; 256 * 1024];
    for stream in listener.incoming() {
        // A client that goes away is its own business.
        drop(stream.and_then(|stream| answer(stream, &mut buffer)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut read = stream.read(buffer)?;
    if buffer[0] == SINK && read > 0 {
        return sink(stream, buffer, read);
    }
    while read > 0 {
        stream.write_all(&buffer[..read])?;
        read = stream.read(buffer)?;
    }
    Ok(())
}

fn sink(mut stream: TcpStream, buffer: &mut [u8], first: usize) -> io::Result<()> {
    let mut total = first;
    loop {
        match stream.read(buffer)? {
            0 => return stream.write_all(&(total as u64).to_be_bytes()),
            read => total += read,
        }
    }
}
