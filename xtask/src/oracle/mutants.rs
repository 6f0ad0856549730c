// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask oracle --mutants`: faults of one line, put into a copy of the sources one after the other. The oracle has to see
//! each of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use weft_testbed::{OracleOptions, OraclePath, OracleReport, oracle, oracle_wire};

use super::Arguments;
use crate::build;

/// One fault.
#[derive(Deserialize)]
struct Mutant {
    name: String,
    /// Path in the sources.
    file: PathBuf,
    /// What stands there once.
    from: String,
    /// What stands there instead.
    to: String,
    /// What it breaks, for people.
    breaks: String,
}

/// A copy of the sources, and where it is built.
struct Scratch {
    source: PathBuf,
    target: PathBuf,
}

/// How a mutant fared.
enum Fate {
    Caught(String),
    Survived,
    /// It is no mutant: it does not apply, or does not build.
    Unfit(String),
}

/// Cases on the wire for one that the loaded programs alone do not show.
const WIRE_CASES: u64 = 400;

/// Tries every mutant of `file`.
///
/// # Errors
/// The file is none, the copy cannot be made, or the oracle finds something in the sources as they are.
pub(super) fn run(file: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let mut mutants = read(file)?;
    if !arguments.only.is_empty() {
        mutants.retain(|mutant| arguments.only.iter().any(|text| mutant.name.contains(text)));
        ensure!(!mutants.is_empty(), "no mutant has one of {:?} in its name", arguments.only);
    }
    let target = arguments.target_dir.clone().unwrap_or_else(|| build::root().join("target/mutants"));
    let scratch = Scratch::copy(&target)?;
    eprintln!("mutants: the sources as they are");
    scratch.build().context("build the copy")?;
    let report = scratch.ask(arguments)?;
    ensure!(report.failed == 0, "the oracle finds something without any mutant: {:?}", report.failures);
    let (mut caught, mut survived, mut unfit) = (0, 0, 0);
    for mutant in &mutants {
        eprintln!("mutants: {}: {}", mutant.name, mutant.breaks);
        match scratch.fate(mutant, arguments)? {
            Fate::Caught(how) => {
                caught += 1;
                println!("caught {how}: {}", mutant.name);
            }
            Fate::Survived => {
                survived += 1;
                println!("SURVIVED {}: {}", mutant.name, mutant.breaks);
            }
            Fate::Unfit(why) => {
                unfit += 1;
                println!("UNFIT {}: {why}", mutant.name);
            }
        }
    }
    println!("{caught} caught, {survived} survived, {unfit} unfit");
    Ok(if survived + unfit == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &Path) -> Result<Vec<Mutant>> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
}

impl Mutant {
    /// The file with the fault; or why there is none.
    fn applied_to(&self, whole: &str) -> Result<String, String> {
        match whole.matches(&self.from).count() {
            1 => Ok(whole.replacen(&self.from, &self.to, 1)),
            count => Err(format!("'{}' stands {count} times in {}", self.from, self.file.display())),
        }
    }
}

impl Scratch {
    /// What git knows or would, where it differs: what is the same keeps its time, and is not built again.
    fn copy(target: &Path) -> Result<Self> {
        let scratch = Self { source: target.join("source"), target: target.join("target") };
        let root = build::root();
        let mut list = Command::new("git");
        list.current_dir(&root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let output = list.output().context("list the sources")?;
        ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
        for name in String::from_utf8(output.stdout)?.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (root.join(name), scratch.source.join(name));
            // A file that git still knows may be gone; a link stays out.
            let Ok(bytes) = fs::read(&from) else { continue };
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            let folder = to.parent().context("a file without a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::copy(&from, &to).with_context(|| format!("copy {name}"))?;
        }
        Ok(scratch)
    }

    fn build(&self) -> Result<()> {
        let packages = ["build", "--quiet", "-p", "weft-agent", "-p", "weft-cni", "-p", "weft", "-p", "weft-vhost"];
        build::run(build::cargo().current_dir(&self.source).args(packages).arg("--target-dir").arg(&self.target))
    }

    /// The oracle about what is built.
    fn ask(&self, arguments: &Arguments) -> Result<OracleReport> {
        let options = OracleOptions {
            cases: arguments.cases.unwrap_or(super::MUTANT_CASES),
            seed: arguments.seed,
            jobs: arguments.jobs.unwrap_or(4),
            programs: Some(self.target.join("debug")),
            failures: None,
        };
        let report = oracle(&options)?;
        if report.failed > 0 {
            return Ok(report);
        }
        let wire = oracle_wire(&OracleOptions { cases: WIRE_CASES, ..options }, OraclePath::Tap)?;
        Ok(OracleReport { passed: report.passed + wire.passed, ..wire })
    }

    fn fate(&self, mutant: &Mutant, arguments: &Arguments) -> Result<Fate> {
        let path = self.source.join(&mutant.file);
        let whole = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let changed = match mutant.applied_to(&whole) {
            Ok(changed) => changed,
            Err(why) => return Ok(Fate::Unfit(why)),
        };
        fs::write(&path, changed).with_context(|| format!("write {}", path.display()))?;
        let fate = self.fate_of_applied(arguments);
        fs::write(&path, whole).with_context(|| format!("restore {}", path.display()))?;
        fate
    }

    fn fate_of_applied(&self, arguments: &Arguments) -> Result<Fate> {
        if let Err(error) = self.build() {
            return Ok(Fate::Unfit(format!("it does not build: {error:#}")));
        }
        // An agent that does not serve is seen, too; but only if that comes again.
        let asked = self.ask(arguments).or_else(|_| self.ask(arguments));
        Ok(match asked {
            Ok(report) if report.failed == 0 => Fate::Survived,
            Ok(report) => {
                report.failures.iter().for_each(|failure| eprintln!("  {failure}"));
                Fate::Caught(format!("after {} cases", report.passed))
            }
            Err(error) => {
                eprintln!("  {error:#}");
                Fate::Caught("before any case".to_owned())
            }
        })
    }
}

/// Refuses what makes no sense together.
pub(super) fn check(arguments: &Arguments) -> Result<()> {
    if arguments.programs.is_some() || arguments.replay.is_some() {
        bail!("--mutants builds its own programs: leave out --programs and --replay");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sources move on; a fault that does not apply tests nothing.
    #[test]
    fn every_mutant_applies() {
        let mutants = read(&build::root().join("tests/mutants.json")).unwrap();
        assert_eq!(mutants.len(), 80);
        for mutant in mutants {
            let whole = fs::read_to_string(build::root().join(&mutant.file)).unwrap();
            assert_ne!(mutant.applied_to(&whole).unwrap(), whole, "{}", mutant.name);
        }
    }
}
