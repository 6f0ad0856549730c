// SPDX-License-Identifier: Apache-2.0
//! The last known state of the cluster, on disk: an agent that starts while the API server is away goes on with it, and pods
//! start with the policies that were last known. `stateDir/cluster.json`.
//!
//! It holds what the plan of this node needs: nodes, namespaces, Services, slices, policies, the pods of this node, and those
//! of other nodes that policies here know. A file that is torn, or of another version or node, is as none.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use weft_abi::Addr;

use super::memory;
use crate::{
    file,
    model::{Desired, ObjectKey, Snapshot},
    plan,
    serve::{Shared, View},
};

/// Of the file's form.
const VERSION: u32 = 1;
/// Bytes of the file at most; without the pods of other nodes where that would be more.
const MOST: usize = 64 << 20;
/// Between two writes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between two writes where policies have changed: a restart must not fall back behind them.
const POLICY_INTERVAL: Duration = Duration::from_secs(1);
/// No more than this part of the time is spent on writing.
const PART: u32 = 20;
/// How long a source that says nothing, not even an error, is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Path of the file.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

#[derive(Deserialize, Serialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>, N: Deserialize<'de>, M: Deserialize<'de>, S: Deserialize<'de>, \
                             E: Deserialize<'de>, R: Deserialize<'de>"))]
struct File<P, N, M, S, E, R> {
    version: u32,
    /// The node that wrote it.
    node: String,
    /// Unix time in seconds.
    saved: u64,
    pods: Vec<P>,
    nodes: Vec<N>,
    namespaces: Vec<M>,
    services: Vec<S>,
    slices: Vec<E>,
    policies: Vec<R>,
}

type Written<'s> = File<&'s Pod, &'s Node, &'s Namespace, &'s Service, &'s EndpointSlice, &'s NetworkPolicy>;
type Read = File<Pod, Node, Namespace, Service, EndpointSlice, NetworkPolicy>;

/// What an earlier run has left for `node`.
pub(super) fn load(path: &Path, node: &str) -> Option<Snapshot> {
    let found: Option<Read> = memory::load(path);
    let file = found.filter(|file| file.version == VERSION && file.node == node)?;
    Some(Snapshot {
        pods: keyed(file.pods, |object| &object.metadata),
        nodes: keyed(file.nodes, |object| &object.metadata),
        namespaces: keyed(file.namespaces, |object| &object.metadata),
        services: keyed(file.services, |object| &object.metadata),
        slices: keyed(file.slices, |object| &object.metadata),
        policies: keyed(file.policies, |object| &object.metadata),
        synced: true,
        remembered: Some(file.saved),
        ..Snapshot::default()
    })
}

fn keyed<T>(objects: Vec<T>, metadata: fn(&T) -> &ObjectMeta) -> BTreeMap<ObjectKey, Arc<T>> {
    let key = |object: &T| {
        let ObjectMeta { namespace, name, .. } = metadata(object);
        ObjectKey::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default())
    };
    objects.into_iter().map(|object| (key(&object), Arc::new(object))).collect()
}

/// Writes `snapshot` down.
///
/// # Errors
/// The file cannot be written, or the state is too large.
fn save(path: &Path, node: &str, snapshot: &Snapshot, desired: &Desired) -> io::Result<()> {
    let is_known =
        |pod: &Pod| plan::addresses(pod).any(|address| desired.identities.contains_key(&Addr::from(address)));
    let is_here = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let all = encode(node, snapshot, |pod| is_here(pod) || is_known(pod))?;
    let bytes = if all.len() <= MOST { all } else { encode(node, snapshot, is_here)? };
    if bytes.len() > MOST {
        // An older state would bring back policies that were replaced since: without any, pods start closed.
        file::gone(std::fs::remove_file(path))?;
        return Err(io::Error::other(format!("{} bytes are more than {MOST}; it is removed", bytes.len())));
    }
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    file::save_bytes(path, &bytes)
}

fn encode(node: &str, snapshot: &Snapshot, is_needed: impl Fn(&Pod) -> bool) -> io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let file = Written {
        version: VERSION,
        node: node.to_owned(),
        saved: now.as_secs(),
        pods: snapshot.pods.values().map(|pod| &**pod).filter(|pod| is_needed(pod)).collect(),
        nodes: snapshot.nodes.values().map(|object| &**object).collect(),
        namespaces: snapshot.namespaces.values().map(|object| &**object).collect(),
        services: snapshot.services.values().map(|object| &**object).collect(),
        slices: snapshot.slices.values().map(|object| &**object).collect(),
        policies: snapshot.policies.values().map(|object| &**object).collect(),
    };
    Ok(serde_json::to_vec(&file)?)
}

/// What the source tells; until it has told everything once, and if it does not do so soon, what is remembered.
pub(super) fn bridge(
    mut source: watch::Receiver<Arc<Snapshot>>,
    remembered: Option<Snapshot>,
) -> watch::Receiver<Arc<Snapshot>> {
    let Some(remembered) = remembered else { return source };
    let first = source.borrow().clone();
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let deadline = Instant::now() + PATIENCE;
        let mut remembered = Some(remembered);
        loop {
            let snapshot = source.borrow_and_update().clone();
            if snapshot.synced {
                remembered = None;
            }
            let is_silent = snapshot.error.is_some() || Instant::now() >= deadline;
            let shown = match remembered.as_ref().filter(|_| is_silent) {
                Some(known) => Arc::new(Snapshot { error: snapshot.error.clone(), ..known.clone() }),
                None => snapshot,
            };
            if shown.remembered != sender.borrow().remembered {
                tracing::info!(
                    remembered = shown.remembered.is_some(),
                    "whether the source has told everything has changed"
                );
            }
            sender.send_replace(shown);
            tokio::select! {
                () = sender.closed() => return,
                changed = source.changed() => if changed.is_err() { return },
                () = sleep_until(deadline), if remembered.is_some() && Instant::now() < deadline => {}
            }
        }
    });
    receiver
}

/// Keeps the file up to date.
pub(super) struct Keeper {
    pub(super) path: PathBuf,
    pub(super) node: String,
    pub(super) shared: Arc<Shared>,
}

impl Keeper {
    /// Writes for ever what has been planned, not too often.
    pub(super) async fn run(self) {
        let mut views = self.shared.views();
        let mut last: Option<Arc<Snapshot>> = None;
        let (mut next, mut next_for_policies) = (Instant::now(), Instant::now());
        loop {
            let view = views.borrow_and_update().clone();
            let fresh = planned(&view).filter(|snapshot| last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, snapshot)));
            let policies = |snapshot: &Snapshot| last.as_ref().is_none_or(|last| last.policies != snapshot.policies);
            let due = if fresh.is_some_and(|snapshot| policies(snapshot)) { next_for_policies } else { next };
            if let Some(snapshot) = fresh.filter(|_| Instant::now() >= due) {
                let started = Instant::now();
                self.write(&view, snapshot).await;
                let pause = started.elapsed() * PART;
                next = Instant::now() + pause.max(INTERVAL);
                next_for_policies = Instant::now() + pause.max(POLICY_INTERVAL);
                last = Some(snapshot.clone());
                continue;
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = sleep_until(due), if fresh.is_some() => {}
            }
        }
    }

    /// Writes what was planned last, where the source has told it.
    pub(super) async fn write_last(&self) {
        let view = self.shared.view();
        if let Some(snapshot) = planned(&view) {
            self.write(&view, snapshot).await;
        }
    }

    async fn write(&self, view: &View, snapshot: &Arc<Snapshot>) {
        let (path, node, desired, snapshot) =
            (self.path.clone(), self.node.clone(), view.desired.clone(), snapshot.clone());
        let saved = tokio::task::spawn_blocking(move || save(&path, &node, &snapshot, &desired)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the state of the cluster for the next start");
        }
    }
}

/// What the source has told, as it was planned: a plan says which pods of it policies know.
fn planned(view: &View) -> Option<&Arc<Snapshot>> {
    view.planned.as_ref().filter(|snapshot| snapshot.synced && snapshot.remembered.is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};
    use weft_api::SourceState;

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(namespace: &str, name: &str, more: Value) -> (ObjectKey, Arc<T>) {
        let mut object = more;
        object["metadata"] = json!({"namespace": namespace, "name": name});
        (ObjectKey::new(namespace, name), Arc::new(from_value(object).unwrap()))
    }

    fn pod(name: &str, node: &str, ip: &str) -> (ObjectKey, Arc<Pod>) {
        object("x", name, json!({"spec": {"nodeName": node, "containers": []}, "status": {"podIPs": [{"ip": ip}]}}))
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            pods: [
                pod("mine", "here", "10.1.0.1"),
                pod("peer", "there", "10.2.0.1"),
                pod("other", "there", "10.2.0.2"),
            ]
            .into(),
            nodes: [object("", "here", json!({"spec": {"podCIDRs": ["10.1.0.0/24"]}}))].into(),
            namespaces: [object("", "x", json!({}))].into(),
            services: [object("x", "s", json!({"spec": {"clusterIP": "10.96.0.1"}}))].into(),
            slices: [object("x", "s-1", json!({"addressType": "IPv4", "endpoints": []}))].into(),
            policies: [object("x", "p", json!({"spec": {"podSelector": {}}}))].into(),
            synced: true,
            ..Snapshot::default()
        }
    }

    fn desired() -> Desired {
        let peer: std::net::IpAddr = "10.2.0.1".parse().unwrap();
        Desired { identities: [(Addr::from(peer), 1)].into(), ..Desired::default() }
    }

    #[test]
    fn what_the_plan_needs_comes_back_and_nothing_else_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert!(load(&path, "here").is_none(), "no file");
        save(&path, "here", &snapshot(), &desired()).unwrap();
        let found = load(&path, "here").unwrap();
        let names: Vec<&str> = found.pods.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["mine", "peer"], "pods of this node, and those that policies know");
        let Snapshot { nodes, namespaces, services, slices, policies, .. } = snapshot();
        assert_eq!((&found.nodes, &found.namespaces, &found.services), (&nodes, &namespaces, &services));
        assert_eq!((&found.slices, &found.policies), (&slices, &policies));
        assert!(found.synced && found.remembered.is_some_and(|since| since > 1_700_000_000));
        assert!(load(&path, "there").is_none(), "of another node");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(load(&path, "here").is_none(), "torn");
        std::fs::write(&path, text.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
        assert!(load(&path, "here").is_none(), "of another version");
    }

    #[tokio::test]
    async fn a_silent_source_is_waited_for_and_an_error_is_not() {
        for error in [None, Some("refused".to_owned())] {
            let (source, receiver) = watch::channel(Arc::new(Snapshot::default()));
            let known = Snapshot { remembered: Some(7), ..snapshot() };
            let mut shown = bridge(receiver, Some(known));
            assert!(!shown.borrow().synced);
            if error.is_some() {
                source.send_replace(Arc::new(Snapshot { error: error.clone(), ..Snapshot::default() }));
            }
            let first = shown.wait_for(|snapshot| snapshot.synced).await.unwrap().clone();
            assert_eq!((first.remembered, first.policies.len(), &first.error), (Some(7), 1, &error));
            source.send_replace(Arc::new(Snapshot { synced: true, ..Snapshot::default() }));
            let live = shown.wait_for(|snapshot| snapshot.remembered.is_none()).await.unwrap().clone();
            assert!(live.synced && live.policies.is_empty());
            // What was remembered is over, also when the source is away again.
            source.send_replace(Arc::new(Snapshot { synced: true, error: Some("away".into()), ..Snapshot::default() }));
            assert!(shown.wait_for(|snapshot| snapshot.error.is_some()).await.unwrap().remembered.is_none());
        }
    }

    #[tokio::test]
    async fn the_state_is_written_when_it_changes_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let source_state = SourceState { name: "kubernetes".into(), synced: true, error: None, remembered_since: None };
        let (shared, _commands) = Shared::new(View { source: Some(source_state), ..View::default() });
        let keeper = || Keeper { path: path.clone(), node: "here".into(), shared: shared.clone() };
        let plan = |snapshot: Snapshot| shared.publish(|view| view.planned = Some(Arc::new(snapshot)));
        let running = tokio::spawn(keeper().run());
        plan(snapshot());
        let written = async {
            while load(&path, "here").is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
        running.abort();
        // What is only remembered is not written again: it would look newer than it is.
        plan(Snapshot { remembered: Some(7), pods: BTreeMap::new(), ..snapshot() });
        keeper().write_last().await;
        assert_eq!(load(&path, "here").unwrap().pods.len(), 1);
        plan(Snapshot { pods: BTreeMap::new(), ..snapshot() });
        keeper().write_last().await;
        assert_eq!(load(&path, "here").unwrap().pods.len(), 0);
    }
}
