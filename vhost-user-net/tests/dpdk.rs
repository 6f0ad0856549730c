// SPDX-License-Identifier: Apache-2.0
//! DPDK's testpmd as front end (virtio_user): mergeable and single buffers, in order or not, one to four queue pairs,
//! as client and as server, scattered frames, a device that dies under it, and the packed ring that this device has
//! not.
//!
//! Needs the Debian package `dpdk-dev` (`dpdk-testpmd`); a missing one is a failure. No hugepages are needed.

mod peer;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use peer::host::{Backend, Host, Wire, eventually};

/// testpmd polls: one at a time leaves a processor for the device.
static TURN: Mutex<()> = Mutex::new(());

fn my_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What virtio_user is asked to be.
#[derive(Debug, Clone, Copy)]
struct Case {
    mergeable: bool,
    in_order: bool,
    pairs: usize,
    /// Whether virtio_user listens and the device connects.
    server: bool,
}

impl Case {
    const PLAIN: Self = Self { mergeable: true, in_order: true, pairs: 1, server: false };

    /// Arguments of the virtual device.
    fn device(self, host: &Host) -> String {
        let Self { mergeable, in_order, pairs, server } = self;
        let mut text = format!(
            "net_virtio_user0,path={},mac=52:54:00:00:00:02,queue_size=256,queues={pairs},mrg_rxbuf={},in_order={}",
            host.socket().display(),
            u8::from(mergeable),
            u8::from(in_order),
        );
        // Several pairs need virtio_user's own control queue; the device has none.
        text.push_str(if pairs > 1 { ",cq=1" } else { "" });
        text.push_str(if server { ",server=1" } else { "" });
        text
    }

    /// Starts the device in the role that virtio_user leaves to it.
    fn backend(self, host: &Host) -> Result<Backend> {
        let queues = self.pairs.to_string();
        if !self.server {
            return host.backend(&["--queues", &queues]);
        }
        let socket = host.socket();
        let socket = socket.to_str().context("path")?;
        host.spawn(&["--socket", socket, "--tap", &host.tap, "--client", "--retry-ms", "20", "--queues", &queues], &[])
    }
}

/// A running testpmd with one port, killed on drop.
struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    log: PathBuf,
}

/// Frames that went through testpmd since its last start.
#[derive(Debug, PartialEq, Eq)]
struct Totals {
    received: u64,
    sent: u64,
}

impl Testpmd {
    fn start(host: &Host, device: &str, pairs: usize, more: &[&str]) -> Result<Self> {
        let log = host.path("testpmd.log");
        let file = std::fs::File::create(&log)?;
        let (queues, cpus) = (pairs.to_string(), processors()?);
        // Its standard output is a file: without stdbuf what it says would stay with it until its end.
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "dpdk-testpmd",
                &format!("--lcores=0@({cpus}),1@({cpus})"),
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
            ])
            .args(["--no-telemetry", &format!("--file-prefix=weft{}", std::process::id()), "--vdev", device, "--"])
            .args(["--interactive", "--total-num-mbufs=4096", "--no-flush-rx"])
            .args(["--rxq", &queues, "--txq", &queues])
            .args(more)
            // Its runtime files go where they are removed with the test.
            .env("RUNTIME_DIRECTORY", host.dir.path())
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("stdbuf dpdk-testpmd; install coreutils and dpdk-dev")?;
        let stdin = child.stdin.take().context("stdin")?;
        Ok(Self { child, stdin, log })
    }

    fn output(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    fn say(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}").with_context(|| format!("{command}; testpmd said:\n{}", self.log.display()))
    }

    /// Waits until testpmd says something after `from`, and returns what comes after the words.
    fn wait_for(&mut self, words: &str, from: usize) -> Result<String> {
        eventually(&format!("testpmd to say {words:?}"), || {
            let text = self.output()?;
            let rest = text.get(from..).and_then(|new| new.split_once(words)).map(|(_, rest)| rest.to_owned());
            ensure!(rest.is_some() || self.child.try_wait()?.is_none(), "testpmd ended");
            Ok(rest)
        })
        .with_context(|| self.output().unwrap_or_default())
    }

    /// Starts forwarding in this mode.
    fn forward(&mut self, mode: &str) -> Result<()> {
        let from = self.output()?.len();
        self.say(&format!("set fwd {mode}"))?;
        self.say("start")?;
        self.wait_for(&format!("{mode} packet forwarding"), from).map(drop)
    }

    /// Stops forwarding; returns what went through since the start.
    fn halt(&mut self) -> Result<Totals> {
        let from = self.output()?.len();
        self.say("stop")?;
        self.wait_for("\nDone.", from)?;
        let text = self.output()?;
        let sums = text.get(from..).and_then(|new| new.split_once("Accumulated forward statistics"));
        let (_, sums) = sums.with_context(|| format!("no statistics in {text}"))?;
        let number = |name: &str| -> Result<u64> {
            let (_, rest) = sums.split_once(name).with_context(|| format!("no {name} in {sums}"))?;
            let word = rest.split_whitespace().next().context("number")?;
            word.parse().with_context(|| format!("{name}: {word}"))
        };
        Ok(Totals { received: number("RX-packets:")?, sent: number("TX-packets:")? })
    }

    /// Ends testpmd politely.
    fn quit(mut self) -> Result<()> {
        self.say("quit")?;
        let status = eventually("testpmd's end", || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "testpmd: {status}; it said:\n{}", self.output()?);
        Ok(())
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("ending testpmd: {error}");
        }
        eprintln!("testpmd said:\n{}", self.output().unwrap_or_default());
    }
}

/// The processors this process may use, in the form of the kernel's lists.
fn processors() -> Result<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.context("Cpus_allowed_list")?.trim().to_owned())
}

/// A UDP frame of a flow of its own, `len` bytes, to the guest.
fn flow(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 0];
    let total = (len - 14) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, number, 10, 0, 1, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&[0x30, number, 0, 53]);
    frame.extend_from_slice(&(total - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend((frame.len()..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(number)));
    frame
}

/// The frame as testpmd's macswap mode sends it back.
fn swapped(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

/// Sends frames of many flows and sizes, some at a time, and wants each back once with its addresses exchanged.
fn echo(wire: &Wire, pairs: usize) -> Result<u64> {
    const FLOWS: u8 = 96;
    const WINDOW: usize = 16;
    let frames: Vec<_> = (0..FLOWS).map(|number| flow(number, 60 + usize::from(number) * 97 % 1455)).collect();
    for window in frames.chunks(WINDOW) {
        for frame in window {
            wire.send(frame)?;
        }
        let mut expected: Vec<_> = window.iter().map(|frame| swapped(frame)).collect();
        while !expected.is_empty() {
            let got = wire.receive()?;
            let at = expected.iter().position(|frame| *frame == got);
            let at = at.with_context(|| format!("a frame nobody sent: {} bytes {:x?}", got.len(), &got[..14]))?;
            ensure!(at == 0 || pairs > 1, "frame {at} of the window overtook the first");
            expected.remove(at);
        }
    }
    Ok(FLOWS.into())
}

/// Frames the kernel took from the tap.
fn taken_from_tap(tap: &str) -> Result<u64> {
    // Sysfs would show another namespace's interfaces.
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{tap}:")));
    let word = line.and_then(|line| line.split_whitespace().nth(1)).with_context(|| format!("{tap} in {table}"))?;
    Ok(word.parse()?)
}

fn wait_running(backend: &Backend, pairs: usize) -> Result<serde_json::Value> {
    eventually("all rings to run", || {
        let metrics = backend.metrics()?;
        let running =
            |ring: usize| metrics["rings"][ring]["state"] == "running" && metrics["rings"][ring]["enabled"] == true;
        Ok((0..2 * pairs).all(running).then_some(metrics))
    })
}

/// Whether the feature is in force.
fn has(metrics: &serde_json::Value, feature: &str) -> bool {
    metrics["features"].as_array().is_some_and(|names| names.iter().any(|name| name == feature))
}

fn ring_frames(metrics: &serde_json::Value, ring: usize) -> Result<u64> {
    metrics["rings"][ring]["frames"].as_u64().with_context(|| format!("frames of ring {ring}: {metrics}"))
}

/// Floods the wire from testpmd and wants every frame it counts to have come out of the tap.
fn flood(testpmd: &mut Testpmd, backend: &Backend, host: &Host, pairs: usize) -> Result<()> {
    const LEAST: u64 = 20_000;
    let sum =
        |metrics: &serde_json::Value| (0..pairs).map(|pair| ring_frames(metrics, 2 * pair + 1)).sum::<Result<u64>>();
    let before = (taken_from_tap(&host.tap)?, sum(&backend.metrics()?)?);
    testpmd.forward("txonly")?;
    eventually("frames on the tap", || Ok((taken_from_tap(&host.tap)? - before.0 >= LEAST).then_some(())))?;
    let totals = testpmd.halt()?;
    eventually(&format!("{} frames on the tap", totals.sent), || {
        let taken = taken_from_tap(&host.tap)? - before.0;
        ensure!(taken <= totals.sent, "{taken} frames on the tap, testpmd sent {}", totals.sent);
        Ok((taken == totals.sent).then_some(()))
    })?;
    let counted = sum(&backend.metrics()?)? - before.1;
    ensure!(counted == totals.sent, "the device counts {counted}, testpmd {}", totals.sent);
    Ok(())
}

/// One front end's life: frames both ways, compared byte by byte, then as many as go, counted on both sides.
fn walk(case: Case) -> Result<()> {
    let host = Host::new(case.pairs)?;
    let mut backend = case.backend(&host)?;
    let mut testpmd = Testpmd::start(&host, &case.device(&host), case.pairs, &[])?;
    let metrics = wait_running(&backend, case.pairs)?;
    for (feature, wanted) in
        [("VERSION_1", true), ("MRG_RXBUF", case.mergeable), ("IN_ORDER", case.in_order), ("MQ", case.pairs > 1)]
    {
        ensure!(has(&metrics, feature) == wanted, "{feature} in force is not {wanted}: {metrics}");
    }
    let wire = Wire::open(&host.tap, false)?;
    testpmd.forward("macswap")?;
    let count = echo(&wire, case.pairs)?;
    let totals = testpmd.halt()?;
    ensure!(totals == Totals { received: count, sent: count }, "{count} frames, testpmd counts {totals:?}");
    let metrics = backend.metrics()?;
    for ring in 0..2 * case.pairs {
        ensure!(ring_frames(&metrics, ring)? > 0, "ring {ring} moved nothing: {metrics}");
    }
    drop(wire);
    flood(&mut testpmd, &backend, &host, case.pairs)?;
    testpmd.quit()?;
    let metrics = backend.metrics()?;
    for ring in 0..2 * case.pairs {
        ensure!(metrics["rings"][ring]["violations"] == 0, "violations: {metrics}");
    }
    ensure!(backend.stop()?, "the device did not end well");
    Ok(())
}

fn walk_all(cases: impl IntoIterator<Item = Case>) -> Result<()> {
    let _turn = my_turn();
    cases.into_iter().try_for_each(|case| walk(case).with_context(|| format!("{case:?}")))
}

/// Every combination of buffers and order, for this number of pairs and this role.
fn combinations(pairs: usize, server: bool) -> impl Iterator<Item = Case> {
    let both = [false, true];
    both.into_iter().flat_map(move |mergeable| both.map(move |in_order| Case { mergeable, in_order, pairs, server }))
}

#[test]
fn virtio_user_as_client_exchanges_frames() -> Result<()> {
    walk_all(combinations(1, false))
}

#[test]
fn virtio_user_as_server_exchanges_frames() -> Result<()> {
    walk_all(combinations(1, true))
}

#[test]
fn virtio_user_with_two_pairs_exchanges_frames() -> Result<()> {
    walk_all(combinations(2, false).chain([Case { pairs: 2, server: true, ..Case::PLAIN }]))
}

#[test]
fn virtio_user_with_four_pairs_exchanges_frames() -> Result<()> {
    walk_all([Case { pairs: 4, ..Case::PLAIN }])
}

#[test]
fn frames_are_spread_over_small_buffers_both_ways() -> Result<()> {
    let _turn = my_turn();
    let host = Host::new(1)?;
    let backend = Case::PLAIN.backend(&host)?;
    // Data rooms of 384 bytes: a long frame takes four buffers of the ring, and four descriptors on its way back.
    let small = ["--mbuf-size=512", "--enable-scatter", "--tx-offloads=0x8000"];
    let mut testpmd = Testpmd::start(&host, &Case::PLAIN.device(&host), 1, &small)?;
    wait_running(&backend, 1)?;
    let wire = Wire::open(&host.tap, false)?;
    testpmd.forward("macswap")?;
    let count = echo(&wire, 1)?;
    ensure!(testpmd.halt()? == Totals { received: count, sent: count }, "testpmd counts otherwise");
    testpmd.quit()
}

#[test]
fn a_front_end_that_asks_for_packed_rings_gets_split_ones() -> Result<()> {
    let _turn = my_turn();
    let host = Host::new(1)?;
    let backend = Case::PLAIN.backend(&host)?;
    let device = format!("{},packed_vq=1", Case::PLAIN.device(&host));
    let mut testpmd = Testpmd::start(&host, &device, 1, &[])?;
    let metrics = wait_running(&backend, 1)?;
    ensure!(has(&metrics, "VERSION_1") && metrics["last_error"].is_null(), "{metrics}");
    let wire = Wire::open(&host.tap, false)?;
    testpmd.forward("macswap")?;
    echo(&wire, 1)?;
    testpmd.quit()
}

#[test]
fn virtio_user_as_server_goes_on_when_the_device_was_killed() -> Result<()> {
    let _turn = my_turn();
    let case = Case { server: true, ..Case::PLAIN };
    let host = Host::new(1)?;
    let mut backend = case.backend(&host)?;
    let mut testpmd = Testpmd::start(&host, &case.device(&host), 1, &[])?;
    testpmd.forward("macswap")?;
    for _ in 0..3 {
        wait_running(&backend, 1)?;
        let wire = Wire::open(&host.tap, false)?;
        echo(&wire, 1)?;
        backend.kill()?;
        backend = case.backend(&host)?;
    }
    wait_running(&backend, 1)?;
    echo(&Wire::open(&host.tap, false)?, 1)?;
    testpmd.quit()
}
