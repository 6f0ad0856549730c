// SPDX-License-Identifier: Apache-2.0
//! How long a guest that sends without a pause is without network when its device dies and is started again.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use weft_test_vmm::guest::frame::ETHERNET;
use weft_test_vmm::{FrontEnd, Task, Work};

use crate::peer::HEADER;
use crate::peer::host::{Host, Wire};
use crate::report::Report;
use crate::served::{self, Served, below};
use crate::settings::Settings;

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    if settings.wants("restart") {
        let times = settings.repeat(|| once(host, settings))?;
        report.alone("restart", "ms", &times);
    }
    Ok(())
}

fn once(host: &Host, settings: &Settings) -> Result<f64> {
    let mut served = Served::new(host, settings, &[])?;
    let mut frame = vec![0; HEADER + 64];
    frame[HEADER..][..14].copy_from_slice(&ETHERNET);
    served.machine.set_template(&frame)?;
    served.machine.start(Work { frame_len: frame.len() as u32, ..Work::new(Task::Transmit) })?;
    let wire = Wire::open(&host.tap, false)?;
    wait_for_frame(&wire)?;
    let start = Instant::now();
    served.backend.kill()?;
    drain(&wire)?;
    // As a supervisor does it: the device is not kept to one processor before it serves.
    served.backend = below(settings, || served::backend(host, &[]))?;
    served.front = FrontEnd::connect(&host.socket(), &served.machine)?;
    wait_for_frame(&wire)?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    served.machine.stop()?;
    Ok(time)
}

fn wait_for_frame(wire: &Wire) -> Result<()> {
    // SAFETY: the socket is open as long as `wire` lives.
    let fd = unsafe { BorrowedFd::borrow_raw(wire.fd()) };
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(20_000u16)).context("poll")?;
    ensure!(ready == 1, "no frame of the guest");
    Ok(())
}

/// Takes the frames of the dead device away.
fn drain(wire: &Wire) -> Result<()> {
    let mut frame = [0; 2048];
    loop {
        match recv(wire.fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error).context("read of the packet socket"),
        }
    }
}
