// SPDX-License-Identifier: Apache-2.0

//! A6: the owner of a tap opens it in the moment in which it is there, and sends before ADD is done.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use weft_probe::frames::Offload;

use super::{
    Case,
    attacker::Family,
    frame::{self, Link},
    net::Place as _,
    site::datagram,
    tap::OpenTap,
    witness::{Mark, Witness},
};
use crate::{
    bed::Bed,
    binaries::Binaries,
    cni::{Attachment, Plug},
    node::Mode,
};

/// Where the frames go to.
const PORT: u16 = 7_006;
/// How often a tap is made: its owner has to be quick.
const TRIES: usize = 8;
/// The owner gives up after this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// One node.
pub(super) struct Site {
    bed: Bed,
}

impl Site {
    /// The site.
    pub(super) fn new(binaries: &Binaries) -> Result<Self> {
        Ok(Self { bed: super::bed(1, Mode::Vxlan, Value::Null, binaries)? })
    }
}

pub(super) fn cases() -> Vec<Case<Site>> {
    // The host speaks no IPv6 on a port.
    vec![Case::new("A6/frames-before-the-programs/tap/ipv4", first_frames)]
}

/// What nobody's port may let through: a broadcast to the host's sockets, which no route and no filter of sources stops.
fn early(mark: &Mark) -> Vec<u8> {
    let link = Link { to: [0xff; 6], from: [2, 0, 0, 0, 6, 6] };
    frame::udp(link, (Ipv4Addr::UNSPECIFIED, 5_060).into(), (Ipv4Addr::BROADCAST, PORT).into(), mark)
}

fn first_frames(site: &Site) -> Result<()> {
    let node = site.bed.node(1);
    let socket = node.udp(SocketAddr::new(Family::V4.any(), PORT))?;
    let honest = SocketAddr::new(node.v4().into(), PORT);
    let attack = |mark: &Mark| {
        for _ in 0..TRIES {
            let mut attachment = Attachment::new(&Rc::clone(node), "default/early", Plug::Tap)?;
            let (done, looking) = (AtomicBool::new(false), Barrier::new(2));
            let frame = early(mark);
            let namespace = node.net();
            thread::scope(|scope| {
                let owner = scope.spawn(|| send_at_once(&namespace, &frame, &looking, &done));
                looking.wait();
                let added = attachment.add();
                done.store(true, Ordering::Relaxed);
                let sent = owner.join().map_err(|_| anyhow!("the tap's owner panicked"))??;
                added?;
                anyhow::ensure!(sent > 0, "the tap's owner could send nothing");
                Ok(())
            })?;
        }
        Ok(())
    };
    Witness::new("a socket of the node", &socket).refuses(attack, |mark| datagram(node.as_ref(), honest, mark))
}

/// Sends `frame` again and again out of the tap that appears in the namespace from `looking` on, until `done`; how often.
fn send_at_once(namespace: &Path, frame: &[u8], looking: &Barrier, done: &AtomicBool) -> Result<usize> {
    let entered = fs::File::open(namespace).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    let known = entered.context("enter the node's namespace").and_then(|()| taps());
    looking.wait();
    let known = known?;
    let deadline = Instant::now() + PATIENCE;
    let tap = loop {
        anyhow::ensure!(Instant::now() < deadline, "no tap appeared");
        let Some(name) = taps()?.into_iter().find(|name| !known.contains(name)) else { continue };
        match OpenTap::open(&name) {
            Ok(tap) => break tap,
            // The plugin still holds it.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error).context("open the tap"),
        }
    };
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
        // Refused while the link is down.
        sent += usize::from(tap.send(frame, Offload::default()).is_ok());
    }
    // ADD has answered: the link is up.
    sent += usize::from(tap.send(frame, Offload::default()).is_ok());
    Ok(sent)
}

/// Names of Weft's ports in the namespace of this thread.
fn taps() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").context("read the table of devices")?;
    let names = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    Ok(names.filter(|name| name.len() == 14 && name.starts_with("weft")).collect())
}
