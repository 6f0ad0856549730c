// SPDX-License-Identifier: Apache-2.0

//! B1 and B6: what one tenant asks for does not fit. It is closed, alone and aloud; everybody else goes on.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case,
    attacker::Family,
    net::Place as _,
    site::datagram,
    witness::{Mark, Witness},
};
use crate::{
    bed::Bed,
    binaries::Binaries,
    container::Container,
    manifest,
    node::{Mode, Node},
    shell::Shell as _,
    wait::until_ok,
};

/// Where honest packets go to.
const PORT: u16 = 7_100;
/// How long a plan that has too much in it may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of memory that the agent of one node may have had at most, in KiB.
const MOST_MEMORY: u64 = 400 << 10;

/// What one tenant fills.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flood {
    Rules,
    Prefixes,
    Pods,
    Services,
    Members,
    Blocks,
}

impl Flood {
    /// The sizes of maps that are too small for it.
    fn sizes(self) -> Value {
        match self {
            Self::Rules => json!({"rules": 512}),
            Self::Prefixes => json!({"blocks": 512}),
            Self::Pods => json!({"peers": 64}),
            Self::Services => json!({"services": 128}),
            Self::Members => json!({"members": 128}),
            Self::Blocks => json!({}),
        }
    }

    fn objects(self) -> Vec<Value> {
        match self {
            Self::Rules => (0..3).map(|number| rules(number, 600)).collect(),
            Self::Prefixes => (0..3).map(|number| blocks(number, 600)).collect(),
            Self::Pods => many_pods(),
            Self::Services | Self::Members => many_services(),
            Self::Blocks => vec![exceptions(4_000)],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Rules => "B1/rules-full",
            Self::Prefixes => "B1/blocks-full",
            Self::Pods => "B1/peers-full",
            Self::Services => "B1/services-full",
            Self::Members => "B1/members-full",
            Self::Blocks => "B6/4000-blocks-with-exceptions",
        }
    }

    /// Whether the tenant's own workload is what must be closed.
    const fn is_policy(self) -> bool {
        !matches!(self, Self::Services | Self::Members)
    }
}

/// An address that nobody in the bed has.
fn block(number: usize, block: usize) -> Value {
    json!({"ipBlock": {"cidr": format!("100.{}.{}.{}/32", 64 + number, block / 250, block % 250)}})
}

/// A policy of the greedy tenant's own that lets so many single addresses in.
fn blocks(number: usize, count: usize) -> Value {
    greedy_policy(&format!("blocks-{number}"), (0..count).map(|of| block(number, of)).collect())
}

/// The same, each of them at a port of its own.
fn rules(number: usize, count: usize) -> Value {
    let mut policy = greedy_policy(&format!("rules-{number}"), Vec::new());
    let rule = |of: usize| json!({"from": [block(number, of)], "ports": [{"protocol": "TCP", "port": 10_000 + of}]});
    policy["spec"]["ingress"] = (0..count).map(rule).collect();
    policy
}

fn exceptions(count: usize) -> Value {
    let hole = |block: usize| format!("100.64.{}.{}/32", block / 250, block % 250);
    // Not the whole of IPv4: whether it lets others in must not depend on the union of all blocks.
    let from = (0..count).map(|block| json!({"ipBlock": {"cidr": "100.0.0.0/8", "except": [hole(block)]}})).collect();
    greedy_policy("blocks", from)
}

fn greedy_policy(name: &str, from: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "greedy", "name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": "greedy"}}, "policyTypes": ["Ingress"], "ingress": [{"from": from}],
        },
    })
}

/// Pods of another node, and a policy that lets them in.
fn many_pods() -> Vec<Value> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "wide"},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.119.77"}]},
    });
    let pods = (0..200).map(|number| {
        let mut pod = manifest::pod(&format!("greedy/many-{number}"), "wide", &[("kind", "many")]);
        let address = format!("10.244.7.{}", number + 10);
        pod["status"] = json!({"podIP": address, "podIPs": [{"ip": address}]});
        pod
    });
    let policy = greedy_policy("many", vec![json!({"podSelector": {"matchLabels": {"kind": "many"}}})]);
    [node].into_iter().chain(pods).chain([policy]).collect()
}

fn many_services() -> Vec<Value> {
    let of = |number: usize| {
        let addresses = [format!("10.96.7.{number}"), format!("fd00:96::7{number:02x}")];
        manifest::service(
            &format!("greedy/many-{number}"),
            [&addresses[0], &addresses[1]],
            80,
            PORT,
            &[("app", "greedy")],
        )
    };
    (1..=100).map(of).collect()
}

/// One node with maps that are too small for what one of its tenants has asked for.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    greedy: Container,
    calm: Container,
    friend: Container,
    stranger: Container,
    bed: Bed,
    objects: Vec<Value>,
}

/// A site, and its cases.
type Full = (fn(&Binaries) -> Result<Site>, Vec<Case<Site>>);

/// Every site with its cases.
pub(super) fn scenes() -> [Full; 6] {
    [
        (|binaries| Site::new(Flood::Rules, binaries), cases(Flood::Rules)),
        (|binaries| Site::new(Flood::Prefixes, binaries), cases(Flood::Prefixes)),
        (|binaries| Site::new(Flood::Pods, binaries), cases(Flood::Pods)),
        (|binaries| Site::new(Flood::Services, binaries), cases(Flood::Services)),
        (|binaries| Site::new(Flood::Members, binaries), cases(Flood::Members)),
        (|binaries| Site::new(Flood::Blocks, binaries), cases(Flood::Blocks)),
    ]
}

/// In this order: each begins with what the one before has left.
fn cases(flood: Flood) -> Vec<Case<Site>> {
    let name = flood.name();
    let mut cases = vec![
        Case::new(format!("{name}-others-are-policed/tenant"), others_are_policed),
        Case::new(format!("{name}-pods-come-and-go/tenant"), pods_come_and_go),
        Case::new(format!("{name}-is-told/tenant"), is_told),
    ];
    if flood.is_policy() {
        cases.insert(1, Case::new(format!("{name}-is-closed/tenant"), is_closed));
    }
    if flood == Flood::Blocks {
        // It may well fit.
        cases.retain(|case| !case.name.contains("-is-told"));
        cases.push(Case::new(format!("{name}-memory-is-bounded/tenant"), memory_is_bounded));
    }
    cases.push(Case::new(format!("{name}-heals/tenant"), heals));
    cases
}

impl Site {
    fn new(flood: Flood, binaries: &Binaries) -> Result<Self> {
        let config = json!({"mapSizes": flood.sizes()});
        let bed = super::bed(1, Mode::Vxlan, config, binaries)?;
        let greedy = bed.container(1, "greedy/greedy", &[("app", "greedy")])?;
        let calm = bed.container(1, "default/calm", &[("app", "calm")])?;
        let friend = bed.container(1, "default/friend", &[("role", "friend")])?;
        let stranger = bed.container(1, "default/stranger", &[])?;
        let objects = flood.objects();
        for object in &objects {
            bed.apply(object)?;
        }
        Ok(Self { greedy, calm, friend, stranger, bed, objects })
    }

    fn node(&self) -> &Node {
        self.bed.node(1)
    }

    fn status(&self) -> Result<weft_api::StatusReport> {
        self.node().weft_json("status")
    }
}

fn at(pod: &Container, family: Family) -> Result<SocketAddr> {
    Ok(SocketAddr::new(family.of(pod.addresses())?, PORT))
}

/// That `from` cannot reach `pod`, while `honest` can.
fn refuses(pod: &Container, from: &Container, honest: impl Fn(SocketAddr, &Mark) -> Result<()>) -> Result<()> {
    let receiver = pod.receiver("eth0")?;
    for family in Family::ALL {
        let to = at(pod, family)?;
        Witness::new("the pod", &receiver).refuses(|mark| datagram(from, to, mark), |mark| honest(to, mark))?;
    }
    Ok(())
}

/// A policy that comes afterwards holds.
fn others_are_policed(site: &Site) -> Result<()> {
    site.bed.apply(&manifest::ingress_policy("default/calm", &[("app", "calm")], &[("role", "friend")]))?;
    until_ok("another tenant's policy to be enforced", PATIENCE, || {
        refuses(&site.calm, &site.stranger, |to, mark| datagram(&site.friend, to, mark))
    })
}

/// The workload whose policies do not fit is closed, but for its node's probes.
fn is_closed(site: &Site) -> Result<()> {
    until_ok("the greedy tenant's workload to be closed", PATIENCE, || {
        refuses(&site.greedy, &site.stranger, |to, mark| datagram(site.node(), to, mark))
    })
}

fn pods_come_and_go(site: &Site) -> Result<()> {
    let fresh = site.bed.container(1, "default/fresh", &[])?;
    let receiver = fresh.receiver("eth0")?;
    for family in Family::ALL {
        let to = at(&fresh, family)?;
        until_ok("the new pod to be reached", PATIENCE, || {
            Witness::new("the new pod", &receiver).sees(|mark| datagram(&site.stranger, to, mark)).map(drop)
        })?;
    }
    drop(fresh);
    let left = site.node().sh("find /mnt/node1/state/pending-del -name '*.json'")?.output;
    ensure!(!left.contains(".json"), "DEL has left {left}");
    Ok(())
}

/// Who does not fit is named, and the agent says whether it can serve.
fn is_told(site: &Site) -> Result<()> {
    until_ok("the problem to be told", PATIENCE, || {
        let problems = site.status()?.problems;
        ensure!(problems.iter().any(|problem| problem.contains("greedy")), "status names {problems:?}");
        Ok(())
    })
}

/// The most memory that the agent has had.
fn memory_is_bounded(site: &Site) -> Result<()> {
    let text = site.node().sh("grep VmHWM /proc/$(pidof weft-agent)/status")?.ok()?;
    let kib: u64 = text.split_whitespace().nth(1).context("no VmHWM")?.parse()?;
    ensure!(kib < MOST_MEMORY, "the agent has had {kib} KiB");
    let numbers = site.node().sh("du -sk /mnt/node1/state | cut -f1")?.ok()?;
    let state: u64 = numbers.trim().parse()?;
    ensure!(state < 16 << 10, "its state takes {state} KiB");
    Ok(())
}

/// Without what did not fit everything is as it was.
fn heals(site: &Site) -> Result<()> {
    for object in &site.objects {
        site.bed.delete(object)?;
    }
    let receiver = site.greedy.receiver("eth0")?;
    let to = at(&site.greedy, Family::V4)?;
    until_ok("the tenant's workload to be open again", PATIENCE, || {
        Witness::new("the greedy pod", &receiver).sees(|mark| datagram(&site.stranger, to, mark)).map(drop)
    })?;
    until_ok("the problems to end", PATIENCE, || {
        let problems = site.status()?.problems;
        let mut all = String::new();
        problems.iter().try_for_each(|problem| writeln!(all, "{problem}"))?;
        ensure!(!all.contains("greedy") && !all.contains("full"), "{all}");
        Ok(())
    })
}
