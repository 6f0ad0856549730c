// SPDX-License-Identifier: Apache-2.0
//! The last known state of the cluster, on disk: an agent that starts while the API server is away goes on with it, and pods
//! start with the policies that were last known.
//!
//! `stateDir/policies.json` has the policies, and is written as soon as they change. `stateDir/cluster.json` has what else the
//! plan of this node needs: nodes, namespaces, Services, slices, the pods of this node, and those of other nodes that policies
//! here know; of a large cluster that is much, so that it is written the less often the larger it is. Either that is torn, or of
//! another version or node, is as none; without policies nothing is known.

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

/// Of the files' form.
const VERSION: u32 = 2;
/// Bytes of a file at most; without the pods of other nodes where that would be more.
const MOST: usize = 64 << 20;
/// Between two writes of policies: a restart must not fall back behind them.
const POLICY_INTERVAL: Duration = Duration::from_secs(1);
/// Between two writes of everything else.
const INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that are written in a second, over time: about 8 GB a day, which a disk bears for ever.
const RATE: usize = 100_000;

/// A file: what tells whether it counts, and objects.
#[derive(Deserialize, Serialize)]
struct File<T> {
    version: u32,
    /// The node that wrote it.
    node: String,
    /// Unix time in seconds.
    saved: u64,
    objects: T,
}

#[derive(Deserialize, Serialize)]
#[serde(bound(
    deserialize = "P: Deserialize<'de>, N: Deserialize<'de>, M: Deserialize<'de>, S: Deserialize<'de>, E: Deserialize<'de>"
))]
struct Cluster<P, N, M, S, E> {
    pods: Vec<P>,
    nodes: Vec<N>,
    namespaces: Vec<M>,
    services: Vec<S>,
    slices: Vec<E>,
}

type Read = Cluster<Pod, Node, Namespace, Service, EndpointSlice>;

fn path_of_policies(state_dir: &Path) -> PathBuf {
    state_dir.join("policies.json")
}

fn path_of_cluster(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

/// Both files.
pub(super) fn paths(state_dir: &Path) -> [PathBuf; 2] {
    [path_of_policies(state_dir), path_of_cluster(state_dir)]
}

/// What an earlier run has left for `node`.
pub(super) fn load(state_dir: &Path, node: &str) -> Option<Snapshot> {
    let policies: File<Vec<NetworkPolicy>> = read(&path_of_policies(state_dir), node)?;
    let File { saved, objects, .. } = read::<Read>(&path_of_cluster(state_dir), node)?;
    Some(Snapshot {
        pods: keyed(objects.pods, |object| &object.metadata),
        nodes: keyed(objects.nodes, |object| &object.metadata),
        namespaces: keyed(objects.namespaces, |object| &object.metadata),
        services: keyed(objects.services, |object| &object.metadata),
        slices: keyed(objects.slices, |object| &object.metadata),
        policies: keyed(policies.objects, |object| &object.metadata),
        synced: true,
        remembered: Some(saved),
        ..Snapshot::default()
    })
}

fn read<T: serde::de::DeserializeOwned>(path: &Path, node: &str) -> Option<File<T>> {
    memory::load::<Option<File<T>>>(path).filter(|file| file.version == VERSION && file.node == node)
}

fn keyed<T>(objects: Vec<T>, metadata: fn(&T) -> &Meta) -> BTreeMap<ObjectKey, Arc<T>> {
    objects.into_iter().map(|object| (metadata(&object).key(), Arc::new(object))).collect()
}

fn all<T>(objects: &BTreeMap<ObjectKey, Arc<T>>) -> Vec<&T> {
    objects.values().map(|object| &**object).collect()
}

/// Writes policies down; how many bytes.
///
/// # Errors
/// The file cannot be written, or they are too large.
fn save_policies(
    state_dir: &Path,
    node: &str,
    policies: &BTreeMap<ObjectKey, Arc<NetworkPolicy>>,
) -> io::Result<usize> {
    write(&path_of_policies(state_dir), encode(node, all(policies))?)
}

/// Writes everything else down; how many bytes.
///
/// # Errors
/// As [`save_policies`].
fn save_cluster(state_dir: &Path, node: &str, snapshot: &Snapshot) -> io::Result<usize> {
    let with = |is_needed: fn(&Pod, &str) -> bool| {
        let pods = all(&snapshot.pods).into_iter().filter(|pod| is_needed(pod, node)).collect();
        let cluster = Cluster {
            pods,
            nodes: all(&snapshot.nodes),
            namespaces: all(&snapshot.namespaces),
            services: all(&snapshot.services),
            slices: all(&snapshot.slices),
        };
        encode(node, cluster)
    };
    let whole = with(|_, _| true)?;
    write(&path_of_cluster(state_dir), if whole.len() <= MOST { whole } else { with(is_here)? })
}

fn encode<T: Serialize>(node: &str, objects: T) -> io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(serde_json::to_vec(&File { version: VERSION, node: node.to_owned(), saved: now.as_secs(), objects })?)
}

fn write(path: &Path, bytes: Vec<u8>) -> io::Result<usize> {
    if bytes.len() > MOST {
        // An older state would bring back policies that were replaced since: without any, pods start closed.
        file::gone(std::fs::remove_file(path))?;
        return Err(io::Error::other(format!("{} bytes are more than {MOST}; it is removed", bytes.len())));
    }
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    file::save_bytes(path, &bytes)?;
    Ok(bytes.len())
}

/// Keeps the files up to date.
pub(super) struct Keeper {
    pub(super) state_dir: PathBuf,
    pub(super) node: String,
    pub(super) shared: Arc<Shared>,
}

/// When a file may be written again, and which state it has.
struct Turn {
    next: Instant,
    interval: Duration,
    written: Option<u64>,
}

impl Turn {
    fn new(interval: Duration) -> Self {
        Self { next: Instant::now(), interval, written: None }
    }

    /// When this version is to be written; none: it is.
    fn due(&self, version: u64) -> Option<Instant> {
        (self.written != Some(version)).then_some(self.next)
    }

    fn end(&mut self, version: u64, bytes: usize) {
        let pause = Duration::from_secs((bytes / RATE) as u64);
        (self.next, self.written) = (Instant::now() + pause.max(self.interval), Some(version));
    }
}

impl Keeper {
    /// Writes for ever what has been planned, not too often.
    pub(super) async fn run(self) {
        let mut views = self.shared.views();
        let (mut policies, mut cluster) = (Turn::new(POLICY_INTERVAL), Turn::new(INTERVAL));
        loop {
            let view = views.borrow_and_update().clone();
            let found = planned(&view);
            let due =
                found.map(|Versions { policies: version, objects, .. }| (policies.due(version), cluster.due(objects)));
            let (of_policies, of_cluster) = due.unwrap_or_default();
            let is_due = |due: Option<Instant>| due.is_some_and(|due| Instant::now() >= due);
            // Policies first: those of a cluster that is remembered are at least as new as it is.
            if let Some(found) = found.filter(|_| is_due(of_policies)) {
                policies.end(found.policies, self.write_policies().await);
            } else if let Some(found) = found.filter(|_| is_due(of_cluster)) {
                cluster.end(found.objects, self.write_cluster().await);
            } else {
                let next = of_policies.into_iter().chain(of_cluster).min();
                tokio::select! {
                    changed = views.changed() => if changed.is_err() { return },
                    () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                }
            }
        }
    }

    /// Writes what was planned last, where the source has told it.
    pub(super) async fn write_last(&self) {
        if planned(&self.shared.view()).is_some() {
            self.write_policies().await;
            self.write_cluster().await;
        }
    }

    async fn write_policies(&self) -> usize {
        self.write(|shared, state_dir, node| {
            needed_policies(shared).map_or(Ok(0), |policies| save_policies(state_dir, node, &policies))
        })
        .await
    }

    async fn write_cluster(&self) -> usize {
        self.write(|shared, state_dir, node| {
            needed(shared, node).map_or(Ok(0), |snapshot| save_cluster(state_dir, node, &snapshot))
        })
        .await
    }

    /// How many bytes were written.
    async fn write(&self, write: fn(&Shared, &Path, &str) -> io::Result<usize>) -> usize {
        let (state_dir, node, shared) = (self.state_dir.clone(), self.node.clone(), self.shared.clone());
        match tokio::task::spawn_blocking(move || write(&shared, &state_dir, &node)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                tracing::warn!(folder = %self.state_dir.display(), %error, "cannot keep the state of the cluster for the next start");
                0
            }
            Err(_) => 0,
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

/// Whether the source has told what there is.
fn is_told(shared: &Shared) -> bool {
    let planner = shared.planner();
    planner.snapshot().synced && planner.snapshot().remembered.is_none()
}

/// All policies; none: the source has not told them, or they do not stay as they are for the time of a reading: policies of
/// different moments may be none at all for a pod.
fn needed_policies(shared: &Shared) -> Option<BTreeMap<ObjectKey, Arc<NetworkPolicy>>> {
    (0..READINGS).filter(|_| is_told(shared)).find_map(|_| {
        let before = shared.planner().versions().policies;
        let read = in_parts(shared, |snapshot| &snapshot.policies, |_, _| true);
        (shared.planner().versions().policies == before).then_some(read)
    })
}

/// What else the plan of this node needs; none: the source has not told it.
fn needed(shared: &Shared, node: &str) -> Option<Snapshot> {
    let is_needed = |planner: &Planner, pod: &Pod| {
        let identities = &planner.desired().identities;
        is_here(pod, node) || pod.addresses.iter().any(|address| identities.contains_key(&Addr::from(*address)))
    };
    is_told(shared).then(|| Snapshot {
        pods: in_parts(shared, |snapshot| &snapshot.pods, is_needed),
        namespaces: in_parts(shared, |snapshot| &snapshot.namespaces, |_, _| true),
        nodes: in_parts(shared, |snapshot| &snapshot.nodes, |_, _| true),
        services: in_parts(shared, |snapshot| &snapshot.services, |_, _| true),
        slices: in_parts(shared, |snapshot| &snapshot.slices, |_, _| true),
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
        assert_eq!(needed(&shared, "here").unwrap().namespaces, many.namespaces);
        assert_eq!(needed_policies(&shared).unwrap(), many.policies);
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
        let dir = dir.path();
        let (shared, _commands) = Shared::with(View::default(), planner(&snapshot()));
        save_cluster(dir, "here", &needed(&shared, "here").unwrap()).unwrap();
        assert!(load(dir, "here").is_none(), "without its policies");
        save_policies(dir, "here", &needed_policies(&shared).unwrap()).unwrap();
        let found = load(dir, "here").unwrap();
        let names: Vec<&str> = found.pods.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["mine", "peer"], "pods of this node, and those that policies know");
        let Snapshot { nodes, namespaces, services, slices, policies, .. } = snapshot();
        assert_eq!((&found.nodes, &found.namespaces, &found.services), (&nodes, &namespaces, &services));
        assert_eq!((&found.slices, &found.policies), (&slices, &policies));
        assert!(found.synced && found.remembered.is_some_and(|since| since > 1_700_000_000));
        assert!(load(dir, "there").is_none(), "of another node");
        for path in paths(dir) {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, &text[..text.len() / 2]).unwrap();
            assert!(load(dir, "here").is_none(), "torn");
            std::fs::write(&path, text.replacen("\"version\":2", "\"version\":1", 1)).unwrap();
            assert!(load(dir, "here").is_none(), "of another version");
            std::fs::write(&path, text).unwrap();
            assert!(load(dir, "here").is_some());
        }
    }

    #[test]
    fn a_file_is_written_the_less_often_the_larger_it_is() {
        let mut turn = Turn::new(INTERVAL);
        assert!(turn.due(1).is_some_and(|due| due <= Instant::now()));
        for (bytes, pause) in [(1000, INTERVAL), (RATE * 300, Duration::from_secs(300))] {
            turn.end(1, bytes);
            assert_eq!(turn.due(1), None);
            let left = turn.due(2).unwrap() - Instant::now();
            assert!(left <= pause && left + Duration::from_secs(1) > pause, "{left:?}");
        }
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
        let dir = dir.path();
        let source_state = SourceState { name: "kubernetes".into(), synced: true, error: None, remembered_since: None };
        let (shared, _commands) = Shared::new(View { source: Some(source_state), ..View::default() });
        let keeper = || Keeper { state_dir: dir.to_owned(), node: "here".into(), shared: shared.clone() };
        let plan = |snapshot: Snapshot| {
            *shared.planner_mut() = planner(&snapshot);
            let versions = shared.planner().versions();
            shared.publish(|view| view.planned = Some(versions));
        };
        let running = tokio::spawn(keeper().run());
        plan(snapshot());
        let written = async {
            while load(dir, "here").is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
        running.abort();
        // What is only remembered is not written again: it would look newer than it is.
        plan(Snapshot { remembered: Some(7), pods: BTreeMap::new(), ..snapshot() });
        keeper().write_last().await;
        assert_eq!(load(dir, "here").unwrap().pods.len(), 2);
        plan(Snapshot { pods: BTreeMap::new(), ..snapshot() });
        keeper().write_last().await;
        assert_eq!(load(dir, "here").unwrap().pods.len(), 0);
    }
}
