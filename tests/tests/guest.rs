// SPDX-License-Identifier: Apache-2.0

//! The testbed itself, without Weft: a guest on a bare tap, and a namespace, talk to each other.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use weft_testbed::{Guest, Namespace};

/// The static probe, which is built before these tests run.
fn probe() -> Result<PathBuf> {
    let running = env::current_exe()?;
    let target = running.ancestors().nth(3).context("not in cargo's target folder")?;
    Ok(target.join("static/x86_64-unknown-linux-gnu/debug/weft-probe"))
}

#[test]
fn a_guest_on_a_bare_tap_boots_and_answers() -> Result<()> {
    let prepare = "
        mount -t tmpfs bed /mnt
        ip tuntap add dev tap0 mode tap vnet_hdr
        ip address add 198.51.100.1/24 dev tap0
        ip address add 2001:db8::1/64 dev tap0 nodad
        ip link set tap0 up";
    let machine = Namespace::new("bare", None, prepare)?;
    let guest = Guest::boot(&machine, "bare", "tap0", "02:00:00:00:00:02", &probe()?)?;
    let patience = Duration::from_secs(30);
    let setup = "set -e
        ip link set eth0 up
        ip address add 198.51.100.2/24 dev eth0
        ip address add 2001:db8::2/64 dev eth0
        weft-probe serve --name guest --tcp 80 --udp 80 >/tmp/serve 2>&1 &
        while ! grep -q READY /tmp/serve; do sleep 0.1; done";
    guest.run(setup, patience)?.ok()?;
    for (server, client) in [("198.51.100.2:80", "198.51.100.1"), ("[2001:db8::2]:80", "2001:db8::1")] {
        for protocol in ["tcp", "udp"] {
            let script = format!("{} connect {protocol} {server} --timeout 10000", probe()?.display());
            assert_eq!(machine.sh(None, &script)?.ok()?, format!("guest {client}\n"));
        }
    }
    assert_eq!(guest.run("exit 7", patience)?.status, 7);
    Ok(())
}
