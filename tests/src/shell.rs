// SPDX-License-Identifier: Apache-2.0

//! What can be done in every place alike: a container, a guest, a host, the outside.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process::Outcome, wait::until_ok};

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What a server of `weft-probe` said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client's address as the server saw it.
    pub client: IpAddr,
}

/// A place where shell scripts run, with `weft-probe` in its path and a folder of its own for files.
pub trait Shell {
    /// The place's name, for messages.
    fn label(&self) -> String;

    /// An existing folder for logs.
    fn folder(&self) -> String;

    /// Runs a script to its end, a minute at most.
    ///
    /// # Errors
    /// The place does not answer.
    fn sh(&self, script: &str) -> Result<Outcome>;

    /// Starts a script that goes on in the background under a name unique in the place.
    ///
    /// # Errors
    /// The place does not answer.
    fn start(&self, name: &str, script: &str) -> Result<Job> {
        let log = format!("{}/{}", self.folder(), name.replace(['/', ' '], "-"));
        let wrapped = format!(
            "rm -f {log}.*\n( ( {script}\n) >{log}.out 2>&1; echo $? >{log}.tmp; mv {log}.tmp {log}.status ) \
             </dev/null >/dev/null 2>&1 &"
        );
        self.sh(&wrapped)?.ok().with_context(|| format!("start {name} in {}", self.label()))?;
        Ok(Job { name: name.to_owned(), log })
    }

    /// Starts a server that answers `name` on `port` of every address by TCP and UDP, and waits until it listens.
    ///
    /// # Errors
    /// It does not come up.
    fn serve(&self, name: &str, port: u16) -> Result<()> {
        self.serve_at(name, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    /// As [`Shell::serve`], on one address: datagrams are answered from it, whatever the route to the client says.
    ///
    /// # Errors
    /// It does not come up.
    fn serve_at(&self, name: &str, at: SocketAddr) -> Result<()> {
        let (address, port) = (at.ip(), at.port());
        let place = if address.is_unspecified() { String::new() } else { format!("-{address}") };
        let job = self.start(
            &format!("serve-{name}{place}-{port}"),
            &format!("weft-probe serve --name {name} --bind {address} --tcp {port} --udp {port}"),
        )?;
        let what = format!("server {name} in {}", self.label());
        until_ok(&what, Duration::from_secs(20), || {
            let output = job.output(self)?;
            ensure!(output.contains("READY"), "{output}");
            Ok(())
        })
    }

    /// Asks the server at `to` who it is, once, waiting `patience` at most.
    ///
    /// # Errors
    /// No answer: the message ends with `timeout`, `refused`, `reset` or the system's word.
    fn ask_within(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> Result<Answer> {
        let script = format!("weft-probe connect {protocol} {to} --timeout {}", patience.as_millis());
        let outcome = self.sh(&script)?;
        let output = outcome.ok().with_context(|| format!("{} -> {protocol} {to}", self.label()))?;
        parse_answer(&output)
    }

    /// Asks the server at `to` who it is; a lost first packet is retried for a few seconds.
    ///
    /// # Errors
    /// As [`Shell::ask_within`].
    fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
        self.ask_within(protocol, to, Duration::from_secs(5))
    }

    /// That the server called `name` answers at `to`.
    ///
    /// # Errors
    /// Nobody or somebody else does.
    fn reaches(&self, protocol: Protocol, to: SocketAddr, name: &str) -> Result<Answer> {
        let answer = self.ask(protocol, to)?;
        let who = &answer.server;
        ensure!(who == name, "{} -> {protocol} {to}: answered by {who} instead of {name}", self.label());
        Ok(answer)
    }

    /// That echo requests with `bytes` of payload come back from `to`; more than the MTU go in fragments.
    ///
    /// # Errors
    /// They do not.
    fn pings(&self, to: IpAddr, bytes: usize) -> Result<()> {
        let outcome = self.sh(&format!("ping -c 1 -W 5 -s {bytes} {to}"))?;
        outcome.ok().map(drop).with_context(|| format!("{} pings {to} with {bytes} bytes", self.label()))
    }

    /// That nothing answers at `to`.
    ///
    /// # Errors
    /// Somebody did.
    fn is_kept_out(&self, protocol: Protocol, to: SocketAddr) -> Result<()> {
        match self.ask_within(protocol, to, Duration::from_millis(1200)) {
            Ok(answer) => bail!("{} -> {protocol} {to}: answered by {}", self.label(), answer.server),
            Err(error) if format!("{error:#}").ends_with("timeout") => Ok(()),
            Err(error) => Err(error.context("kept out, but not silently")),
        }
    }
}

pub(crate) fn parse_answer(output: &str) -> Result<Answer> {
    let (server, client) = output.trim().split_once(' ').with_context(|| format!("not an answer: {output}"))?;
    Ok(Answer {
        server: server.to_owned(),
        client: client.parse().with_context(|| format!("not an address: {client}"))?,
    })
}

/// A script in the background.
#[derive(Debug)]
pub struct Job {
    name: String,
    log: String,
}

impl Job {
    /// What it has printed so far.
    ///
    /// # Errors
    /// The place does not answer.
    pub fn output(&self, place: &(impl Shell + ?Sized)) -> Result<String> {
        Ok(place.sh(&format!("cat {}.out", self.log))?.output)
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// It did not within `patience`.
    pub fn prints(&self, place: &(impl Shell + ?Sized), text: &str, patience: Duration) -> Result<()> {
        until_ok(&format!("{} prints {text}", self.name), patience, || {
            let output = self.output(place)?;
            ensure!(output.contains(text), "it printed: {output}");
            Ok(())
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `patience`.
    pub fn finish(self, place: &(impl Shell + ?Sized), patience: Duration) -> Result<Outcome> {
        let status = until_ok(&format!("the end of {} in {}", self.name, place.label()), patience, || {
            place.sh(&format!("cat {}.status", self.log))?.ok()
        })?;
        Ok(Outcome { status: status.trim().parse()?, output: self.output(place)? })
    }
}
