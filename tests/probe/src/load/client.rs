// SPDX-License-Identifier: Apache-2.0
//! The client: round trips, short connections, or one stream.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use super::{ECHO, SINK, hurry, pin};
use crate::{arguments::Arguments, client::parse_server};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Round trips that are made but not measured.
const WARM_UP: usize = 50;

/// Upper bound of the measured ones: a short connection leaves its port in TIME_WAIT for a minute, and the search for a
/// free one takes milliseconds once half of the ports are in it.
const MOST_CONNECTIONS: usize = 500;
const MOST_ROUND_TRIPS: usize = 1_000_000;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let kind = arguments.required("rr, crr or stream")?;
    let server = parse_server(&arguments.required("ADDR:PORT")?)?;
    let duration = Duration::from_millis(arguments.option("--millis")?.unwrap_or(1000));
    let cpu = arguments.option("--cpu")?;
    arguments.finish()?;
    hurry();
    pin(cpu)?;
    let line = match kind.as_str() {
        "rr" => round_trips(server, duration).map(describe),
        "crr" => connections(server, duration).map(describe),
        "stream" => stream(server, duration),
        other => return Err(format!("'{other}' is none of rr, crr, stream")),
    };
    println!("{}", line.map_err(|error| format!("{kind} {server}: {error}"))?);
    Ok(())
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Nanoseconds of each measured call of `step`, until `duration` is over or there are `most`.
fn measure(duration: Duration, most: usize, mut step: impl FnMut() -> io::Result<()>) -> io::Result<Vec<u64>> {
    for _ in 0..WARM_UP {
        step()?;
    }
    let mut times = Vec::with_capacity(most);
    let end = Instant::now() + duration;
    let mut now = Instant::now();
    while now < end && times.len() < most {
        step()?;
        let after = Instant::now();
        times.push(u64::try_from((after - now).as_nanos()).unwrap_or(u64::MAX));
        now = after;
    }
    Ok(times)
}

/// TCP_RR: one byte there and back on one connection.
fn round_trips(server: SocketAddr, duration: Duration) -> io::Result<Vec<u64>> {
    let mut stream = connect(server)?;
    let mut byte = [ECHO];
    measure(duration, MOST_ROUND_TRIPS, || {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    })
}

/// TCP_CRR: connect, one byte there and back, close.
fn connections(server: SocketAddr, duration: Duration) -> io::Result<Vec<u64>> {
    let mut byte = [ECHO];
    measure(duration, MOST_CONNECTIONS, || {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    })
}

/// By the socket and not by sysctl: network namespaces other than the first one may only choose what the machine allows to all.
fn use_cubic(stream: &TcpStream) -> io::Result<()> {
    let name = b"cubic";
    let length = name.len() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the name is as long as is said.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_ptr().cast(), length)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("setsockopt TCP_CONGESTION cubic: {error}")))
}

/// One stream; the clock stops when the server has counted the last byte.
fn stream(server: SocketAddr, duration: Duration) -> io::Result<String> {
    let mut stream = connect(server)?;
    use_cubic(&stream)?;
    let buffer = vec![SINK; 256 * 1024];
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(format!("bytes {} nanos {}", u64::from_be_bytes(count), start.elapsed().as_nanos()))
}

/// Both percentiles by nearest rank.
fn describe(mut times: Vec<u64>) -> String {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    format!("p50 {} p99 {} count {}", at(50), at(99), times.len())
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn percentiles_by_nearest_rank() {
        assert_eq!(describe((1..=100).rev().collect()), "p50 50 p99 99 count 100");
        assert_eq!(describe(vec![7]), "p50 7 p99 7 count 1");
        assert_eq!(describe(Vec::new()), "p50 0 p99 0 count 0");
    }
}
