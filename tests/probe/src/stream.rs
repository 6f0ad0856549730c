// SPDX-License-Identifier: Apache-2.0
//! `stream`: numbered records there and back, to see loss, disorder and resets.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    arguments::Arguments,
    client::{parse_server, unbound},
    room,
};

/// How fast, how long, and how long to wait for the last answer.
#[derive(Clone, Copy)]
struct Pace {
    per_second: u64,
    seconds: u64,
    timeout: Duration,
}

impl Pace {
    /// Calls `send` with the number of each record, in time.
    fn run(self, mut send: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
        let start = Instant::now();
        let total = self.per_second * self.seconds;
        for number in 0..total {
            let due = start + Duration::from_nanos(number * 1_000_000_000 / self.per_second);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            send(number)?;
        }
        Ok(total)
    }
}

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let protocol = arguments.required("tcp or udp")?;
    let server = parse_server(&arguments.required("ADDR:PORT")?)?;
    let pace = Pace {
        per_second: arguments.option("--rate")?.unwrap_or(1000).max(1),
        seconds: arguments.option("--seconds")?.unwrap_or(5),
        timeout: Duration::from_millis(arguments.option("--timeout")?.unwrap_or(5000)),
    };
    arguments.finish()?;
    match protocol.as_str() {
        "tcp" => stream_tcp(server, pace).map_err(|error| format!("tcp {server}: {error}")),
        "udp" => stream_udp(server, pace).map_err(|error| format!("udp {server}: {error}")),
        other => Err(format!("'{other}' is neither tcp nor udp")),
    }
}

fn stream_tcp(server: SocketAddr, pace: Pace) -> io::Result<()> {
    let mut sender = TcpStream::connect_timeout(&server, pace.timeout)?;
    sender.set_nodelay(true)?;
    sender.set_read_timeout(Some(pace.timeout))?;
    let mut receiver = BufReader::new(sender.try_clone()?);
    let mut greeting = String::new();
    receiver.read_line(&mut greeting)?;
    println!("STREAMING {}", greeting.trim_end());
    let total = pace.per_second * pace.seconds;
    let echo = thread::spawn(move || -> io::Result<u64> {
        let mut record = [0; 8];
        for number in 0..total {
            receiver.read_exact(&mut record)?;
            if u64::from_be_bytes(record) != number {
                return Err(io::Error::other(format!("record {number} came back as {}", u64::from_be_bytes(record))));
            }
        }
        Ok(total)
    });
    let sent = pace.run(|number| {
        // The receiver ends early only if it waited too long.
        if number + 1 < total && echo.is_finished() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sender.write_all(&number.to_be_bytes())
    })?;
    let echoed = echo.join().map_err(|_| io::Error::other("the receiver panicked"))??;
    println!("sent {sent} received {echoed} lost {}", sent - echoed);
    Ok(())
}

fn stream_udp(server: SocketAddr, pace: Pace) -> io::Result<()> {
    let socket = unbound(server)?;
    room::make(&socket)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let receiver = socket.try_clone()?;
    let sending = Arc::new(AtomicBool::new(true));
    let still_sending = Arc::clone(&sending);
    let total = pace.per_second * pace.seconds;
    let counter = thread::spawn(move || count_answers(&receiver, total, pace.timeout, &still_sending));
    println!("STREAMING {server}");
    let sent = pace.run(|number| socket.send(&number.to_be_bytes()).map(drop))?;
    sending.store(false, Ordering::Relaxed);
    let seen = counter.join().map_err(|_| io::Error::other("the receiver panicked"))?;
    let lost = ranges(&seen);
    let count = seen.iter().filter(|seen| !**seen).count() as u64;
    println!("sent {sent} received {} lost {count}", sent - count);
    if lost.is_empty() { Ok(()) } else { Err(io::Error::other(format!("lost of {sent} records: {}", lost.join(" ")))) }
}

/// The numbers that were not seen, neighbours as `first-last`: whether they were lost at once or here and there.
fn ranges(seen: &[bool]) -> Vec<String> {
    let (mut missing, mut next) = (Vec::new(), 0);
    for run in seen.chunk_by(|one, next| one == next) {
        let first = next;
        next += run.len();
        if !run[0] {
            missing.push(format!("{first}-{}", next - 1));
        }
    }
    missing
}

/// Which records came back, until all are there or `patience` has passed after the last was sent.
fn count_answers(socket: &UdpSocket, total: u64, patience: Duration, sending: &AtomicBool) -> Vec<bool> {
    let mut seen = vec![false; usize::try_from(total).unwrap_or(0)];
    let mut received = 0;
    let mut quiet_since = Instant::now();
    let mut buffer = [0; 2048];
    while received < total {
        let read = socket.recv(&mut buffer).unwrap_or(0);
        if let Some(number) = buffer[..read].last_chunk::<8>().map(|record| u64::from_be_bytes(*record)) {
            let fresh = usize::try_from(number).ok().and_then(|number| seen.get_mut(number)).filter(|seen| !**seen);
            if let Some(slot) = fresh {
                *slot = true;
                received += 1;
                quiet_since = Instant::now();
            }
        }
        if sending.load(Ordering::Relaxed) {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() > patience {
            break;
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn what_is_missing_is_told_by_ranges() {
        assert_eq!(ranges(&[true, false, false, true, false]), ["1-2", "4-4"]);
        assert!(ranges(&[true, true]).is_empty());
    }
}
