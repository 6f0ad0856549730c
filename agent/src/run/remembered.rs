// SPDX-License-Identifier: Apache-2.0
//! The last known state of the cluster, on disk: an agent that starts while the API server is away goes on with it, and pods
//! start with the policies that were last known. `stateDir/cluster.json`.
//!
//! It holds what the plan of this node needs: nodes, namespaces, Services, slices, policies, the pods of this node, and those
//! of other nodes that policies here know. A file that is torn, or of another version or node, is as none.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use weft_abi::Addr;

use super::memory;
use crate::{
    file,
    model::{
        ObjectKey, Snapshot,
        objects::{EndpointSlice, Meta, Namespace, NetworkPolicy, Node, Pod, Service},
    },
    plan::{Planner, Versions},
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

fn keyed<T>(objects: Vec<T>, metadata: fn(&T) -> &Meta) -> BTreeMap<ObjectKey, Arc<T>> {
    objects.into_iter().map(|object| (metadata(&object).key(), Arc::new(object))).collect()
}

/// Writes `snapshot` down.
///
/// # Errors
/// The file cannot be written, or the state is too large.
fn save(path: &Path, node: &str, snapshot: &Snapshot) -> io::Result<()> {
    let all = encode(node, snapshot, |_| true)?;
    let bytes = if all.len() <= MOST { all } else { encode(node, snapshot, |pod| is_here(pod, node))? };
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
        let mut last: Option<Versions> = None;
        let (mut next, mut next_for_policies) = (Instant::now(), Instant::now());
        loop {
            let view = views.borrow_and_update().clone();
            let fresh = planned(&view).filter(|planned| last != Some(*planned));
            let policies = |planned: Versions| last.is_none_or(|last| last.policies != planned.policies);
            let due = if fresh.is_some_and(policies) { next_for_policies } else { next };
            if let Some(planned) = fresh.filter(|_| Instant::now() >= due) {
                let started = Instant::now();
                self.write().await;
                let pause = started.elapsed() * PART;
                next = Instant::now() + pause.max(INTERVAL);
                next_for_policies = Instant::now() + pause.max(POLICY_INTERVAL);
                last = Some(planned);
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
        if planned(&self.shared.view()).is_some() {
            self.write().await;
        }
    }

    async fn write(&self) {
        let (path, node, shared) = (self.path.clone(), self.node.clone(), self.shared.clone());
        let saved = tokio::task::spawn_blocking(move || {
            needed(&shared, &node).map_or(Ok(()), |needed| save(&path, &node, &needed))
        });
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the state of the cluster for the next start");
        }
    }
}

/// Which state the source has told and was planned: a plan says which pods of it policies know.
fn planned(view: &View) -> Option<Versions> {
    view.planned.filter(|_| view.source.as_ref().is_some_and(|source| source.synced))
}

/// Objects that are read at once: a change that comes meanwhile waits for so many and no more.
const AT_ONCE: usize = 1000;

/// Readings at most, where policies change while they are read.
const READINGS: usize = 5;

/// What the plan of this node needs; none: the source has not told it, or its policies do not stay as they are for the time of a
/// reading: policies of different moments may be none at all for a pod.
fn needed(shared: &Shared, node: &str) -> Option<Snapshot> {
    (0..READINGS).find_map(|_| {
        let before = shared.planner().versions().policies;
        let read = read(shared, node)?;
        (shared.planner().versions().policies == before).then_some(read)
    })
}

fn read(shared: &Shared, node: &str) -> Option<Snapshot> {
    {
        let planner = shared.planner();
        let snapshot = planner.snapshot();
        if !snapshot.synced || snapshot.remembered.is_some() {
            return None;
        }
    }
    let is_needed = |planner: &Planner, pod: &Pod| {
        let identities = &planner.desired().identities;
        is_here(pod, node) || pod.addresses.iter().any(|address| identities.contains_key(&Addr::from(*address)))
    };
    Some(Snapshot {
        pods: in_parts(shared, |snapshot| &snapshot.pods, is_needed),
        namespaces: in_parts(shared, |snapshot| &snapshot.namespaces, |_, _| true),
        nodes: in_parts(shared, |snapshot| &snapshot.nodes, |_, _| true),
        services: in_parts(shared, |snapshot| &snapshot.services, |_, _| true),
        slices: in_parts(shared, |snapshot| &snapshot.slices, |_, _| true),
        policies: in_parts(shared, |snapshot| &snapshot.policies, |_, _| true),
        ..Snapshot::default()
    })
}

/// The objects of a kind that are kept, each as it was at some moment of the reading.
fn in_parts<T>(
    shared: &Shared,
    of: impl Fn(&Snapshot) -> &BTreeMap<ObjectKey, Arc<T>>,
    keeps: impl Fn(&Planner, &T) -> bool,
) -> BTreeMap<ObjectKey, Arc<T>> {
    let mut kept = BTreeMap::new();
    let mut after = Bound::Unbounded;
    loop {
        let planner = shared.planner();
        let mut part = of(planner.snapshot()).range((after, Bound::Unbounded)).take(AT_ONCE);
        let Some((mut last, _)) = part.clone().next() else { return kept };
        for (key, object) in part.by_ref() {
            last = key;
            if keeps(&planner, object) {
                kept.insert(key.clone(), object.clone());
            }
        }
        after = Bound::Excluded(last.clone());
    }
}

fn is_here(pod: &Pod, node: &str) -> bool {
    pod.node.as_deref() == Some(node)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};
    use weft_api::SourceState;

    use super::*;
    use crate::{
        model::{Deltas, Desired, News},
        watch::{Reader, channel},
    };

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

    #[test]
    fn what_is_read_in_parts_is_whole() {
        let mut many = snapshot();
        let names = (0..2 * AT_ONCE + 7).map(|number| format!("n{number}"));
        many.namespaces.extend(names.map(|name| object("", &name, json!({}))));
        let (shared, _commands) = Shared::with(View::default(), planner(&many));
        let read = needed(&shared, "here").unwrap();
        assert_eq!((read.namespaces, read.policies), (many.namespaces, many.policies));
    }

    fn planner(snapshot: &Snapshot) -> Planner {
        let mut planner = Planner::of(desired());
        planner.take(News { deltas: Deltas::whole(snapshot), standing: snapshot.standing(), since: None });
        planner
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
        let (shared, _commands) = Shared::with(View::default(), planner(&snapshot()));
        save(&path, "here", &needed(&shared, "here").unwrap()).unwrap();
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
            let (source, feed) = channel();
            let tell = |snapshot: Snapshot| {
                source.tell(std::time::Instant::now(), |deltas, standing| {
                    (*deltas, *standing) = (Deltas::whole(&snapshot), snapshot.standing());
                    true
                });
            };
            let known = Snapshot { remembered: Some(7), ..snapshot() };
            let mut shown = Reader::new(feed.or_remembered(Some(known)));
            assert!(!shown.now().synced);
            if error.is_some() {
                tell(Snapshot { error: error.clone(), ..Snapshot::default() });
            }
            let first = shown.wait_for(|snapshot| snapshot.synced).await;
            assert_eq!((first.remembered, first.policies.len(), &first.error), (Some(7), 1, &error));
            tell(Snapshot { synced: true, ..Snapshot::default() });
            let live = shown.wait_for(|snapshot| snapshot.remembered.is_none()).await;
            assert!(live.synced && live.policies.is_empty());
            // What was remembered is over, also when the source is away again.
            tell(Snapshot { synced: true, error: Some("away".into()), ..Snapshot::default() });
            assert!(shown.wait_for(|snapshot| snapshot.error.is_some()).await.remembered.is_none());
        }
    }

    #[tokio::test]
    async fn the_state_is_written_when_it_changes_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let source_state = SourceState { name: "kubernetes".into(), synced: true, error: None, remembered_since: None };
        let (shared, _commands) = Shared::new(View { source: Some(source_state), ..View::default() });
        let keeper = || Keeper { path: path.clone(), node: "here".into(), shared: shared.clone() };
        let plan = |snapshot: Snapshot| {
            *shared.planner_mut() = planner(&snapshot);
            let versions = shared.planner().versions();
            shared.publish(|view| view.planned = Some(versions));
        };
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
        assert_eq!(load(&path, "here").unwrap().pods.len(), 2);
        plan(Snapshot { pods: BTreeMap::new(), ..snapshot() });
        keeper().write_last().await;
        assert_eq!(load(&path, "here").unwrap().pods.len(), 0);
    }
}
