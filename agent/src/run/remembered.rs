// SPDX-License-Identifier: Apache-2.0
//! The last known state of the cluster, on disk: an agent that starts while the API server is away goes on with it, and pods
//! start with the policies that were last known.
//!
//! `stateDir/policies.json` has what says who is isolated by what: policies, namespaces and the pods of this node, all of one
//! moment; it is written as soon as they change. A pod that is not in it is closed. `stateDir/cluster.json` has what else the plan
//! of this node needs: nodes, Services, slices, ServiceCIDRs, and the pods of other nodes that policies here know; of a large cluster that is
//! much, so that it is written the less often the larger it is. Either that is torn, or of another version or node, is as none;
//! without the first nothing is known.

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

use super::memory;
use crate::{
    file,
    model::{
        ObjectKey, Snapshot,
        objects::{EndpointSlice, Meta, Namespace, NetworkPolicy, Node, Pod, Service, ServiceCidr},
    },
    plan::{Planner, Versions},
    serve::{Shared, View},
};

/// Of the files' form.
const VERSION: u32 = 2;
/// Bytes of a file at most; without the pods of other nodes where that would be more.
const MOST: usize = 64 << 20;
/// Between two writes of what isolates: a restart must not fall back behind it.
const ISOLATION_INTERVAL: Duration = Duration::from_secs(1);
/// Between two writes of everything else.
const INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of everything else that are written in a second, over time: about 8 GB a day, which a disk bears for ever.
const RATE: usize = 100_000;
/// No more than this part of the time is spent on writing what isolates.
const PART: u32 = 20;

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

/// What says who is isolated by what.
#[derive(Deserialize, Serialize)]
struct Isolating<P, M, R> {
    policies: Vec<R>,
    namespaces: Vec<M>,
    /// Of this node.
    pods: Vec<P>,
}

#[derive(Deserialize, Serialize)]
#[serde(bound(
    deserialize = "P: Deserialize<'de>, N: Deserialize<'de>, S: Deserialize<'de>, E: Deserialize<'de>, C: Deserialize<'de>"
))]
struct Cluster<P, N, S, E, C> {
    /// Of other nodes.
    pods: Vec<P>,
    nodes: Vec<N>,
    services: Vec<S>,
    slices: Vec<E>,
    /// An earlier version wrote none.
    #[serde(default = "Vec::new")]
    service_cidrs: Vec<C>,
}

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
    let isolating: File<Isolating<Pod, Namespace, NetworkPolicy>> = read(&path_of_policies(state_dir), node)?;
    let cluster: File<Cluster<Pod, Node, Service, EndpointSlice, ServiceCidr>> =
        read(&path_of_cluster(state_dir), node)?;
    let (isolating, saved, cluster) = (isolating.objects, cluster.saved, cluster.objects);
    let others = cluster.pods.into_iter().filter(|pod| !is_here(pod, node));
    let pods = isolating.pods.into_iter().chain(others).collect();
    Some(Snapshot {
        pods: keyed(pods, |object| &object.metadata),
        nodes: keyed(cluster.nodes, |object| &object.metadata),
        namespaces: keyed(isolating.namespaces, |object| &object.metadata),
        services: keyed(cluster.services, |object| &object.metadata),
        slices: keyed(cluster.slices, |object| &object.metadata),
        service_cidrs: keyed(cluster.service_cidrs, |object| &object.metadata),
        policies: keyed(isolating.policies, |object| &object.metadata),
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

/// Writes down what says who is isolated by what; how many bytes. Where that cannot be, nothing is known at the next start: an
/// older state might leave a pod open.
///
/// # Errors
/// The file cannot be written, or it is too large.
fn save_isolating(state_dir: &Path, node: &str, snapshot: &Snapshot) -> io::Result<usize> {
    let Snapshot { policies, namespaces, pods, .. } = snapshot;
    let isolating = Isolating { policies: all(policies), namespaces: all(namespaces), pods: all(pods) };
    let path = path_of_policies(state_dir);
    let written = encode(node, isolating).and_then(|bytes| write(&path, &bytes));
    if written.is_err() {
        file::gone(std::fs::remove_file(&path))?;
    }
    written
}

/// Writes everything else down; how many bytes. Without pods where that would be too much.
///
/// # Errors
/// As [`save_isolating`].
fn save_cluster(state_dir: &Path, node: &str, snapshot: &Snapshot) -> io::Result<usize> {
    let with = |pods| {
        let (nodes, services, slices) = (all(&snapshot.nodes), all(&snapshot.services), all(&snapshot.slices));
        encode(node, Cluster { pods, nodes, services, slices, service_cidrs: all(&snapshot.service_cidrs) })
    };
    let whole = with(all(&snapshot.pods))?;
    let bytes = if whole.len() <= MOST { whole } else { with(Vec::new())? };
    write(&path_of_cluster(state_dir), &bytes)
}

fn encode<T: Serialize>(node: &str, objects: T) -> io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(serde_json::to_vec(&File { version: VERSION, node: node.to_owned(), saved: now.as_secs(), objects })?)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<usize> {
    if bytes.len() > MOST {
        return Err(io::Error::other(format!("{}: {} bytes are more than {MOST}", path.display(), bytes.len())));
    }
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    file::save_bytes(path, bytes)?;
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
    written: Option<u64>,
}

impl Turn {
    fn new() -> Self {
        Self { next: Instant::now(), written: None }
    }

    /// When this version is to be written; none: it is.
    fn due(&self, version: u64) -> Option<Instant> {
        (self.written != Some(version)).then_some(self.next)
    }

    /// One that was not written is tried again.
    fn end(&mut self, version: u64, is_written: bool, pause: Duration) {
        self.next = Instant::now() + pause;
        if is_written {
            self.written = Some(version);
        }
    }
}

/// Between two writes of so many bytes.
fn pause_for(bytes: usize) -> Duration {
    INTERVAL.max(Duration::from_secs((bytes / RATE) as u64))
}

impl Keeper {
    /// Writes for ever what has been planned, not too often.
    pub(super) async fn run(self) {
        let mut views = self.shared.views();
        let (mut isolating, mut cluster) = (Turn::new(), Turn::new());
        loop {
            let view = views.borrow_and_update().clone();
            let found = planned(&view);
            let due = found.map(|found| (isolating.due(found.isolation), cluster.due(found.objects)));
            let (first, second) = due.unwrap_or_default();
            let is_due = |due: Option<Instant>| due.is_some_and(|due| Instant::now() >= due);
            if let Some(found) = found.filter(|_| is_due(first)) {
                let started = Instant::now();
                let is_written = self.write_isolating().await.is_some();
                isolating.end(found.isolation, is_written, ISOLATION_INTERVAL.max(started.elapsed() * PART));
            } else if let Some(found) = found.filter(|_| is_due(second)) {
                let bytes = self.write_cluster().await;
                cluster.end(found.objects, bytes.is_some(), pause_for(bytes.unwrap_or_default()));
            } else {
                let next = first.into_iter().chain(second).min();
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
            self.write_isolating().await;
            self.write_cluster().await;
        }
    }

    async fn write_isolating(&self) -> Option<usize> {
        self.write(|shared, state_dir, node| {
            isolating(shared, node).map(|found| save_isolating(state_dir, node, &found)).transpose()
        })
        .await
    }

    async fn write_cluster(&self) -> Option<usize> {
        self.write(|shared, state_dir, node| {
            needed(shared, node).map(|found| save_cluster(state_dir, node, &found)).transpose()
        })
        .await
    }

    /// How many bytes were written; none: there was nothing to write, or it cannot be.
    async fn write(&self, write: fn(&Shared, &Path, &str) -> io::Result<Option<usize>>) -> Option<usize> {
        let (state_dir, node, shared) = (self.state_dir.clone(), self.node.clone(), self.shared.clone());
        let written = tokio::task::spawn_blocking(move || write(&shared, &state_dir, &node)).await;
        written.ok()?.unwrap_or_else(|error| {
            let folder = self.state_dir.display();
            tracing::warn!(%folder, %error, "cannot keep the state of the cluster for the next start");
            None
        })
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

/// What says who is isolated by what; none: the source has not told it, or it does not stay as it is for the time of a reading:
/// policies and pods of different moments may leave a pod open.
fn isolating(shared: &Shared, node: &str) -> Option<Snapshot> {
    (0..READINGS).filter(|_| is_told(shared)).find_map(|_| {
        let before = shared.planner().versions().isolation;
        let read = Snapshot {
            policies: in_parts(shared, |snapshot| &snapshot.policies, |_, _| true),
            namespaces: in_parts(shared, |snapshot| &snapshot.namespaces, |_, _| true),
            pods: in_parts(shared, |snapshot| &snapshot.pods, |_, pod| is_here(pod, node)),
            ..Snapshot::default()
        };
        (shared.planner().versions().isolation == before).then_some(read)
    })
}

/// What else the plan of this node needs; none: the source has not told it.
fn needed(shared: &Shared, node: &str) -> Option<Snapshot> {
    let is_needed = |planner: &Planner, pod: &Pod| {
        !is_here(pod, node) && pod.addresses.iter().any(|address| planner.means(*address))
    };
    is_told(shared).then(|| Snapshot {
        pods: in_parts(shared, |snapshot| &snapshot.pods, is_needed),
        nodes: in_parts(shared, |snapshot| &snapshot.nodes, |_, _| true),
        services: in_parts(shared, |snapshot| &snapshot.services, |_, _| true),
        slices: in_parts(shared, |snapshot| &snapshot.slices, |_, _| true),
        service_cidrs: in_parts(shared, |snapshot| &snapshot.service_cidrs, |_, _| true),
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
        model::{Deltas, Desired, News, address::address_key},
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
            service_cidrs: [object("", "c", json!({"spec": {"cidrs": ["10.96.0.0/16"]}}))].into(),
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
        let read = isolating(&shared, "here").unwrap();
        assert_eq!((read.namespaces, read.policies), (many.namespaces, many.policies));
    }

    fn planner(snapshot: &Snapshot) -> Planner {
        let mut planner = Planner::of(desired());
        planner.take(News { deltas: Deltas::whole(snapshot), standing: snapshot.standing(), since: None });
        planner
    }

    fn desired() -> Desired {
        let peer: std::net::IpAddr = "10.2.0.1".parse().unwrap();
        Desired { peers: [(address_key(peer), 1)].into(), ..Desired::default() }
    }

    #[test]
    fn what_the_plan_needs_comes_back_and_nothing_else_counts() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (shared, _commands) = Shared::with(View::default(), planner(&snapshot()));
        save_cluster(dir, "here", &needed(&shared, "here").unwrap()).unwrap();
        assert!(load(dir, "here").is_none(), "without its policies");
        save_isolating(dir, "here", &isolating(&shared, "here").unwrap()).unwrap();
        let found = load(dir, "here").unwrap();
        let names: Vec<&str> = found.pods.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["mine", "peer"], "pods of this node, and those that policies know");
        let Snapshot { nodes, namespaces, services, slices, policies, service_cidrs, .. } = snapshot();
        assert_eq!(found.service_cidrs, service_cidrs);
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
        for (bytes, pause) in [(1000, INTERVAL), (RATE * 300, Duration::from_secs(300))] {
            let mut turn = Turn::new();
            assert!(turn.due(1).is_some_and(|due| due <= Instant::now()));
            turn.end(1, true, pause_for(bytes));
            assert_eq!(turn.due(1), None);
            let left = turn.due(2).unwrap() - Instant::now();
            assert!(left <= pause && left + Duration::from_secs(1) > pause, "{left:?}");
        }
    }

    #[test]
    fn what_was_not_written_is_tried_again() {
        let mut turn = Turn::new();
        turn.end(1, false, INTERVAL);
        assert!(turn.due(1).is_some_and(|due| due > Instant::now()));
    }

    /// A pod that is newer than the policies that are remembered might be open.
    #[test]
    fn a_cluster_that_is_newer_than_its_policies_knows_no_new_pod_of_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (before, _commands) = Shared::with(View::default(), planner(&snapshot()));
        save_isolating(dir, "here", &isolating(&before, "here").unwrap()).unwrap();
        let mut later = snapshot();
        later.pods.extend([pod("new", "here", "10.1.0.2")]);
        let (after, _commands) = Shared::with(View::default(), planner(&later));
        save_cluster(dir, "here", &needed(&after, "here").unwrap()).unwrap();
        let names: Vec<_> = load(dir, "here").unwrap().pods.into_keys().map(|key| key.name.to_string()).collect();
        assert_eq!(names, ["mine", "peer"]);
    }

    #[test]
    fn policies_that_cannot_be_written_are_not_known_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (shared, _commands) = Shared::with(View::default(), planner(&snapshot()));
        let found = isolating(&shared, "here").unwrap();
        save_isolating(dir, "here", &found).unwrap();
        save_cluster(dir, "here", &needed(&shared, "here").unwrap()).unwrap();
        let mut large = found;
        let spec = json!({"spec": {"podSelector": {"matchLabels": {"app": "x".repeat(MOST)}}}});
        large.policies.extend([object("x", "large", spec)]);
        save_isolating(dir, "here", &large).unwrap_err();
        assert!(load(dir, "here").is_none());
    }

    #[test]
    fn every_change_of_who_is_isolated_is_one() {
        let mut planner = planner(&snapshot());
        let mut changes = |deltas: Deltas| {
            let before = planner.versions().isolation;
            planner.take(News { deltas, standing: snapshot().standing(), since: None });
            planner.versions().isolation != before
        };
        fn one<T>((key, object): (ObjectKey, Arc<T>)) -> crate::model::Changed<T> {
            crate::model::Changed { all: false, objects: [(key, Some(object))].into() }
        }
        let labelled =
            json!({"spec": {"nodeName": "here"}, "status": {"podIPs": [{"ip": "10.1.0.1"}, {"ip": "10.1.0.9"}]}});
        assert!(changes(Deltas { pods: one(object("x", "mine", labelled)), ..Deltas::default() }));
        assert!(changes(Deltas {
            policies: one(object("x", "q", json!({"spec": {"podSelector": {}}}))),
            ..Deltas::default()
        }));
        assert!(changes(Deltas { namespaces: one(object("", "y", json!({}))), ..Deltas::default() }));
        assert!(!changes(Deltas { services: one(object("x", "t", json!({}))), ..Deltas::default() }));
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
            let mut shown = Reader::new(feed.or_remembered(true, || Some(known)));
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
    async fn a_silent_source_is_waited_for_as_long_as_it_is_told_to() {
        let (source, feed) = channel();
        let mut feed = feed.or_remembered(true, || Some(Snapshot { remembered: Some(7), ..snapshot() }));
        feed.listen(Some(std::time::Instant::now()));
        assert!(feed.changed().await && feed.take().standing.synced, "it is over");
        drop(source);
        let (source, feed) = channel();
        let mut feed = feed.or_remembered(false, || Some(Snapshot { remembered: Some(7), ..snapshot() }));
        feed.listen(Some(std::time::Instant::now()));
        assert!(!feed.take().standing.synced, "nothing was told yet");
        source.tell(std::time::Instant::now(), |_, standing| {
            standing.error = Some("refused".to_owned());
            true
        });
        assert!(feed.changed().await && feed.take().standing.remembered == Some(7), "an error is not silence");
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
