// SPDX-License-Identifier: Apache-2.0

//! Attacks as named cases: who sends what, and that it does not arrive while the honest packet beside it does.
//!
//! A case is called `ID/WHAT/WHO/FAMILY`. Cases that need the same site share it; a site is made when the first of its cases
//! is run. Each case proves that its witness can see before it counts: see [`witness::Witness::refuses`].

mod attacker;
mod drops;
mod encapsulation;
mod first_moment;
mod flows;
mod fragments;
mod frame;
mod full;
mod health;
mod leftovers;
mod lost_filter;
mod net;
mod offload;
mod routing;
mod site;
mod solicitation;
mod status;
mod tap;
mod tunnel_peer;
mod unspecified;
mod uplink;
mod vlan;
mod witness;

pub use net::Place;
pub(crate) use net::mac_of;
pub(crate) use tap::OpenTap;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};
use regex::Regex;
use serde_json::Value;

use crate::{
    bed::{Bed, Options},
    binaries::Binaries,
    node::Mode,
};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// A regular expression that the names of cases match; none: all.
    pub case: Option<String>,
    /// The folder of another build's agent, plugin and CLI; none: this build's.
    pub programs: Option<PathBuf>,
}

/// How many cases there were of each outcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// What was attacked stood.
    pub passed: usize,
    /// It did not, or nothing could be shown.
    pub failed: usize,
}

/// Names of the cases that `selection` means.
///
/// # Errors
/// The regular expression is none.
pub fn hostile_names(selection: &Selection) -> Result<Vec<String>> {
    let chosen = pattern(selection)?;
    let names = groups().into_iter().flat_map(|group| group.names());
    Ok(names.filter(|name| chosen.is_match(name)).collect())
}

/// Runs the cases that `selection` means, and prints each with its outcome.
///
/// # Errors
/// The regular expression is none, or a program is missing. A case that fails is counted.
pub fn hostile(selection: &Selection) -> Result<Tally> {
    let chosen = pattern(selection)?;
    let binaries = match &selection.programs {
        None => Binaries::locate()?,
        Some(folder) => Binaries::beside(folder)?,
    };
    let mut tally = Tally::default();
    for group in groups() {
        group.run(&chosen, &binaries, &mut tally);
    }
    Ok(tally)
}

fn pattern(selection: &Selection) -> Result<Regex> {
    Regex::new(selection.case.as_deref().unwrap_or("")).context("--case is not a regular expression")
}

fn groups() -> Vec<Box<dyn Group>> {
    let mut groups: Vec<Box<dyn Group>> = vec![
        Box::new(Scene { make: site::Site::new, cases: site::cases() }),
        Box::new(Scene { make: site::Site::native, cases: uplink::native_cases() }),
        Box::new(Scene { make: first_moment::Site::new, cases: first_moment::cases() }),
        Box::new(Scene { make: lost_filter::Site::new, cases: lost_filter::cases() }),
        Box::new(Scene { make: unspecified::Site::ipv4, cases: unspecified::ipv4_cases() }),
        Box::new(Scene { make: unspecified::Site::ipv6, cases: unspecified::ipv6_cases() }),
        Box::new(Scene { make: flows::Site::small, cases: flows::small_cases() }),
        Box::new(Scene { make: flows::Site::usual, cases: flows::usual_cases() }),
        Box::new(Scene { make: health::Site::new, cases: health::cases() }),
        Box::new(Scene { make: leftovers::Site::new, cases: leftovers::cases() }),
    ];
    for (make, cases) in full::scenes() {
        groups.push(Box::new(Scene { make, cases }));
    }
    groups
}

/// A bed of the programs that are attacked.
fn bed(nodes: u8, mode: Mode, mut config: Value, binaries: &Binaries) -> Result<Bed> {
    // Earlier versions do not know the key.
    config["metricsAddress"] = Value::Null;
    Bed::of(&Options { nodes, mode, config }, binaries)
}

/// Cases that share a site.
trait Group {
    fn names(&self) -> Vec<String>;
    fn run(&self, chosen: &Regex, binaries: &Binaries, tally: &mut Tally);
}

/// What a case does on its site.
type Run<S> = Box<dyn Fn(&S) -> Result<()>>;

/// One attack on a site.
struct Case<S> {
    name: String,
    run: Run<S>,
}

impl<S> Case<S> {
    fn new(name: impl Into<String>, run: impl Fn(&S) -> Result<()> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// A site and the cases that are run on it.
struct Scene<S> {
    make: fn(&Binaries) -> Result<S>,
    cases: Vec<Case<S>>,
}

impl<S> Group for Scene<S> {
    fn names(&self) -> Vec<String> {
        self.cases.iter().map(|case| case.name.clone()).collect()
    }

    fn run(&self, chosen: &Regex, binaries: &Binaries, tally: &mut Tally) {
        let cases: Vec<&Case<S>> = self.cases.iter().filter(|case| chosen.is_match(&case.name)).collect();
        if cases.is_empty() {
            return;
        }
        let site = (self.make)(binaries);
        for case in cases {
            let start = Instant::now();
            let outcome = match &site {
                Ok(site) => (case.run)(site),
                Err(error) => Err(anyhow::anyhow!("its site could not be made: {error:#}")),
            };
            let millis = start.elapsed().as_millis();
            match outcome {
                Ok(()) => {
                    tally.passed += 1;
                    println!("PASS {} ({millis} ms)", case.name);
                }
                Err(error) => {
                    tally.failed += 1;
                    println!("FAIL {} ({millis} ms): {error:#}", case.name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every case that the page names is there: `*` stands for the rest of a part, and what follows may be left out.
    #[test]
    fn the_cases_of_the_security_page_are_there() {
        let page = include_str!("../../../docs/security.md");
        let names = hostile_names(&Selection::default()).unwrap();
        let quoted: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
        let cases: Vec<&str> = quoted
            .into_iter()
            .filter(|text| Regex::new("^[AB][0-9]+(/|$)").is_ok_and(|pattern| pattern.is_match(text)))
            .collect();
        assert!(cases.len() > 20, "{cases:?}");
        for case in cases {
            let pattern = format!("^{}(/|$)", regex::escape(case.trim_end_matches('/')).replace(r"\*", "[^/]*"));
            let pattern = Regex::new(&pattern).unwrap();
            assert!(names.iter().any(|name| pattern.is_match(name)), "no case is {case}");
        }
    }
}
