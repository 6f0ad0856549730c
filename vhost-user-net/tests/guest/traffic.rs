// SPDX-License-Identifier: Apache-2.0
//! What is sent to a guest and fetched from it, and checked on both sides.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BOOT_PATIENCE, FILE_BYTES, Guest, STREAM_PATIENCE};
use crate::peer::host::{Host, eventually, run};

/// The guest keeps its records in memory: from here on they come slowly.
const RECORD_BYTES: usize = 32 << 20;

/// One record of the stream; the guest's `check` knows the form.
pub fn record(number: u64) -> String {
    let hash = (number * 2_654_435 + 12_345) % 1_000_003;
    let letter = char::from(b'a' + (number % 26) as u8);
    format!("{number} {hash} {}\n", letter.to_string().repeat(1 + (number % 700) as usize))
}

fn md5(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.split_whitespace().next().context("md5sum")?.to_owned())
}

/// The next connection, unless it does not come.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let timeout = PollTimeout::try_from(STREAM_PATIENCE)?;
    let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
    ensure!(ready == 1, "the guest does not connect to {}", listener.local_addr()?);
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STREAM_PATIENCE))?;
    stream.set_write_timeout(Some(STREAM_PATIENCE))?;
    Ok(stream)
}

/// Serves `bytes` to the first client that asks.
fn serve_once(listener: &TcpListener, bytes: &[u8]) -> Result<()> {
    let mut stream = accept(listener)?;
    let mut request = [0; 1024];
    let _len = stream.read(&mut request)?;
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
    stream.write_all(bytes)?;
    Ok(())
}

/// Fetches a file from the guest; `midway` is called once after a part of it came.
pub fn fetch(path: &str, midway: impl FnOnce() -> Result<()>) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&"10.9.0.2:80".parse()?, STREAM_PATIENCE)?;
    stream.set_read_timeout(Some(STREAM_PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut all = Vec::new();
    let mut part = vec![0; 1 << 16];
    let mut midway = Some(midway);
    loop {
        let count = stream.read(&mut part).context("reading from the guest")?;
        if count == 0 {
            break;
        }
        all.extend_from_slice(&part[..count]);
        if all.len() > FILE_BYTES / 8
            && let Some(midway) = midway.take()
        {
            midway()?;
        }
    }
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no HTTP header")?;
    Ok(all.split_off(end + 4))
}

/// Traffic that runs while something happens to the device.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    records: Option<JoinHandle<Result<(u64, String)>>>,
    ping: Child,
    link_changes: u64,
}

impl Traffic {
    /// Waits for the guest, has it fetch a file, and starts the stream of records and a ping that goes on.
    pub fn start(guest: &mut Guest, host: &Host) -> Result<Self> {
        guest.wait_for("GUEST-READY", BOOT_PATIENCE)?;
        let link_changes = changes(&guest.wait_for("LINK-AT-FIRST", BOOT_PATIENCE)?)?;
        run("ping -c 3 -i 0.2 -W 5 10.9.0.2")?;
        let (files, records) = (TcpListener::bind("10.9.0.1:8000")?, TcpListener::bind("10.9.0.1:8001")?);
        let bytes: Vec<u8> = (0..FILE_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        serve_once(&files, &bytes)?;
        let got = guest.wait_for("DOWNLOADED", STREAM_PATIENCE)?;
        ensure!(got.starts_with(&md5(&bytes)?), "the guest got {got}");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let records = std::thread::spawn(move || send_records(accept(&records)?, &seen));
        let log = std::fs::File::create(host.path("ping.log"))?;
        let ping = Command::new("ping")
            .args(["-q", "-i", "0.01", "-s", "1000", "10.9.0.2"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("ping; install iputils-ping")?;
        Ok(Self { stop, records: Some(records), ping, link_changes })
    }

    /// Fetches a file from the guest, with `midway` after a part of it.
    pub fn fetch_while(&self, midway: impl FnOnce() -> Result<()>) -> Result<()> {
        let sum = String::from_utf8(fetch("sum", || Ok(()))?)?;
        let big = fetch("big", midway)?;
        ensure!(sum.starts_with(&md5(&big)?), "{} bytes of the guest, sum {sum}", big.len());
        ensure!(self.records.as_ref().is_some_and(|sender| !sender.is_finished()), "the stream of records ended early");
        Ok(())
    }

    /// Ends the traffic: the guest has every record once and whole, and answered no ping twice or with other bytes.
    /// Returns how often the guest's link changed since it was ready.
    pub fn finish(mut self, guest: &mut Guest, host: &Host) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.records.take().context("no sender of records")?;
        let (count, sum) = sender.join().ok().context("the sender of records panicked")??;
        let words = guest.wait_for("RECORDS ", STREAM_PATIENCE)?;
        ensure!(words == format!("{count} bad 0"), "{count} records sent, the guest says {words}");
        let kept = guest.wait_for("RECORDS-SUM", STREAM_PATIENCE)?;
        ensure!(kept.starts_with(&sum), "the guest kept {kept}, sent was {sum}");
        kill(Pid::from_raw(i32::try_from(self.ping.id())?), Signal::SIGINT)?;
        eventually("the end of ping", || Ok(self.ping.try_wait()?))?;
        let said = std::fs::read_to_string(host.path("ping.log"))?;
        for trouble in ["duplicates", "corrupted", "errors"] {
            ensure!(!said.contains(trouble), "ping: {said}");
        }
        let answers = said.lines().find_map(|line| line.split_once(" packets transmitted, "));
        let answers: u64 = answers.and_then(|(_, rest)| rest.split(' ').next()).context("ping")?.parse()?;
        ensure!(answers > 0, "ping: {said}");
        Ok(changes(&guest.wait_for("LINK ", STREAM_PATIENCE)?)? - self.link_changes)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It has ended where the test went well.
        if let Err(error) = self.ping.kill().and_then(|()| self.ping.wait().map(drop)) {
            eprintln!("ending ping: {error}");
        }
    }
}

/// The number in the guest's words on its link.
fn changes(words: &str) -> Result<u64> {
    words.strip_suffix(" changes").and_then(|number| number.parse().ok()).with_context(|| format!("link: {words}"))
}

/// Sends records until told to stop; returns how many, and the sum of their bytes.
fn send_records(mut stream: TcpStream, stop: &AtomicBool) -> Result<(u64, String)> {
    let (mut number, mut all) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let from = all.len();
        for _ in 0..10 {
            all.extend_from_slice(record(number).as_bytes());
            number += 1;
        }
        stream.write_all(&all[from..]).with_context(|| format!("record {number}"))?;
        std::thread::sleep(Duration::from_millis(if all.len() < RECORD_BYTES { 2 } else { 50 }));
    }
    drop(stream);
    Ok((number, md5(&all)?))
}
