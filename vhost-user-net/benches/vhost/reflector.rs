// SPDX-License-Identifier: Apache-2.0
//! The station on the tap's other side, which sends back what is meant for it.
//!
//! It is a process of its own, so that whatever serves the guest has the same way to it.
//!
//! It can hold an answer back for a while, as every network does. An answer at once meets a guest that is just coming
//! back from its kick. Where that takes as long as the rest of the way, as in nested virtualization, a microsecond
//! decides whether the guest finds the answer or goes to sleep first, which is half a round trip more: the figure is one
//! of two, by chance. An answer that was held back finds the guest asleep every time.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::Pid;
use weft_test_vmm::guest::frame::ETHERNET;

use crate::peer::host::{Host, Wire};
use crate::processor::{DEVICE_CPU, pin};

/// How long an answer is held back: longer than a guest takes from its kick to its sleep.
pub(crate) const HOLD: Duration = Duration::from_micros(50);

const FLAG: &str = "--reflect";
const READY: &str = "ready";

/// The station; it ends with this value.
pub(crate) struct Reflector(Child);

impl Reflector {
    /// Starts it on the host's tap. It holds every answer back for this time.
    pub(crate) fn start(host: &Host, hold: Duration) -> Result<Self> {
        let program = std::env::current_exe().context("the bench's own program")?;
        let mut child = Command::new(program)
            .args([FLAG, &host.tap, &hold.as_nanos().to_string(), "--bench"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the reflector")?;
        let output = child.stdout.take().context("the reflector's output")?;
        let reflector = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("the reflector's output")?;
        ensure!(line.trim() == READY, "the reflector did not start");
        Ok(reflector)
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        // The end of its input tells it to end.
        drop(self.0.stdin.take());
        match self.0.wait() {
            Ok(status) if status.success() => {}
            result => eprintln!("the reflector ended with {result:?}"),
        }
    }
}

/// Is the reflector, if this process was started as that; returns whether it was.
pub(crate) fn serve_if_asked() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).take(3).collect();
    let [flag, tap, hold] = arguments.as_slice() else { return Ok(false) };
    if flag != FLAG {
        return Ok(false);
    }
    // Where the scheduler would put it differs by device.
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let wire = Wire::open(tap, false)?;
    println!("{READY}");
    std::io::stdout().flush()?;
    serve(&wire, Duration::from_nanos(hold.parse()?))?;
    Ok(true)
}

fn serve(wire: &Wire, hold: Duration) -> Result<()> {
    let input = std::io::stdin();
    let mut frame = [0; 2048];
    loop {
        // SAFETY: the socket is open as long as `wire` lives.
        let socket = unsafe { BorrowedFd::borrow_raw(wire.fd()) };
        let mut events = [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        poll(&mut events, PollTimeout::NONE).context("poll")?;
        if events[1].any() == Some(true) {
            return Ok(());
        }
        match recv(wire.fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(len) if frame.starts_with(&ETHERNET) => {
                wait(hold);
                wire.send(&frame[..len])?;
            }
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error).context("read of the packet socket"),
        }
    }
}

/// Lets time pass without the delays of a timer.
fn wait(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}
