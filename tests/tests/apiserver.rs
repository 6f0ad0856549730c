// SPDX-License-Identifier: Apache-2.0

//! An API server that lies: whatever it tells, no map is ever wrong.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_testbed::{
    Bed, Binaries, Container, Options, Tables,
    apiserver::{ApiServer, Key, Kind, Population},
};

/// Longer than the agent waits before it asks a server again that has failed it a few times.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node under an API server of more Services than a page of a list has.
struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    local: Container,
    tables: Tables,
    bed: Bed,
    server: ApiServer,
    population: Population,
}

fn population() -> Population {
    Population {
        here: "node1".to_owned(),
        nodes: 4,
        pods_per_node: 8,
        services: 700,
        endpoints: 3,
        policies: 20,
        everyone: false,
    }
}

impl Site {
    fn new() -> Result<Self> {
        Self::under(|_| ())
    }

    /// With a server that is `prepared` before the agent starts.
    fn under(prepare: impl FnOnce(&ApiServer)) -> Result<Self> {
        let population = population();
        population.check()?;
        let server = ApiServer::new();
        population.install(&server);
        let bed = server.site(&Options { nodes: 1, ..Options::default() }, &Binaries::locate()?)?;
        prepare(&server);
        let node = bed.node(1);
        node.start_agent()?;
        node.agent_ready()?;
        let pod = population.local_pod(0);
        let local = Container::new(node, &format!("{}/{}", pod.namespace, pod.name))?;
        let site = Self { local, tables: Tables::of(node)?, bed, server, population };
        for kind in Kind::ALL {
            site.wait(&format!("a watch of {}", kind.plural()), || Ok(site.server.watches(kind) > 0))?;
        }
        Ok(site)
    }

    fn vip(&self, service: usize) -> SocketAddr {
        (self.population.vip(service), 80).into()
    }

    /// Waits until `done`; all that time `always` must hold.
    fn wait_while(&self, what: &str, always: impl Fn() -> Result<()>, done: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        loop {
            let is_done = done()?;
            always().with_context(|| format!("{what}\n{}", self.bed.node(1).agent_log()))?;
            if is_done {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("never: {what}\n{}", self.bed.node(1).agent_log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait(&self, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
        self.wait_while(what, || Ok(()), done)
    }

    /// The slice of `service` with one endpoint.
    fn slice(&self, service: usize, address: &str) -> Result<Value> {
        let mut slice = self.server.get(Kind::EndpointSlices, &self.population.slice(service)).context("no slice")?;
        slice["endpoints"] = json!([{"addresses": [address], "conditions": {"ready": true}}]);
        Ok(slice)
    }

    fn leads_to(&self, service: usize, address: &str) -> Result<bool> {
        Ok(self.tables.backends(self.vip(service))? == Some(vec![SocketAddr::new(address.parse()?, 8080)]))
    }

    /// Gives `service` one endpoint and waits until the maps have it.
    fn change(&self, service: usize, address: &str) -> Result<()> {
        self.server.put(Kind::EndpointSlices, self.slice(service, address)?)?;
        self.wait(&format!("Service {service} leads to {address}"), || self.leads_to(service, address))
    }

    /// Every Service but those of `changed` leads where the generated objects say.
    fn others_are_right(&self, changed: &[usize]) -> Result<()> {
        for service in (0..self.population.services).filter(|service| !changed.contains(service)) {
            let pods = self.population.backends(service);
            let mut expected: Vec<SocketAddr> =
                pods.map(|pod| (self.population.remote_addresses(pod).0, 8080).into()).collect();
            expected.sort_unstable();
            let found = self.tables.backends(self.vip(service))?;
            ensure!(found.as_ref() == Some(&expected), "Service {service}: {found:?}, not {expected:?}");
        }
        Ok(())
    }

    fn ifindex(&self) -> Result<u32> {
        self.ifindex_of(&self.local)
    }

    fn ifindex_of(&self, container: &Container) -> Result<u32> {
        let side = container.attachment().interface(false)?;
        let name = side["name"].as_str().context("the interface has no name")?;
        let path = format!("/sys/class/net/{name}/ifindex");
        let text = std::fs::read_to_string(self.bed.node(1).machine().path(path)).context("read the ifindex")?;
        Ok(text.trim().parse()?)
    }
}

const OLD: &str = "10.99.0.1";
const NEW: &str = "10.99.0.2";

#[test]
fn events_that_are_told_twice_change_nothing() -> Result<()> {
    let site = Site::new()?;
    site.change(1, NEW)?;
    let slice = site.server.get(Kind::EndpointSlices, &site.population.slice(1)).context("no slice")?;
    for event in ["ADDED", "MODIFIED", "ADDED", "MODIFIED"] {
        site.server.inject(Kind::EndpointSlices, event, &slice);
    }
    let gone = site.server.get(Kind::Services, &site.population.service(2)).context("no Service")?;
    site.server.delete(Kind::Services, &site.population.service(2))?;
    for _ in 0..2 {
        site.server.inject(Kind::Services, "DELETED", &gone);
    }
    // Both come after what was repeated.
    site.server.put(Kind::EndpointSlices, site.slice(3, NEW)?)?;
    let stays = || {
        ensure!(site.leads_to(1, NEW)?, "Service 1 leads to {:?}", site.tables.backends(site.vip(1))?);
        Ok(())
    };
    site.wait_while("what came after", stays, || {
        Ok(site.leads_to(3, NEW)? && site.tables.frontend(site.vip(2))?.is_none())
    })?;
    site.others_are_right(&[1, 2, 3])
}

#[test]
fn a_history_that_is_forgotten_is_made_up_for() -> Result<()> {
    let site = Site::new()?;
    for kind in [Kind::EndpointSlices, Kind::Services] {
        site.server.mark(kind);
        site.server.fall_back(kind);
    }
    site.server.put(Kind::EndpointSlices, site.slice(1, NEW)?)?;
    site.server.delete(Kind::Services, &site.population.service(2))?;
    for kind in [Kind::EndpointSlices, Kind::Services] {
        site.server.expire(kind);
        site.server.thaw(kind);
    }
    site.wait("what only a list can tell", || {
        Ok(site.leads_to(1, NEW)? && site.tables.frontend(site.vip(2))?.is_none())
    })?;
    site.others_are_right(&[1, 2])?;
    site.change(3, NEW)
}

/// Lists that end in the middle, and pages that are refused: what was known stays until a list is whole.
#[test]
fn half_a_list_takes_nothing_away() -> Result<()> {
    let site = Site::new()?;
    site.server.cut_lists(Kind::Services, 2);
    site.server.expire_pages(Kind::Services, 1);
    site.server.mark(Kind::Services);
    site.server.fall_back(Kind::Services);
    site.server.delete(Kind::Services, &site.population.service(2))?;
    site.server.expire(Kind::Services);
    site.server.thaw(Kind::Services);
    let all_stay = || {
        let (services, _) = site.tables.services()?;
        ensure!(services >= site.population.services - 1, "{services} frontends are left");
        Ok(())
    };
    site.wait_while("the whole list", all_stay, || Ok(site.tables.frontend(site.vip(2))?.is_none()))?;
    site.others_are_right(&[2])
}

#[test]
fn half_a_first_list_is_no_cluster() -> Result<()> {
    let site = Site::under(|server| {
        for kind in [Kind::Services, Kind::EndpointSlices, Kind::NetworkPolicies] {
            server.cut_lists(kind, 2);
        }
    })?;
    site.wait("all Services", || Ok(site.tables.services()?.0 == site.population.services))?;
    site.others_are_right(&[])
}

/// A cache that is behind tells nothing for a time, to old watches and to new ones.
#[test]
fn a_stale_watch_ends_right() -> Result<()> {
    let site = Site::new()?;
    site.change(1, OLD)?;
    site.server.mark(Kind::EndpointSlices);
    site.server.fall_back(Kind::EndpointSlices);
    site.server.put(Kind::EndpointSlices, site.slice(1, "10.99.0.7")?)?;
    site.server.break_watches(Kind::EndpointSlices);
    site.server.put(Kind::EndpointSlices, site.slice(1, NEW)?)?;
    site.wait("another watch", || Ok(site.server.watches(Kind::EndpointSlices) > 0))?;
    site.server.thaw(Kind::EndpointSlices);
    site.wait("what the cache had not known", || site.leads_to(1, NEW))?;
    site.others_are_right(&[1])
}

/// Another API server answers, whose cache is older than what the agent knows already, and cannot continue the watch.
#[test]
fn a_cache_that_is_behind_takes_nothing_back() -> Result<()> {
    let site = Site::new()?;
    site.change(1, OLD)?;
    site.server.mark(Kind::EndpointSlices);
    site.change(1, NEW)?;
    site.server.fall_back(Kind::EndpointSlices);
    site.server.expire(Kind::EndpointSlices);
    let before = site.server.requests().len();
    let stays = || {
        ensure!(site.leads_to(1, NEW)?, "Service 1 leads to {:?}", site.tables.backends(site.vip(1))?);
        Ok(())
    };
    site.wait_while("the agent asks anew", stays, || {
        let requests = site.server.requests();
        Ok(requests[before..].iter().any(|request| request.contains("/endpointslices?")))
    })?;
    // The answer has its time to do harm: another kind's change is planned after it.
    site.server.put(Kind::Services, renumbered(&site, 2)?)?;
    site.wait_while("the change of another kind", stays, || {
        Ok(site.tables.backends(SocketAddr::new(site.vip(2).ip(), 81))?.is_some())
    })?;
    site.server.thaw(Kind::EndpointSlices);
    site.server.put(Kind::EndpointSlices, site.slice(3, NEW)?)?;
    site.wait_while("the next change", stays, || site.leads_to(3, NEW))?;
    site.others_are_right(&[1, 2, 3])
}

/// The Service `number` with another port.
fn renumbered(site: &Site, number: usize) -> Result<Value> {
    let mut service = site.server.get(Kind::Services, &site.population.service(number)).context("no Service")?;
    service["spec"]["ports"][0]["port"] = json!(81);
    Ok(service)
}

/// 1.5 MB of annotations, and 1.5 MB of policy: nobody else is held up.
#[test]
fn objects_of_one_and_a_half_megabytes_hold_up_nobody() -> Result<()> {
    let site = Site::new()?;
    let mut service = renumbered(&site, 1)?;
    service["metadata"]["annotations"] = json!({"note": "x".repeat(1_500_000)});
    site.server.put(Kind::Services, service)?;
    site.wait("the large Service", || Ok(site.tables.backends(SocketAddr::new(site.vip(1).ip(), 81))?.is_some()))?;
    let blocks: Vec<Value> =
        (0x1000..0x8c00_u32).map(|n| json!({"ipBlock": {"cidr": format!("2001:db8:1111:2222::{n:x}/128")}})).collect();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": site.population.namespace(1), "name": "large"},
        "spec": {"podSelector": {"matchLabels": {"app": "local-1"}}, "ingress": [{"from": blocks}]},
    });
    ensure!(policy.to_string().len() > 1_500_000, "the policy is of {} bytes", policy.to_string().len());
    site.server.put(Kind::NetworkPolicies, policy)?;
    let key = site.population.local_pod(1);
    let other = Container::new(site.bed.node(1), &format!("{}/{}", key.namespace, key.name))?;
    site.change(3, NEW)?;
    site.others_are_right(&[1, 3])?;
    drop(other);
    site.local_policies_hold()
}

impl Site {
    /// Pod `local-0` lets in exactly those whom policy 0 lets in, on its port.
    fn local_policies_hold(&self) -> Result<()> {
        let ifindex = self.ifindex()?;
        let (app, port) = self.population.admitted(0);
        let (pod, _) = (0..self.population.remote_pods())
            .map(|pod| (pod, self.population.app(pod)))
            .find(|(_, of)| *of == app)
            .context("no pod")?;
        let peer = IpAddr::from(self.population.remote_addresses(pod).0);
        self.wait("policy 0 is in force", || self.tables.admits(ifindex, peer, port))?;
        ensure!(!self.tables.admits(ifindex, peer, 9)?, "port 9 is open");
        ensure!(!self.tables.admits(ifindex, "198.51.100.1".parse()?, port)?, "strangers come in");
        Ok(())
    }
}

/// Policies that are told again, forgotten and listed in halves: a pod that they isolate is never open.
#[test]
fn a_pod_is_never_open() -> Result<()> {
    let site = Site::new()?;
    site.local_policies_hold()?;
    let ifindex = site.ifindex()?;
    let closed = || {
        ensure!(!site.tables.admits(ifindex, "198.51.100.1".parse()?, 1000)?, "strangers come in");
        Ok(())
    };
    let key = Key::new(&site.population.namespace(0), "more");
    let more = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": key.namespace, "name": key.name},
        "spec": {"podSelector": {"matchLabels": {"app": "local-0"}}, "ingress": [{"from": [{"ipBlock": {"cidr": "198.51.100.7/32"}}]}]},
    });
    for kind in [Kind::NetworkPolicies, Kind::Namespaces, Kind::Pods] {
        site.server.cut_lists(kind, 1);
        site.server.expire(kind);
    }
    site.server.put(Kind::NetworkPolicies, more)?;
    let peer = "198.51.100.7".parse()?;
    site.wait_while("the policy of after", closed, || site.tables.admits(ifindex, peer, 1000))?;
    site.server.delete(Kind::NetworkPolicies, &key)?;
    site.wait_while("the policy is gone", closed, || Ok(!site.tables.admits(ifindex, peer, 1000)?))?;
    site.local_policies_hold()
}

/// Events of an object as it was before, after the one of how it is.
#[test]
fn events_in_another_order_take_nothing_back() -> Result<()> {
    let site = Site::new()?;
    site.change(1, OLD)?;
    let old = site.server.get(Kind::EndpointSlices, &site.population.slice(1)).context("no slice")?;
    site.change(1, NEW)?;
    site.server.inject(Kind::EndpointSlices, "MODIFIED", &old);
    site.server.inject(Kind::EndpointSlices, "DELETED", &old);
    site.server.put(Kind::EndpointSlices, site.slice(3, NEW)?)?;
    let stays = || {
        ensure!(site.leads_to(1, NEW)?, "Service 1 leads to {:?}", site.tables.backends(site.vip(1))?);
        Ok(())
    };
    site.wait_while("what came after", stays, || site.leads_to(3, NEW))
}

/// So few that they let in some of the applications only.
const FEW_POLICIES: usize = 4;

/// Only the pods of this node, and those that policies of its pods mean, are asked for: one that becomes such a pod, or ceases
/// to be one, is known all the same.
#[test]
fn pods_are_watched_as_far_as_policies_here_mean_them() -> Result<()> {
    let few = |server: &ApiServer| {
        for policy in FEW_POLICIES..population().policies {
            drop(server.delete(Kind::NetworkPolicies, &population().policy(policy)));
        }
    };
    let site = Site::under(few)?;
    let last = site.population.policy(site.population.policies - 1);
    ensure!(site.server.get(Kind::NetworkPolicies, &last).is_none(), "all policies are there");
    site.local_policies_hold()?;
    let ifindex = site.ifindex()?;
    let ((app, port), population) = (site.population.admitted(0), &site.population);
    let of_app =
        |wanted| (0..population.remote_pods()).find(|pod| population.app(*pod) == wanted).context("no such pod");
    let [peer, stranger] = [
        of_app(app)?,
        (0..population.apps()).find(|app| !site.is_admitted(*app)).map(of_app).context("all apps are admitted")??,
    ];
    let address = |pod| IpAddr::from(population.remote_addresses(pod).0);
    ensure!(!site.asks_for_all_pods(), "{:#?}", site.server.requests());
    let before = site.server.bytes(Kind::Pods).1;
    for number in 0..20 {
        site.relabel(
            stranger,
            &json!({"app": format!("app-{}", population.app(stranger)), "number": number.to_string()}),
        )?;
    }
    site.change(1, OLD)?;
    let bytes = site.server.bytes(Kind::Pods).1 - before;
    ensure!(bytes < 5_000, "{bytes} bytes came of 20 changes of a pod that nobody here asks for");
    // In its namespace, the application that policy 0 lets in.
    let labels = json!({"app": format!("app-{app}")});
    let more = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": population.namespace(0), "name": "more"},
        "spec": {"podSelector": {"matchLabels": {"app": "local-0"}}, "ingress": [
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "guest"}}}]},
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}], "ports": [{"port": port}]},
        ]},
    });
    site.server.put(Kind::NetworkPolicies, more)?;
    site.relabel(stranger, &json!({"role": "guest"}))?;
    site.wait("the guest", || site.tables.admits(ifindex, address(stranger), 1000))?;
    site.relabel(stranger, &json!({"role": "none"}))?;
    site.wait("the guest no more", || Ok(!site.tables.admits(ifindex, address(stranger), 1000)?))?;
    site.wait("who is let in by two policies", || site.tables.admits(ifindex, address(peer), port))?;
    // All pods are told from where they lie, and are not asked for; the ports that they give a name are.
    let everyone = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": population.namespace(0), "name": "everyone"},
        "spec": {"podSelector": {"matchLabels": {"app": "local-0"}}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 9}]}]},
    });
    site.server.put(Kind::NetworkPolicies, everyone)?;
    site.wait("all pods", || site.tables.admits(ifindex, address(stranger), 9))?;
    ensure!(!site.asks_for_all_pods(), "{:#?}", site.server.requests());
    let by_name = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": population.namespace(0), "name": "by-name"},
        "spec": {"podSelector": {"matchLabels": {"app": "local-0"}}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]},
    });
    site.server.put(Kind::NetworkPolicies, by_name)?;
    site.wait("all pods are asked for", || Ok(site.asks_for_all_pods()))?;
    site.others_are_right(&[1])
}

impl Site {
    /// Whether some policy of this node's pods lets an application in.
    fn is_admitted(&self, app: usize) -> bool {
        (0..FEW_POLICIES).any(|policy| self.population.admitted(policy).0 == app)
    }

    /// Whether some list of pods had no selector.
    fn asks_for_all_pods(&self) -> bool {
        let requests = self.server.requests();
        let all = |request: &&String| request.contains("/api/v1/pods?") && !request.contains("Selector=");
        requests.iter().any(|request| all(&request))
    }

    fn relabel(&self, pod: usize, labels: &Value) -> Result<()> {
        let mut object = self.server.get(Kind::Pods, &self.population.remote_pod(pod)).context("no pod")?;
        object["metadata"]["labels"] = labels.clone();
        self.server.put(Kind::Pods, object).map(drop)
    }
}

/// What has changed while no agent ran is not in the maps, and not in what the agent remembers either.
#[test]
fn a_node_that_comes_back_is_ready_by_its_maps_and_a_new_pod_waits_for_the_policies_of_now() -> Result<()> {
    let site = Site::new()?;
    let node = site.bed.node(1);
    let (app, before) = site.population.admitted(1);
    let (now, peer) = (40_000, IpAddr::from(site.population.remote_addresses(app * site.population.endpoints).0));
    node.stop_agent(Signal::SIGKILL)?;
    let mut policy = site.server.get(Kind::NetworkPolicies, &site.population.policy(1)).context("no policy")?;
    policy["spec"]["ingress"][0]["ports"][0]["port"] = json!(now);
    site.server.put(Kind::NetworkPolicies, policy)?;
    site.server.hold_lists(true);
    node.start_agent()?;
    node.agent_ready()?;
    let status: weft_api::StatusReport = node.weft_json("status")?;
    ensure!(!status.source.synced && status.source.remembered_since.is_none(), "{:?}", status.source);
    site.others_are_right(&[])?;
    let pod = site.population.local_pod(1);
    let (added, listed, served) = std::thread::scope(|scope| {
        let release = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            let listed = Instant::now();
            site.server.hold_lists(false);
            listed
        });
        let added = Container::new(node, &format!("{}/{}", pod.namespace, pod.name));
        let served = Instant::now();
        (added, release.join(), served)
    });
    let (added, listed) = (added?, listed.map_err(|_| anyhow::anyhow!("the releasing thread panicked"))?);
    ensure!(served > listed, "nobody could know its policies");
    let ifindex = site.ifindex_of(&added)?;
    ensure!(site.tables.admits(ifindex, peer, now)? && !site.tables.admits(ifindex, peer, before)?, "not as it is now");
    site.others_are_right(&[])
}
