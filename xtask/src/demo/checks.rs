// SPDX-License-Identifier: Apache-2.0

//! The demonstration's checks: each prints a line and is counted.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use weft_testbed::{Protocol, Shell};

/// Connections until every backend of four must have been met; one of them stays out of 100 with a chance of 10^-12.
const TRIES: usize = 100;

/// What passed and what failed.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    passed: usize,
    failed: usize,
}

impl Checks {
    /// Counts what came out.
    pub(crate) fn count(&mut self, what: &str, outcome: Result<String>) {
        match outcome {
            Ok(detail) => {
                self.passed += 1;
                println!("ok      {what}: {detail}");
            }
            Err(error) => self.failed(&format!("{what}: {error:#}")),
        }
    }

    /// Counts a failure.
    pub(crate) fn failed(&mut self, what: &str) {
        self.failed += 1;
        println!("FAILED  {what}");
    }

    /// `client` reaches the server `name` at `to`.
    pub(crate) fn answered_by(&mut self, client: &dyn Shell, protocol: Protocol, to: SocketAddr, name: &str) {
        let outcome = client.ask(protocol, to).and_then(|answer| {
            ensure!(answer.server == name, "answered by {} instead of {name}", answer.server);
            Ok(format!("answered by {name}"))
        });
        self.count(&format!("{} -> {protocol} {to}", client.label()), outcome);
    }

    /// `client` meets every one of `names` at `to`.
    pub(crate) fn spread_over(&mut self, client: &dyn Shell, to: SocketAddr, names: &BTreeSet<String>) {
        let mut met = BTreeSet::new();
        let mut meet = || -> Result<String> {
            for tries in 1..=TRIES {
                met.insert(client.ask(Protocol::Tcp, to)?.server);
                if met == *names {
                    return Ok(format!("all of {} answered within {tries} connections", join(names)));
                }
            }
            anyhow::bail!("only {} answered", join(&met))
        };
        let outcome = meet();
        self.count(&format!("{} -> Service {to}", client.label()), outcome);
    }

    /// `client` gets no answer at `to`.
    pub(crate) fn kept_out(&mut self, client: &dyn Shell, protocol: Protocol, to: SocketAddr) {
        let outcome = client.is_kept_out(protocol, to).map(|()| "kept out".to_owned());
        self.count(&format!("{} -> {protocol} {to}", client.label()), outcome);
    }

    /// `client` is told at once that nobody serves `to`.
    pub(crate) fn refused(&mut self, client: &dyn Shell, to: SocketAddr) {
        let outcome = match client.ask(Protocol::Tcp, to) {
            Ok(answer) => Err(anyhow::anyhow!("answered by {}", answer.server)),
            Err(error) if format!("{error:#}").ends_with("refused") => Ok("refused".to_owned()),
            Err(error) => Err(error),
        };
        self.count(&format!("{} -> Service {to}", client.label()), outcome);
    }

    /// The server at `to` sees `client` as `address`.
    pub(crate) fn seen_as(&mut self, client: &dyn Shell, to: SocketAddr, address: IpAddr) {
        let outcome = client.ask(Protocol::Tcp, to).and_then(|answer| {
            ensure!(answer.client == address, "seen as {} instead of {address}", answer.client);
            Ok(format!("seen as {address}"))
        });
        self.count(&format!("{} -> outside {to}", client.label()), outcome);
    }

    /// Prints the closing line.
    pub(crate) fn close(self) -> ExitCode {
        println!("\ndemo: {} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn join(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
