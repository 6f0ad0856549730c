// SPDX-License-Identifier: Apache-2.0

use std::{fs, net::IpAddr, path::Path, time::Duration};

use rstest::rstest;
use tempfile::TempDir;

use super::{object::Written, *};
use crate::{
    model::{Attachment, ObjectKey, Snapshot},
    watch::{NodeRecord, Reader, Source, start},
};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  selector: {app: web}
  ports:
  - {port: 80, targetPort: http}
";

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec:
  containers:
  - name: web
    ports:
    - {name: http, containerPort: 8080}
";

const SERVICE_CIDR: &str = "\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec:
  cidrs: [10.96.0.0/16, 'fd00:96::/112']
";

/// One scan of a folder, as `run` does it.
struct Bench {
    dir: TempDir,
    folder: Folder,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        Self { dir, folder }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn scan(&mut self) -> Written {
        self.folder.scan().unwrap();
        merge::snapshot(self.folder.files())
    }
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

fn record(name: &str, cidr: &str, address: &str) -> NodeRecord {
    NodeRecord { name: name.into(), pod_cidrs: vec![cidr.parse().unwrap()], addresses: vec![address.parse().unwrap()] }
}

#[test]
fn two_agents_share_what_they_know() {
    let mut bench = Bench::new();
    bench.write("web.yaml", &format!("{SERVICE}---\n{POD}"));
    let path = bench.dir.path().to_owned();
    let web = Attachment::sample(1, Some(("default", "web-1")), &["10.1.0.5/32", "fd00:1::5/128"]);
    let nameless = Attachment::sample(2, Some(("default", "unlabelled")), &["10.2.0.9/32"]);
    publish(&path, &record("a", "10.1.0.0/24", "192.0.2.1"), &[web.into()]).unwrap();
    publish(&path, &record("b", "10.2.0.0/24", "192.0.2.2"), &[nameless.into()]).unwrap();

    let snapshot = bench.scan();
    assert_eq!(snapshot.problems, Vec::<String>::new());
    let pod = &snapshot.pods[&key("default", "web-1")];
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["app"], "web", "labels are the user's");
    assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("a"), "the place is the agent's");
    assert!(snapshot.pods[&key("default", "unlabelled")].metadata.labels.is_none());
    let node = &snapshot.nodes[&key("", "b")];
    assert_eq!(node.spec.as_ref().unwrap().pod_cidrs.as_ref().unwrap(), &["10.2.0.0/24"]);
    assert_eq!(node.status.as_ref().unwrap().addresses.as_ref().unwrap()[0].address, "192.0.2.2");

    let of_family = |family: &str| {
        let slice = snapshot.slices.values().find(|slice| slice.address_type == family).unwrap();
        let endpoint = &slice.endpoints.as_ref().unwrap()[0];
        (endpoint.addresses[0].clone(), endpoint.node_name.clone(), slice.ports.as_ref().unwrap()[0].port)
    };
    assert_eq!(of_family("IPv4"), ("10.1.0.5".into(), Some("a".into()), Some(8080)));
    assert_eq!(of_family("IPv6"), ("fd00:1::5".into(), Some("a".into()), Some(8080)));

    publish(&path, &record("a", "10.1.0.0/24", "192.0.2.1"), &[]).unwrap();
    let snapshot = bench.scan();
    assert!(snapshot.pods[&key("default", "web-1")].status.is_none(), "the manifest stays, the address goes");
    assert!(snapshot.slices.is_empty());
}

#[test]
fn publishing_the_same_again_writes_nothing() {
    let bench = Bench::new();
    let (node, attachments) =
        (record("a", "10.1.0.0/24", "192.0.2.1"), [Attachment::sample(1, Some(("x", "y")), &[]).into()]);
    publish(bench.dir.path(), &node, &attachments).unwrap();
    let file = bench.dir.path().join(".weft/a/pods.yaml");
    let stamp = fs::metadata(&file).unwrap().modified().unwrap();
    publish(bench.dir.path(), &node, &attachments).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), stamp);
    let error = publish(bench.dir.path(), &record("../x", "10.1.0.0/24", "192.0.2.1"), &[]).unwrap_err();
    assert!(error.to_string().contains("the node's name"), "{error}");
}

#[test]
fn the_first_interface_of_a_pod_comes_first() {
    let mut bench = Bench::new();
    let mut second = Attachment::sample(1, Some(("x", "y")), &["10.9.0.1/32"]);
    second.spec.id.ifname = "net1".into();
    let first = Attachment::sample(1, Some(("x", "y")), &["10.1.0.1/32"]);
    publish(bench.dir.path(), &record("a", "10.1.0.0/24", "192.0.2.1"), &[second.into(), first.into()]).unwrap();
    let snapshot = bench.scan();
    let ips = snapshot.pods[&key("x", "y")].status.as_ref().unwrap().pod_ips.clone().unwrap();
    assert_eq!(ips.iter().map(|ip| ip.ip.as_str()).collect::<Vec<_>>(), ["10.1.0.1", "10.9.0.1"]);
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_good_objects() {
    let mut bench = Bench::new();
    bench.write("web.yaml", SERVICE);
    bench.write("pod.yaml", POD);
    assert_eq!(bench.scan().services.len(), 1);

    bench.write("web.yaml", "# comment\napiVersion: v1\nkind: Service\nmetadata: {name: [web}\n");
    let snapshot = bench.scan();
    assert_eq!((snapshot.services.len(), snapshot.pods.len()), (1, 1));
    assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
    assert!(snapshot.problems[0].starts_with("web.yaml:4: "), "{:?}", snapshot.problems);
    assert!(snapshot.problems[0].ends_with("the last good form of its objects stays"), "{:?}", snapshot.problems);

    bench.write("web.yaml", &SERVICE.replace("port: 80,", "port: 81,"));
    let snapshot = bench.scan();
    assert!(snapshot.problems.is_empty());
    assert_eq!(snapshot.services[&key("default", "web")].spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port, 81);

    fs::remove_file(bench.dir.path().join("web.yaml")).unwrap();
    let snapshot = bench.scan();
    assert_eq!((snapshot.services.len(), snapshot.slices.len(), snapshot.pods.len()), (0, 0, 1));
}

#[test]
fn a_refused_object_keeps_its_last_good_form_and_the_others_go_on() {
    let mut bench = Bench::new();
    bench.write("all.yaml", &format!("{POD}---\n{SERVICE}"));
    bench.scan();
    bench
        .write("all.yaml", &format!("{}---\n{}", POD.replace("app: web", "app: db"), SERVICE.replace("80,", "70000,")));
    let snapshot = bench.scan();
    let expected = "all.yaml:17: Service default/web: spec.ports[0].port: 70000 is not between 1 and 65535; its last good \
                    form stays";
    assert_eq!(snapshot.problems, [expected]);
    assert_eq!(snapshot.pods[&key("default", "web-1")].metadata.labels.as_ref().unwrap()["app"], "db");
    assert_eq!(snapshot.services[&key("default", "web")].spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port, 80);
}

#[test]
fn two_files_with_the_same_object() {
    let mut bench = Bench::new();
    bench.write("a.yaml", SERVICE);
    bench.write("b/again.yaml", &SERVICE.replace("80,", "81,"));
    let snapshot = bench.scan();
    assert_eq!(
        snapshot.problems,
        ["b/again.yaml: Service default/web is in a.yaml already, which counts; remove one of them"]
    );
    assert_eq!(snapshot.services[&key("default", "web")].spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port, 80);
}

#[test]
fn namespaces_exist_by_use_and_are_labelled_with_their_names() {
    let mut bench = Bench::new();
    bench.write("ns.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: blue, labels: {colour: blue}}}");
    bench.write("pod.yaml", POD);
    let snapshot = bench.scan();
    let labels = |name: &str| snapshot.namespaces[&key("", name)].metadata.labels.clone().unwrap();
    assert_eq!(labels("default")["kubernetes.io/metadata.name"], "default");
    assert_eq!((labels("blue")["colour"].as_str(), labels("blue").len()), ("blue", 2));
}

#[test]
fn named_target_ports_differ_by_pod() {
    let mut bench = Bench::new();
    bench.write("web.yaml", SERVICE);
    for (name, port, ip) in [("one", 8080, "10.1.0.1"), ("two", 9090, "10.1.0.2"), ("three", 8080, "10.1.0.3")] {
        let pod = POD.replace("web-1", name).replace("8080", &port.to_string());
        bench.write(&format!("{name}.yaml"), &format!("{pod}status: {{podIPs: [{{ip: {ip}}}]}}\n"));
    }
    let snapshot = bench.scan();
    let mut found: Vec<(i32, usize)> = snapshot
        .slices
        .values()
        .map(|slice| (slice.ports.as_ref().unwrap()[0].port.unwrap(), slice.endpoints.as_ref().unwrap().len()))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(8080, 2), (9090, 1)], "{:?}", snapshot.problems);
}

#[test]
fn slices_of_a_service_without_selector_are_read() {
    let mut bench = Bench::new();
    bench.write("web.yaml", &SERVICE.replace("  selector: {app: web}\n", ""));
    bench.write(
        "slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\n\
         addressType: IPv4\nports: [{port: 1}]\nendpoints: [{addresses: [203.0.113.1]}]\n",
    );
    let snapshot = bench.scan();
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    assert_eq!(snapshot.slices.keys().collect::<Vec<_>>(), [&key("default", "s")]);
}

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: {}
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports:
    - {port: 80, endPort: 90}
";

#[rstest]
#[case::unknown_field(SERVICE, "selector:", "selectr:", "6: Service default/web: spec.selectr: unknown field")]
#[case::unknown_field_deep(
    SERVICE,
    "targetPort:",
    "targetport:",
    "8: Service default/web: spec.ports[0].targetport: unknown field"
)]
#[case::wrong_type(SERVICE, "port: 80", "port: eighty", "8: Service default/web: spec.ports")]
#[case::duplicate_key(SERVICE, "  ports:\n", "  selector: {}\n  ports:\n", "5: spec: duplicate entry")]
#[case::port(
    SERVICE,
    "port: 80",
    "port: 0",
    "8: Service default/web: spec.ports[0].port: 0 is not between 1 and 65535"
)]
#[case::protocol(
    SERVICE,
    "port: 80",
    "protocol: ICMP, port: 80",
    "8: Service default/web: spec.ports[0].protocol: 'ICMP' is not"
)]
#[case::port_twice(
    SERVICE,
    "  - {port: 80,",
    "  - {port: 80, name: a}\n  - {port: 80, name: b,",
    "9: Service default/web: spec.ports[1].port: 80 stands twice"
)]
#[case::port_unnamed(
    SERVICE,
    "  - {port: 80,",
    "  - {port: 81}\n  - {port: 80, name: b,",
    "8: Service default/web: spec.ports[0].name: required"
)]
#[case::no_vip(
    SERVICE,
    "  clusterIPs: [10.96.0.10, 'fd00:96::10']\n",
    "",
    "4: Service default/web: spec.clusterIPs: required"
)]
#[case::vip(
    SERVICE,
    "10.96.0.10",
    "10.96.0.010",
    "5: Service default/web: spec.clusterIPs[0]: '10.96.0.010' is not an IP address"
)]
#[case::vip_family(
    SERVICE,
    "'fd00:96::10'",
    "10.96.0.11",
    "5: Service default/web: spec.clusterIPs[1]: a second address of the same family"
)]
#[case::service_name(
    SERVICE,
    "name: web",
    "name: Web",
    "3: Service default/Web: metadata.name: 'Web' is not a DNS name"
)]
#[case::label(POD, "app: web", "app: 'we b'", "3: Pod default/web-1: metadata.labels: 'we b' of 'app'")]
#[case::port_name(
    POD,
    "name: http",
    "name: HTTP",
    "8: Pod default/web-1: spec.containers[0].ports[0].name: 'HTTP' is not a port name"
)]
#[case::kind(POD, "kind: Pod", "kind: Deployment", "2: kind: Deployment of v1 is not read from a folder")]
#[case::no_version(POD, "apiVersion: v1", "", "2: apiVersion: missing")]
#[case::except_outside(
    POLICY,
    "10.1.0.0/16",
    "11.1.0.0/16",
    "8: NetworkPolicy x/p: spec.ingress[0].from[0].ipBlock.except: 11.1.0.0/16 is not strictly inside 10.0.0.0/8"
)]
#[case::except_equal(
    POLICY,
    "10.1.0.0/16",
    "10.0.0.0/8",
    "8: NetworkPolicy x/p: spec.ingress[0].from[0].ipBlock.except: 10.0.0.0/8 is not strictly inside"
)]
#[case::host_bits(
    POLICY,
    "10.0.0.0/8",
    "10.0.0.1/8",
    "8: NetworkPolicy x/p: spec.ingress[0].from[0].ipBlock: '10.0.0.1/8' has host bits; did you mean 10.0.0.0/8?"
)]
#[case::mapped(
    POLICY,
    "cidr: 10.0.0.0/8",
    "cidr: '::ffff:10.0.0.0/104'",
    "8: NetworkPolicy x/p: spec.ingress[0].from[0].ipBlock.cidr: '::ffff:10.0.0.0/104' is an IPv4 prefix in IPv6 form"
)]
#[case::end_port(
    POLICY,
    "endPort: 90",
    "endPort: 79",
    "10: NetworkPolicy x/p: spec.ingress[0].ports[0].endPort: 79 is less than port 80"
)]
#[case::end_port_of_name(
    POLICY,
    "port: 80",
    "port: http",
    "10: NetworkPolicy x/p: spec.ingress[0].ports[0].endPort: needs a numeric port"
)]
#[case::no_peer(
    POLICY,
    "- ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}",
    "- {}",
    "8: NetworkPolicy x/p: spec.ingress[0].from[0].podSelector: missing"
)]
#[case::block_and_selector(
    POLICY,
    "- ipBlock:",
    "- podSelector: {}\n      ipBlock:",
    "9: NetworkPolicy x/p: spec.ingress[0].from[0].ipBlock: may not stand beside"
)]
#[case::types(
    POLICY,
    "  ingress:",
    "  policyTypes: [ingress]\n  ingress:",
    "6: NetworkPolicy x/p: spec.policyTypes: 'ingress' is not Ingress or Egress"
)]
#[case::operator(
    POLICY,
    "podSelector: {}",
    "podSelector: {matchExpressions: [{key: a, operator: Gt}]}",
    "5: NetworkPolicy x/p: spec.podSelector.matchExpressions 'a': operator 'Gt'"
)]
#[case::no_cidrs(
    SERVICE_CIDR,
    "  cidrs: [10.96.0.0/16, 'fd00:96::/112']\n",
    "  cidrs: []\n",
    "5: ServiceCIDR more: spec.cidrs: required"
)]
#[case::cidr(
    SERVICE_CIDR,
    "10.96.0.0/16",
    "10.96.0.0",
    "5: ServiceCIDR more: spec.cidrs[0]: '10.96.0.0' is not a prefix"
)]
#[case::cidr_host_bits(
    SERVICE_CIDR,
    "10.96.0.0/16",
    "10.96.0.1/16",
    "5: ServiceCIDR more: spec.cidrs[0]: '10.96.0.1/16' has host bits"
)]
#[case::cidr_family(
    SERVICE_CIDR,
    "'fd00:96::/112'",
    "10.97.0.0/16",
    "5: ServiceCIDR more: spec.cidrs[1]: a second prefix of the same family"
)]
#[case::namespace(
    POLICY,
    "namespace: x",
    "namespace: x.y",
    "3: NetworkPolicy x.y/p: metadata.namespace: 'x.y' is not a DNS label"
)]
fn refused(#[case] good: &str, #[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    assert!(good.contains(from));
    let manifest = manifest::read("f.yaml", good);
    assert_eq!(
        (manifest.objects.len(), manifest.refused.len(), &manifest.broken),
        (1, 0, &None),
        "{:?}",
        manifest.refused
    );
    let manifest = manifest::read("f.yaml", &good.replacen(from, to, 1));
    let problem = manifest.broken.or_else(|| manifest.refused.first().map(|(_, why)| why.clone())).unwrap();
    assert!(problem.starts_with(&format!("f.yaml:{expected}")), "\n  {problem}\n  f.yaml:{expected}");
    assert!(manifest.objects.is_empty());
}

#[test]
fn lines_count_from_the_beginning_of_the_file() {
    let text = format!(
        "# a file\n---\n{POD}---\n\n# nothing here\n--- # and here\n{}",
        SERVICE.replace("port: 80", "port: x")
    );
    let manifest = manifest::read("f.yaml", &text);
    assert_eq!(manifest.objects.len(), 1);
    let line = text.lines().position(|line| line.contains("port: x")).unwrap() + 1;
    assert!(manifest.refused[0].1.starts_with(&format!("f.yaml:{line}: ")), "{:?} {line}", manifest.refused);
}

async fn wait_for(reader: &mut Reader, what: impl Fn(&Snapshot) -> bool) -> Snapshot {
    tokio::time::timeout(Duration::from_secs(20), reader.wait_for(what)).await.unwrap()
}

fn folder_source(path: &Path) -> Source {
    Source::Dir(path.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_follows_the_folder_through_its_absence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    let mut receiver = Reader::new(start(folder_source(&path), "a"));
    let snapshot = wait_for(&mut receiver, |snapshot| snapshot.error.is_some()).await;
    assert!(!snapshot.synced, "nothing was read yet");
    assert!(snapshot.error.as_ref().unwrap().contains("cannot list"), "{:?}", snapshot.error);

    fs::create_dir(&path).unwrap();
    fs::write(path.join("web.yaml"), SERVICE).unwrap();
    let snapshot = wait_for(&mut receiver, |snapshot| snapshot.services.len() == 1).await;
    assert_eq!((snapshot.synced, &snapshot.error), (true, &None));

    fs::rename(&path, dir.path().join("away")).unwrap();
    let snapshot = wait_for(&mut receiver, |snapshot| snapshot.error.is_some()).await;
    assert_eq!((snapshot.services.len(), snapshot.synced), (1, true), "the last good state stays");

    fs::rename(dir.path().join("away"), &path).unwrap();
    wait_for(&mut receiver, |snapshot| snapshot.error.is_none()).await;

    // The same length and, on a coarse clock, the same time: seen all the same.
    fs::write(path.join("web.yaml"), SERVICE.replace("80,", "81,")).unwrap();
    wait_for(&mut receiver, |snapshot| {
        snapshot.services.values().any(|service| service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port == 81)
    })
    .await;
}

#[test]
fn addresses_parse() {
    assert_eq!(crate::model::address::parse_ip("10.0.0.1"), Some(IpAddr::from([10, 0, 0, 1])));
    assert_eq!(crate::model::address::parse_ip("::ffff:10.0.0.1"), None);
}
