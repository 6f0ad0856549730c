// SPDX-License-Identifier: Apache-2.0
//! A node: a namespace for the plugin, sandboxes, and folders of its own.

use std::{
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_agent::FakeAgent;

/// The signal for a file that grows beyond its limit: signal(7).
const SIGXFSZ: i32 = 25;

/// A network namespace that goes away with its owner.
pub(crate) struct Netns(String);

impl Netns {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weftcni-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        Self(name)
    }

    /// What the runtime passes as `CNI_NETNS`.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs `ip` here and returns its output.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut command = vec!["ip", "-n", &self.0];
        command.extend(arguments.split_whitespace());
        run(&command)
    }

    /// Runs `ip -j -d` here and returns its objects.
    pub(crate) fn ip_json(&self, arguments: &str) -> Vec<Value> {
        let output = self.ip(&format!("-j -d {arguments}"));
        serde_json::from_str(if output.trim().is_empty() { "[]" } else { &output }).unwrap()
    }

    /// The link called `name`.
    pub(crate) fn link(&self, name: &str) -> Option<Value> {
        self.ip_json("link").into_iter().find(|link| link["ifname"] == name)
    }

    /// The names of all links but `lo`.
    pub(crate) fn link_names(&self) -> Vec<String> {
        let names = self.ip_json("link").into_iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }

    /// Everything that a plugin could leave here: links, addresses, routes and rules.
    pub(crate) fn snapshot(&self) -> Vec<Value> {
        ["link", "addr", "route show table all", "-6 route show table all", "rule", "-6 rule"]
            .iter()
            .flat_map(|what| self.ip_json(what))
            .filter_map(lasting)
            .collect()
    }

    /// Runs `program` here and tells whether it succeeded.
    pub(crate) fn succeeds(&self, program: &[&str]) -> bool {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(program).stdout(Stdio::null());
        command.status().unwrap().success()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("the namespace {} was gone before its owner", self.0);
        }
    }
}

/// The part of an object that the plugin decides. What the kernel derives from it comes with a delay: carrier, queueing
/// discipline, link-local addresses and its own routes; it goes with the link that it belongs to.
fn lasting(mut object: Value) -> Option<Value> {
    if object["protocol"] == "kernel" && object.get("dst").is_some() {
        return None;
    }
    let fields = object.as_object_mut().unwrap();
    let up = fields.get("flags").is_some_and(|flags| flags.to_string().contains("\"UP\""));
    fields.insert("up".to_owned(), up.into());
    for field in ["flags", "operstate", "qdisc", "link_netnsid"] {
        fields.remove(field);
    }
    for address in fields.get_mut("addr_info").and_then(Value::as_array_mut).into_iter().flatten() {
        *address = if address["scope"] == "link" { Value::Null } else { address["local"].clone() };
    }
    if let Some(addresses) = fields.get_mut("addr_info").and_then(Value::as_array_mut) {
        addresses.retain(|address| !address.is_null());
    }
    Some(object)
}

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors} (these tests need root and iproute2)");
    String::from_utf8(output.stdout).unwrap()
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) succeeded: bool,
    stdout: String,
}

impl Outcome {
    /// The result of a call that must have succeeded; null where stdout is empty.
    pub(crate) fn result(&self) -> Value {
        assert!(self.succeeded, "{}", self.stdout);
        if self.stdout.is_empty() { Value::Null } else { serde_json::from_str(&self.stdout).unwrap() }
    }

    /// Code and text of a call that must have failed.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.succeeded, "{}", self.stdout);
        let error: Value = serde_json::from_str(&self.stdout).expect(&self.stdout);
        let text = format!("{} {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap_or_default());
        (error["code"].as_u64().unwrap(), text)
    }
}

/// A call of the plugin.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) netns: String,
    pub(crate) container: &'static str,
    pub(crate) ifname: &'static str,
    pub(crate) args: &'static str,
    pub(crate) config: Value,
}

impl Call {
    /// For container `c1`, interface `eth0`, with `more` keys in the configuration.
    pub(crate) fn new(netns: impl Into<String>, more: Value) -> Self {
        Self { netns: netns.into(), container: "c1", ifname: "eth0", args: "", config: more }
    }

    pub(crate) fn named(mut self, container: &'static str, ifname: &'static str) -> Self {
        (self.container, self.ifname) = (container, ifname);
        self
    }

    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }
}

/// The node of one test.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) agent: FakeAgent,
    dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::new();
        let agent = FakeAgent::start(&dir.path().join("agent.sock"), &netns.0);
        Self { netns, agent, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The files of a folder.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The configuration of `call`, complete.
    pub(crate) fn config(&self, call: &Call) -> String {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentSocket": self.path("agent.sock"),
            "stateDir": self.path("attachments"), "pendingDir": self.path("pending-del"),
        });
        config.as_object_mut().unwrap().extend(call.config.as_object().unwrap().clone());
        config.to_string()
    }

    pub(crate) fn call(&self, verb: &str, call: &Call) -> Outcome {
        self.call_raw(verb, call, &self.config(call), Stdio::piped())
    }

    pub(crate) fn call_raw(&self, verb: &str, call: &Call, stdin: &str, stdout: Stdio) -> Outcome {
        let output = self.start(verb, call, stdin, stdout).wait_with_output().unwrap();
        Outcome { succeeded: output.status.success(), stdout: String::from_utf8(output.stdout).unwrap() }
    }

    /// Starts an ADD and kills it once the agent has heard `op`.
    pub(crate) fn add_killed_at(&self, call: &Call, op: &str) {
        let mut plugin = self.start("ADD", call, &self.config(call), Stdio::null());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.agent.heard().iter().any(|heard| heard == op) {
            assert!(Instant::now() < deadline, "the agent heard {:?}", self.agent.heard());
            thread::sleep(Duration::from_millis(2));
        }
        plugin.kill().unwrap();
        assert!(!plugin.wait().unwrap().success());
    }

    /// Runs a plugin that is killed by the first byte it writes to a file.
    pub(crate) fn call_killed_writing(&self, verb: &str, call: &Call) {
        let mut plugin = self.start_under(&["prlimit", "--fsize=0", "--core=0"], verb, call, Stdio::null());
        plugin.stdin.take().unwrap().write_all(self.config(call).as_bytes()).unwrap();
        assert_eq!(plugin.wait().unwrap().signal(), Some(SIGXFSZ));
    }

    fn start(&self, verb: &str, call: &Call, stdin: &str, stdout: Stdio) -> Child {
        let mut plugin = self.start_under(&[], verb, call, stdout);
        plugin.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        plugin
    }

    fn start_under(&self, wrapper: &[&str], verb: &str, call: &Call, stdout: Stdio) -> Child {
        Command::new("nsenter")
            .arg(format!("--net={}", self.netns.path()))
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_weft-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_IFNAME", call.ifname)
            .env("CNI_NETNS", &call.netns)
            .env("CNI_ARGS", call.args)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(stdout)
            .spawn()
            .unwrap()
    }
}
