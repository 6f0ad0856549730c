// SPDX-License-Identifier: Apache-2.0
//! `bulk`: many bytes to a server and back, each of them checked.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{arguments::Arguments, client::parse_server};

/// Bytes of one call: more than a segment takes, so that the kernel makes segments of full size.
const CHUNK: usize = 256 << 10;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let server = parse_server(&arguments.required("ADDR:PORT")?)?;
    let chunks = arguments.option("--mib")?.unwrap_or(16_usize) * (1 << 20) / CHUNK;
    let timeout = Duration::from_millis(arguments.option("--timeout")?.unwrap_or(30_000));
    arguments.finish()?;
    let bytes = exchange(server, chunks, timeout).map_err(|error| format!("tcp {server}: {error}"))?;
    println!("{bytes} bytes there and back");
    Ok(())
}

/// Sends and reads at the same time, since the server echoes as it reads; the bytes that came back as they were sent.
fn exchange(server: SocketAddr, chunks: usize, timeout: Duration) -> io::Result<usize> {
    let mut sender = TcpStream::connect_timeout(&server, timeout)?;
    sender.set_write_timeout(Some(timeout))?;
    sender.set_read_timeout(Some(timeout))?;
    let mut receiver = BufReader::with_capacity(CHUNK, sender.try_clone()?);
    receiver.read_line(&mut String::new())?;
    let sending = thread::spawn(move || (0..chunks).try_for_each(|number| sender.write_all(&chunk(number))));
    let mut got = vec![0; CHUNK];
    for number in 0..chunks {
        receiver.read_exact(&mut got)?;
        if got != chunk(number) {
            return Err(io::Error::other(format!("chunk {number} came back changed")));
        }
    }
    sending.join().map_err(|_| io::Error::other("the sender panicked"))??;
    Ok(chunks * CHUNK)
}

/// Words that tell where they belong.
fn chunk(number: usize) -> Vec<u8> {
    (0..CHUNK / 8)
        .flat_map(|word| ((number * CHUNK + word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}
