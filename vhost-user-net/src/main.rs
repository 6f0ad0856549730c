// SPDX-License-Identifier: Apache-2.0
//! `weft-vhost`: see the library's documentation.
#![deny(unsafe_op_in_unsafe_fn)]

use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use weft_vhost::args::{Args, SandboxMode};
use weft_vhost::control::Control;
use weft_vhost::device::{Device, DeviceConfig};
use weft_vhost::footprint::{self, Footprint};
use weft_vhost::memory::sigbus;
use weft_vhost::metrics::capabilities;
use weft_vhost::port::Port;
use weft_vhost::protocol::features;
use weft_vhost::service::{self, Endpoint};
use weft_vhost::tap::Tap;
use weft_vhost::{log, sandbox, socket};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.man {
        print_manual()
    } else if args.print_capabilities {
        print_capabilities(&args)
    } else {
        log::start(args.log_format);
        run(args)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may be closed; this is the last word either way.
            writeln!(std::io::stderr(), "weft-vhost: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let stop = block_signals()?;
    sigbus::install().context("sigaction(SIGBUS)")?;
    let tap_name = args.tap.clone().context("--tap is missing")?;
    let tap = Tap::open(&tap_name, args.queues.into())?;
    let endpoint = open_endpoint(&args)?;
    let control = open_control(&args)?;
    let footprint = Footprint::open().context("/proc/self/status")?;
    confine(&args)?;

    let config = device_config(&args, tap_name, tap.udp_segmentation);
    let offer = offer(&config, args.queues.into());
    let ports = tap.queues.into_iter().map(|queue| Arc::new(queue) as Arc<dyn Port>).collect();
    let mut device = Device::new(config, ports)?;
    if let Some(listener) = control {
        let (metrics, tracer) = (Arc::clone(device.metrics()), Arc::clone(device.tracer()));
        Control { metrics, footprint, tracer, capabilities: offer }.spawn(listener).context("control socket")?;
    }
    footprint::forget_start();
    service::run(endpoint, &mut device, stop.as_fd())?;
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and SIGINT arrive on a descriptor, in every thread's stead.
fn block_signals() -> Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("sigprocmask")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")
}

fn socket_access(args: &Args) -> socket::Access {
    socket::Access { mode: args.socket_mode, owner: args.socket_owner.map(|owner| (owner.uid, owner.gid)) }
}

fn open_endpoint(args: &Args) -> Result<Endpoint> {
    if let Some(fd) = args.fd {
        if fd < 3 {
            bail!("--fd {fd} is a standard stream; pass a descriptor from 3 on");
        }
        // SAFETY: fcntl on any number is safe; a number that is no descriptor fails with EBADF.
        nix::errno::Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })
            .with_context(|| format!("--fd {fd} is not an open descriptor"))?;
        // SAFETY: whoever started this process gave the descriptor to it, and it is taken only here.
        return Ok(Endpoint::Inherited(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) })));
    }
    let path = args.socket.clone().context("--socket is missing")?;
    if args.client {
        socket::check_path(&path)?;
        return Ok(Endpoint::Client { path, retry: Duration::from_millis(args.retry_ms) });
    }
    Ok(Endpoint::Server(socket::listen(&path, socket_access(args))?))
}

fn open_control(args: &Args) -> Result<Option<UnixListener>> {
    let open = |path| socket::listen(path, socket_access(args)).context("control socket");
    args.control.as_deref().map(open).transpose()
}

fn confine(args: &Args) -> Result<()> {
    if let Some(user) = args.user {
        sandbox::become_user(user).context("cannot become the user of --user")?;
    }
    if args.sandbox == SandboxMode::On {
        sandbox::enter().context("cannot enter the sandbox (--sandbox off does without)")?;
    }
    Ok(())
}

fn device_config(args: &Args, tap: String, udp_segmentation: bool) -> DeviceConfig {
    DeviceConfig {
        tap,
        max_ring_size: args.queue_size,
        mac: args.mac.map(|mac| mac.0),
        mtu: args.mtu,
        poll_for: Duration::from_micros(args.poll_us),
        udp_segmentation,
    }
}

fn offer(config: &DeviceConfig, pairs: usize) -> serde_json::Value {
    let abilities = config.abilities(pairs);
    capabilities(features::offered(abilities), features::offered_protocol(abilities))
}

fn print_capabilities(args: &Args) -> Result<()> {
    let config = device_config(args, String::new(), true);
    let text = serde_json::to_string_pretty(&offer(&config, args.queues.into()))?;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn print_manual() -> Result<()> {
    clap_mangen::Man::new(Args::command()).render(&mut std::io::stdout()).context("standard output")
}
