// SPDX-License-Identifier: Apache-2.0

//! Runs upstream's end-to-end tests against a cluster, from the control plane's network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Cluster;
use super::binaries::Binaries;
use super::network::NODES;

/// All of upstream's conformance tests of networking must pass.
pub const REQUIRED: &str = r"\[sig-network\].*\[Conformance\]";

/// Which tests to run, and how.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Regular expression on the test's full name.
    pub focus: String,
    /// Regular expression of tests to leave out.
    pub skip: Option<String>,
    /// Parallel test processes.
    pub processes: u16,
    /// Where the reports go; a directory of the cluster when not given.
    pub report_directory: Option<PathBuf>,
}

/// How many of the selected tests passed and failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that passed.
    pub passed: usize,
    /// Full names of the tests, and of set-up steps, that did not pass.
    pub failed: Vec<String>,
}

/// What ginkgo's JSON report tells about one suite.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
}

impl Cluster {
    /// Runs the selected tests; their output goes to stdout.
    ///
    /// # Errors
    /// The cluster is not up, or ginkgo leaves no report.
    pub fn e2e(&self, binaries: &Binaries, selection: &Selection) -> Result<Outcome> {
        self.ensure_up()?;
        let reports = selection.report_directory.clone().unwrap_or_else(|| self.path("e2e"));
        fs::create_dir_all(&reports).with_context(|| format!("create {}", reports.display()))?;
        let report = reports.join("report.json");
        if report.exists() {
            fs::remove_file(&report).with_context(|| format!("remove {}", report.display()))?;
        }
        // Its exit status says no more than the report does, which is read in either case.
        let status = self.ginkgo(binaries, selection, &reports)?.status().context("start ginkgo")?;
        let text = fs::read_to_string(&report)
            .with_context(|| format!("ginkgo ended with {status} and left no report {}", report.display()))?;
        let outcome = Outcome::parse(&text).with_context(|| format!("read {}", report.display()))?;
        ensure!(
            status.success() || !outcome.failed.is_empty(),
            "ginkgo ended with {status}, yet its report has no failed test: see {}",
            report.display()
        );
        Ok(outcome)
    }

    fn ginkgo(&self, binaries: &Binaries, selection: &Selection, reports: &Path) -> Result<std::process::Command> {
        let mut ginkgo = self.control_plane()?.command(binaries.path("ginkgo")?);
        ginkgo.args(["--no-color", "--silence-skips", "--timeout=4h", "--json-report=report.json"]);
        ginkgo.arg(format!("--procs={}", selection.processes)).arg(format!("--focus={}", selection.focus));
        ginkgo.args(selection.skip.iter().map(|skip| format!("--skip={skip}")));
        ginkgo.arg(format!("--output-dir={}", reports.display())).arg(binaries.path("e2e.test")?);
        ginkgo.args(["--", "--provider=skeleton", "--disable-log-dump=true"]);
        ginkgo.arg(format!("--num-nodes={}", NODES.len()));
        ginkgo.arg(format!("--kubeconfig={}", self.path("admin.kubeconfig").display()));
        ginkgo.arg(format!("--kubectl-path={}", binaries.path("kubectl")?.display()));
        ginkgo.arg(format!("--report-dir={}", reports.display())).env("PATH", binaries.search_path());
        Ok(ginkgo)
    }
}

impl Outcome {
    /// Whether at least one test ran and none failed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.passed > 0 && self.failed.is_empty()
    }

    fn parse(report: &str) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(report).context("not a ginkgo report")?;
        let mut outcome = Self::default();
        for spec in suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default()) {
            match spec.state.as_str() {
                "skipped" | "pending" => {}
                "passed" if spec.leaf_node_type == "It" => outcome.passed += 1,
                "passed" => {}
                state => outcome.failed.push(format!("{} ({state})", spec.name())),
            }
        }
        Ok(outcome)
    }
}

impl Spec {
    fn name(&self) -> String {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(if self.leaf_node_text.is_empty() {
            self.leaf_node_type.clone()
        } else {
            self.leaf_node_text.clone()
        });
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_count_as_passed_and_everything_else_that_is_not_passed_as_failed() {
        let report = r#"[{"SpecReports": [
            {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed", "ContainerHierarchyTexts": null},
            {"LeafNodeType": "It", "LeafNodeText": "one", "State": "passed", "ContainerHierarchyTexts": ["a"]},
            {"LeafNodeType": "It", "LeafNodeText": "two", "State": "skipped", "ContainerHierarchyTexts": ["a"]},
            {"LeafNodeType": "It", "LeafNodeText": "three", "State": "timedout", "ContainerHierarchyTexts": ["a", "b"]},
            {"LeafNodeType": "AfterSuite", "State": "failed", "ContainerHierarchyTexts": null}]}]"#;
        let outcome = Outcome::parse(report).unwrap();
        assert_eq!(outcome.passed, 1);
        assert_eq!(outcome.failed, ["a b three (timedout)", "AfterSuite (failed)"]);
        assert!(!outcome.is_success());
    }

    #[test]
    fn a_run_without_tests_is_no_success() {
        assert!(!Outcome::parse(r#"[{"SpecReports": null}]"#).unwrap().is_success());
    }
}
