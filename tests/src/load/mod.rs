// SPDX-License-Identifier: Apache-2.0

//! Load for the benchmarks: `weft-probe load` between two places, CNI plugins called at a rate, and the bare links and the
//! kube-proxy that Weft is compared with.

mod bare;
mod calls;
mod proxy;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::shell::Shell;

pub use bare::{BareNode, BarePair, BareTap, Machine};
pub use calls::{Call, Caller, Pace, percentile};
pub use proxy::{ProxyMode, ProxyNode, ProxyPod};

/// How long a load server may take to listen; in a guest everything is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Round trips or short connections of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Median, in microseconds.
    pub p50: f64,
    /// What 99 of 100 do not exceed, in microseconds.
    pub p99: f64,
    /// How many were measured.
    pub count: u64,
}

/// What one run of the client does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// TCP_RR: one byte there and back on one connection.
    RoundTrips,
    /// TCP_CRR: connect, one byte there and back, close.
    Connections,
}

/// Starts the server of [`latency`] and [`throughput`] on `port`, on processor `cpu` if one is given.
///
/// # Errors
/// It does not come up.
pub fn serve(place: &dyn Shell, port: u16, cpu: Option<usize>) -> Result<()> {
    let job = place.start(&format!("load-{port}"), &format!("weft-probe load-serve {port}{}", on(cpu)))?;
    job.prints(place, "READY", PATIENCE)
}

/// The MTU of `eth0` of `place`.
///
/// # Errors
/// It has no such device.
pub fn mtu(place: &dyn Shell) -> Result<u32> {
    let output = place.sh("ip -o link show dev eth0")?.ok()?;
    Ok(number(&output, "mtu")? as u32)
}

/// One run of `kind` for `duration`, from `client` to the server at `to`.
///
/// # Errors
/// The server does not answer.
pub fn latency(
    client: &dyn Shell,
    kind: Kind,
    to: SocketAddr,
    duration: Duration,
    cpu: Option<usize>,
) -> Result<Latency> {
    let word = match kind {
        Kind::RoundTrips => "rr",
        Kind::Connections => "crr",
    };
    if kind == Kind::Connections {
        keep_no_closed_connections(client)?;
    }
    let output = run(client, word, to, duration, cpu)?;
    let micros = |name| Ok::<_, anyhow::Error>(number(&output, name)? / 1000.0);
    let count = number(&output, "count")?;
    if count < 1.0 {
        bail!("{} -> {to}: no {word} was measured within {} ms", client.label(), duration.as_millis());
    }
    Ok(Latency { p50: micros("p50")?, p99: micros("p99")?, count: count as u64 })
}

/// Lets the kernel forget a connection that `client` closes: it would keep the port for a minute, and a search among tens of
/// thousands of them would be what is measured, of whoever has asked more.
fn keep_no_closed_connections(client: &dyn Shell) -> Result<()> {
    let script = "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets";
    client.sh(script)?.ok().map(drop).with_context(|| format!("{}: {script}", client.label()))
}

/// One stream for `duration`, from `client` to the server at `to`; gigabits of payload per second. Cubic, whatever the machine's
/// default is: a sender that paces measures its own estimates.
///
/// # Errors
/// The server does not answer, or the client's kernel has no cubic.
pub fn throughput(client: &dyn Shell, to: SocketAddr, duration: Duration, cpu: Option<usize>) -> Result<f64> {
    let output = run(client, "stream", to, duration, cpu)?;
    Ok(number(&output, "bytes")? * 8.0 / number(&output, "nanos")?)
}

fn run(client: &dyn Shell, word: &str, to: SocketAddr, duration: Duration, cpu: Option<usize>) -> Result<String> {
    let script = format!("weft-probe load {word} {to} --millis {}{}", duration.as_millis(), on(cpu));
    client.sh(&script)?.ok().with_context(|| format!("{} -> {to}: {word}", client.label()))
}

fn on(cpu: Option<usize>) -> String {
    cpu.map_or_else(String::new, |cpu| format!(" --cpu {cpu}"))
}

/// The number after the word `name`.
fn number(output: &str, name: &str) -> Result<f64> {
    let mut words = output.split_whitespace();
    let value = words.by_ref().find(|word| *word == name).and(words.next());
    value.and_then(|text| text.parse().ok()).with_context(|| format!("no {name} in the load's output: {output}"))
}

#[cfg(test)]
mod tests {
    use super::{number, on};

    #[test]
    fn numbers_are_found_by_name() {
        assert_eq!(number("p50 10 p99 20\n", "p99").unwrap(), 20.0);
        let link = "2: eth0@if3: <BROADCAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP mode DEFAULT";
        assert_eq!(number(link, "mtu").unwrap(), 1450.0);
        number("p50 10", "p99").unwrap_err();
        number("p50", "p50").unwrap_err();
    }

    #[test]
    fn the_processor_is_an_option() {
        assert_eq!(on(Some(1)), " --cpu 1");
        assert_eq!(on(None), "");
    }
}
