// SPDX-License-Identifier: Apache-2.0
//! Which pods are watched while policies, pods and namespaces come and go.

use serde_json::{Value, from_value, json};

use super::*;
use crate::model::objects::Namespace;

/// What is told, object by object.
#[derive(Default)]
struct Told(Deltas);

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

fn policy(name: &str, selects: &str, from: &Value) -> (ObjectKey, Arc<NetworkPolicy>) {
    let spec = json!({"podSelector": {"matchLabels": {"app": selects}}, "ingress": [{"from": from}]});
    let object = json!({"metadata": {"namespace": "x", "name": name}, "spec": spec});
    (key("x", name), Arc::new(from_value(object).unwrap()))
}

fn pod(name: &str, node: &str, app: &str) -> (ObjectKey, Arc<Pod>) {
    let metadata = json!({"namespace": "x", "name": name, "labels": {"app": app}});
    (key("x", name), Arc::new(from_value(json!({"metadata": metadata, "spec": {"nodeName": node}})).unwrap()))
}

fn from_app(app: &str) -> Value {
    json!([{"podSelector": {"matchLabels": {"app": app}}}])
}

impl Told {
    fn policy(mut self, (key, policy): (ObjectKey, Arc<NetworkPolicy>)) -> Self {
        self.0.policies.objects.insert(key, Some(policy));
        self
    }

    fn pod(mut self, (key, pod): (ObjectKey, Arc<Pod>)) -> Self {
        self.0.pods.objects.insert(key, Some(pod));
        self
    }

    fn namespace(mut self, name: &str, team: &str) -> Self {
        let object = json!({"metadata": {"name": name, "labels": {"team": team}}});
        self.0.namespaces.objects.insert(key("", name), Some(Arc::new(from_value::<Namespace>(object).unwrap())));
        self
    }

    fn gone(mut self, name: &str) -> Self {
        self.0.policies.objects.insert(key("x", name), None);
        self
    }
}

/// The watches of a node, with a clock.
struct Node {
    pods: Pods,
    now: Instant,
}

/// The names of policies and pods.
fn told(deltas: &Deltas) -> Vec<&str> {
    let policies = deltas.policies.objects.keys();
    policies.chain(deltas.pods.objects.keys()).map(|key| key.name.as_str()).collect()
}

fn begun(orders: &Orders) -> Vec<String> {
    let text =
        |scope: &Scope| format!("{} {}", scope.namespace.as_deref().unwrap_or("*"), scope.query().unwrap_or_default());
    orders.begin.iter().map(|(_, scope)| text(scope)).collect()
}

impl Node {
    /// After the first lists: with one pod of this node, "web", and what `deltas` has.
    fn new(deltas: Told) -> (Self, Orders) {
        let mut node = Self { pods: Pods::new("here"), now: Instant::now() };
        let mut deltas = deltas.pod(pod("web", "here", "web")).namespace("x", "red").0;
        let told = told(&deltas).len();
        assert_eq!(node.pods.screen(&mut deltas, node.now), Orders::default(), "what is needed is not known yet");
        assert_eq!(self::told(&deltas).len(), told, "a first list waits for nothing");
        let orders = node.pods.start();
        (node, orders)
    }

    /// What begins, and what is told at once.
    fn screen(&mut self, deltas: Told) -> (Orders, Deltas) {
        let mut deltas = deltas.0;
        let orders = self.pods.screen(&mut deltas, self.now);
        (orders, deltas)
    }

    fn list_all(&mut self) -> Vec<WatchId> {
        let open: Vec<_> = self.pods.watches.values().filter(|watch| !watch.listed).map(|watch| watch.id).collect();
        open.into_iter().flat_map(|id| self.pods.listed(id).end).collect()
    }
}

#[test]
fn a_node_without_policies_watches_its_own_pods_alone() {
    let deltas = Told::default().policy(policy("others", "elsewhere", &from_app("client")));
    let (mut node, orders) =
        Node::new(deltas.policy(policy("blocks", "web", &json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]))));
    assert_eq!(orders, Orders::default());
    let (orders, deltas) = node.screen(Told::default().pod(pod("elsewhere", "there", "elsewhere")));
    assert_eq!((orders, told(&deltas)), (Orders::default(), vec!["elsewhere"]), "of another node, whatever brought it");
}

#[test]
fn a_policy_comes_after_the_pods_that_it_means() {
    let (mut node, orders) = Node::new(Told::default().policy(policy("first", "web", &from_app("client"))));
    assert_eq!(begun(&orders), ["x app in (client)"]);
    assert_eq!(node.list_all(), [] as [WatchId; 0]);
    // The same pods: nothing to wait for.
    let (orders, deltas) = node.screen(Told::default().policy(policy("second", "web", &from_app("client"))));
    assert_eq!((orders, told(&deltas)), (Orders::default(), vec!["second"]));
    let (orders, deltas) = node.screen(Told::default().policy(policy("third", "web", &from_app("other"))));
    assert_eq!((begun(&orders), told(&deltas)), (vec!["x app in (other)".to_owned()], vec![]));
    assert!(told(&node.pods.release(node.now)).is_empty());
    // What comes of it meanwhile replaces what waits.
    let (_, deltas) = node.screen(Told::default().policy(policy("third", "web", &from_app("client"))));
    assert_eq!(told(&deltas), ["third"]);
    node.list_all();
    assert!(told(&node.pods.release(node.now)).is_empty());
    let (_, deltas) = node.screen(Told::default().policy(policy("fourth", "web", &from_app("another"))));
    assert!(told(&deltas).is_empty());
    node.list_all();
    assert_eq!(told(&node.pods.release(node.now)), ["fourth"]);
}

#[test]
fn nothing_waits_for_ever_and_what_is_gone_not_at_all() {
    let (mut node, _) = Node::new(Told::default());
    let (_, deltas) = node.screen(Told::default().policy(policy("a", "web", &from_app("client"))));
    assert!(told(&deltas).is_empty());
    let (_, deltas) = node.screen(Told::default().gone("a"));
    assert_eq!(told(&deltas), ["a"]);
    node.screen(Told::default().policy(policy("b", "web", &from_app("client"))));
    let deadline = node.pods.deadline().unwrap();
    assert!(told(&node.pods.release(deadline - Duration::from_millis(1))).is_empty());
    assert_eq!(told(&node.pods.release(deadline)), ["b"], "closed for whom is not known, and no longer");
    assert_eq!(node.pods.deadline(), None);
}

#[test]
fn a_pod_of_this_node_comes_after_the_pods_that_its_policies_mean() {
    let (mut node, orders) = Node::new(Told::default().policy(policy("p", "new", &from_app("client"))));
    assert_eq!(orders, Orders::default(), "it selects nobody here");
    let (orders, deltas) = node.screen(Told::default().pod(pod("new", "here", "new")));
    assert_eq!((begun(&orders).len(), told(&deltas)), (1, vec![]));
    let (_, deltas) = node.screen(Told::default().pod(pod("web", "there", "web")));
    assert_eq!(told(&deltas), ["web"], "those of other nodes go on");
    node.list_all();
    assert_eq!(told(&node.pods.release(node.now)), ["new"]);
}

#[test]
fn a_namespace_that_a_peer_means_is_watched_as_it_comes() {
    let from = json!([{"namespaceSelector": {"matchLabels": {"team": "red"}}}]);
    let (mut node, orders) = Node::new(Told::default().policy(policy("p", "web", &from)).namespace("y", "blue"));
    assert_eq!(begun(&orders), ["x "]);
    node.list_all();
    let (orders, _) = node.screen(Told::default().namespace("z", "blue"));
    assert_eq!(orders, Orders::default());
    let (orders, _) = node.screen(Told::default().namespace("z", "red"));
    assert_eq!(begun(&orders), ["z "]);
}

#[test]
fn what_nobody_needs_ends_after_a_while() {
    let (mut node, orders) = Node::new(Told::default().policy(policy("p", "web", &from_app("client"))));
    let [(id, _)] = &orders.begin[..] else { panic!("{orders:?}") };
    node.list_all();
    node.screen(Told::default().gone("p"));
    for _ in 0..LINGER {
        assert_eq!(node.pods.tidy(), Orders::default());
    }
    assert_eq!(node.pods.tidy().end, [*id]);
    // One that is needed again stays.
    node.screen(Told::default().policy(policy("p", "web", &from_app("client"))));
    node.list_all();
    node.screen(Told::default().gone("p"));
    node.pods.tidy();
    node.screen(Told::default().policy(policy("p", "web", &from_app("client"))));
    for _ in 0..5 {
        assert_eq!(node.pods.tidy(), Orders::default());
    }
}

#[test]
fn many_watches_become_few_and_no_pod_goes_missing_between() {
    let (mut node, _) = Node::new(Told::default());
    let app = |number: usize| format!("app-{number}");
    let mut ended = Vec::new();
    for number in 0..2 * scope::MOST {
        let new = policy(&format!("p{number}"), "web", &from_app(&app(number)));
        let (orders, _) = node.screen(Told::default().policy(new));
        ended.extend(orders.end);
        // Every watch that is to end is listed, and stays until those in its place are.
        assert!(node.pods.watches.len() < usize::from(WATCHES));
        ended.extend(node.list_all());
        for before in 0..=number {
            let peers = crate::plan::PolicyForm::read(policy("", "", &from_app(&app(before))).1.spec().as_ref(), "x")
                .pod_peers();
            let listed = node.pods.watches.iter().filter(|(_, watch)| watch.listed).map(|(scope, _)| scope);
            assert!(scope::cover(listed, peers.first().unwrap(), node.pods.needs.namespaces()), "{before} of {number}");
        }
    }
    assert!(ended.len() > 60, "{ended:?}");
    assert!(node.pods.watches.len() <= scope::MOST);
}

#[test]
fn what_goes_does_not_overtake_what_comes_in_its_place() {
    let (mut node, _) = Node::new(Told::default().policy(policy("old", "web", &json!([]))));
    let (_, deltas) = node.screen(Told::default().policy(policy("new", "web", &from_app("client"))));
    assert!(told(&deltas).is_empty());
    let (_, deltas) = node.screen(Told::default().gone("old").pod(pod("other", "there", "other")));
    assert_eq!(told(&deltas), ["other"], "without the old one the pod would be open");
    let (_, deltas) = node.screen(Told::default().pod(pod("web", "here", "free")));
    assert!(told(&deltas).is_empty(), "nor does the pod");
    node.list_all();
    let released = node.pods.release(node.now);
    assert_eq!(told(&released), ["new", "old", "web"]);
    assert!(released.policies.objects[&key("x", "old")].is_none());
    assert_eq!(node.pods.deadline(), None);
}

#[test]
fn a_list_of_policies_ends_what_waits() {
    let (mut node, _) = Node::new(Told::default().policy(policy("p", "new", &from_app("client"))));
    let (_, deltas) = node.screen(Told::default().pod(pod("new", "here", "new")));
    assert!(told(&deltas).is_empty());
    let mut list = Told::default().policy(policy("q", "new", &from_app("another")));
    list.0.policies.all = true;
    let (_, deltas) = node.screen(list);
    assert_eq!(told(&deltas), ["q", "new"]);
}

/// Policies that come faster than lists: whatever is watched in place of it, a pod that somebody here means stays.
#[test]
fn watches_end_after_others_have_their_pods() {
    let (mut node, _) = Node::new(Told::default());
    let peer = |number: usize| {
        let from = from_app(&format!("app-{number}"));
        let spec = policy("", "", &from).1.spec();
        crate::plan::PolicyForm::read(spec.as_ref(), "x").pod_peers().pop_first().unwrap()
    };
    let mut held: BTreeSet<usize> = BTreeSet::new();
    for number in 0..400 {
        let new = policy(&format!("p{number}"), "web", &from_app(&format!("app-{number}")));
        let (_, _) = node.screen(Told::default().policy(new));
        let listed = |node: &Node, number| {
            let scopes = node.pods.watches.iter().filter(|(_, watch)| watch.listed).map(|(scope, _)| scope);
            scope::cover(scopes, &peer(number), node.pods.needs.namespaces())
        };
        for before in &held {
            assert!(listed(&node, *before), "app-{before} was watched before p{number} came");
        }
        // Lists end now and then.
        if number % 37 == 20 || number < 25 {
            node.list_all();
        }
        held = (0..=number).filter(|number| listed(&node, *number)).collect();
        assert!(node.pods.watches.len() < usize::from(WATCHES));
    }
    node.list_all();
    assert!(node.pods.watches.values().all(|watch| !watch.leaving));
    let watched = |number| scope::cover(staying(&node.pods.watches), &peer(number), node.pods.needs.namespaces());
    assert!((0..400).all(watched));
}

#[test]
fn a_node_that_had_to_watch_all_pods_goes_back() {
    let (mut node, orders) = Node::new(Told::default().policy(policy("p", "web", &from_app("client"))));
    assert_eq!(begun(&orders), ["x app in (client)"]);
    node.list_all();
    // Whatever pod it is, it numbers the port.
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]});
    let all = from_value(json!({"metadata": {"namespace": "x", "name": "all"}, "spec": spec})).unwrap();
    let (orders, _) = node.screen(Told::default().policy((key("x", "all"), Arc::new(all))));
    assert_eq!(begun(&orders), ["* "]);
    node.list_all();
    node.screen(Told::default().gone("all"));
    let ended: Vec<WatchId> = (0..10)
        .flat_map(|_| {
            let mut orders = node.pods.tidy();
            orders.end.extend(node.list_all());
            orders.end
        })
        .collect();
    assert_eq!(ended.len(), 1);
    assert_eq!(node.pods.watches.keys().filter_map(Scope::query).collect::<Vec<_>>(), ["app in (client)"]);
}
