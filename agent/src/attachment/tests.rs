// SPDX-License-Identifier: Apache-2.0
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use proptest::prelude::*;
use rstest::rstest;
use weft_api::{Allocation, ApiError, AttachmentId, AttachmentSpec, DnsSettings, ErrorCode, PortKind, PortLink};

use super::{Attachments, Settings, pending};
use crate::model::Attachment;

fn open(dir: &Path) -> Attachments {
    let cidrs = ["10.1.0.0/28".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
    let settings = Settings { mtu: 1450, dns: DnsSettings::default(), socket_dir: "/run/weft/vhost".into() };
    Attachments::open(dir, &cidrs, settings).unwrap()
}

fn id(number: u8) -> AttachmentId {
    AttachmentId { network: "weft".into(), container_id: format!("c.{number}"), ifname: "eth0".into() }
}

fn spec(number: u8) -> AttachmentSpec {
    let netns = format!("/run/netns/{number}");
    AttachmentSpec { id: id(number), netns, ..Attachment::sample(number, None, &[]).spec }
}

fn link(number: u8) -> PortLink {
    PortLink { ifindex: 100 + u32::from(number), ifname: format!("weft{number}") }
}

fn given(allocation: &Allocation) -> Vec<IpAddr> {
    allocation.addresses.iter().map(|assigned| assigned.address.addr()).collect()
}

#[test]
fn a_veth_gets_host_prefixes_and_a_tap_the_nodes_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    let veth = attachments.allocate(spec(1)).unwrap();
    let text = |allocation: &Allocation| allocation.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>();
    assert_eq!(text(&veth), ["10.1.0.2/32", "fd00:1::2/128"]);
    let routes: Vec<_> = veth.routes.iter().map(|r| (r.dst.to_string(), r.gateway.map(|g| g.to_string()))).collect();
    let expected =
        [("10.1.0.1/32", None), ("0.0.0.0/0", Some("10.1.0.1")), ("fe80::1/128", None), ("::/0", Some("fe80::1"))];
    assert_eq!(routes, expected.map(|(dst, gateway)| (dst.to_owned(), gateway.map(str::to_owned))));
    let tap = attachments.allocate(AttachmentSpec { port: PortKind::Tap, queues: 2, ..spec(2) }).unwrap();
    assert_eq!(text(&tap), ["10.1.0.3/28", "fd00:1::3/128"]);
    let vhost = attachments.allocate(AttachmentSpec { port: PortKind::VhostUser, ..spec(3) }).unwrap();
    assert_eq!(vhost.socket_path, Some(format!("/run/weft/vhost/{}/vhost.sock", vhost.host_ifname)));
}

#[test]
fn the_same_request_again_gives_the_same_answer_until_it_is_attached() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    let first = attachments.allocate(spec(1)).unwrap();
    assert_eq!(attachments.allocate(spec(1)).unwrap(), first);
    let other = AttachmentSpec { netns: "/run/netns/other".into(), ..spec(1) };
    assert_eq!(attachments.allocate(other).unwrap().mac, first.mac);
    assert_eq!(attachments.pools()[0].used(), 1, "the first reservation was replaced");
    attachments.link(&id(1), Some(link(1))).unwrap();
    let error = attachments.allocate(spec(1)).unwrap_err();
    assert!(error.code == ErrorCode::Exists && error.message.contains("weft1"), "{error:?}");
}

#[rstest]
#[case::elsewhere(AttachmentSpec { addresses: vec!["10.9.0.5".parse().unwrap()], ..spec(2) }, ErrorCode::Invalid, "10.1.0.0/28")]
#[case::gateway(AttachmentSpec { addresses: vec!["10.1.0.1".parse().unwrap()], ..spec(2) }, ErrorCode::Invalid, "10.1.0.2 to 10.1.0.14")]
#[case::taken(AttachmentSpec { addresses: vec!["10.1.0.2".parse().unwrap()], ..spec(2) }, ErrorCode::Exists, "10.1.0.2")]
#[case::twice(AttachmentSpec { addresses: vec!["10.1.0.5".parse().unwrap(), "10.1.0.5".parse().unwrap()], ..spec(2) },
    ErrorCode::Invalid, "twice")]
#[case::many(AttachmentSpec { addresses: (2..11).map(|last| [10, 1, 0, last].into()).collect(), ..spec(2) }, ErrorCode::Invalid, "8 per family")]
#[case::second(AttachmentSpec { addresses: vec!["10.1.0.5".parse().unwrap(), "10.1.0.6".parse().unwrap()], port: PortKind::Tap, ..spec(2) },
    ErrorCode::Invalid, "10.1.0.6")]
#[case::mtu(AttachmentSpec { mtu: Some(1500), ..spec(2) }, ErrorCode::Invalid, "1280 to 1450")]
#[case::queues(AttachmentSpec { queues: 2, ..spec(2) }, ErrorCode::Invalid, "queues 2")]
#[case::vhost_queues(AttachmentSpec { port: PortKind::VhostUser, queues: 17, ..spec(2) }, ErrorCode::Invalid, "1 to 16")]
#[case::mac(AttachmentSpec { mac: Some("01:00:00:00:00:01".parse().unwrap()), ..spec(2) }, ErrorCode::Invalid, "group")]
#[case::id(AttachmentSpec { id: AttachmentId { ifname: "a/b".into(), ..id(2) }, ..spec(2) }, ErrorCode::Invalid, "ifname 'a/b'")]
fn what_cannot_be_served_is_named_and_takes_nothing(
    #[case] spec_: AttachmentSpec,
    #[case] code: ErrorCode,
    #[case] part: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    attachments.allocate(spec(1)).unwrap();
    let error = attachments.allocate(spec_).unwrap_err();
    assert!(error.code == code && error.message.contains(part), "{error:?}");
    assert!(attachments.pools().iter().all(|pool| pool.used() == 1));
    assert_eq!(open(dir.path()).all().count(), 1);
}

#[test]
fn asked_addresses_are_given_and_the_other_family_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let asked = AttachmentSpec { addresses: vec!["10.1.0.9".parse().unwrap()], ..spec(1) };
    let allocation = open(dir.path()).allocate(asked).unwrap();
    assert_eq!(given(&allocation), ["10.1.0.9".parse::<IpAddr>().unwrap(), "fd00:1::2".parse().unwrap()]);
}

#[test]
fn an_exhausted_pool_frees_what_it_took_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    for number in 0..13 {
        attachments.allocate(spec(number)).unwrap();
    }
    let error = attachments.allocate(spec(20)).unwrap_err();
    assert!(error.code == ErrorCode::Exhausted && error.message.contains("13 of 13"), "{error:?}");
    assert_eq!(attachments.pools()[1].used(), 13);
}

#[test]
fn a_veth_has_as_many_addresses_as_were_asked_for_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    let asked =
        |last: [u8; 3]| AttachmentSpec { addresses: last.map(|last| [10, 1, 0, last].into()).into(), ..spec(1) };
    attachments.allocate(spec(9)).unwrap();
    let taken = attachments.allocate(asked([5, 6, 2])).unwrap_err();
    assert!(taken.message.contains("10.1.0.2"), "{taken:?}");
    let allocation = attachments.allocate(asked([5, 6, 7])).unwrap();
    let expected = ["10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00:1::3"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(given(&allocation), expected);
    assert_eq!(allocation.routes.len(), 4, "the same ones as with one address");
    drop(attachments);
    let mut attachments = open(dir.path());
    let other = AttachmentSpec { addresses: vec!["10.1.0.6".parse().unwrap()], ..spec(2) };
    assert_eq!(attachments.allocate(other.clone()).unwrap_err().code, ErrorCode::Exists);
    attachments.remove(&id(1)).unwrap();
    attachments.allocate(other).unwrap();
}

#[test]
fn those_who_ask_for_many_addresses_leave_half_of_them_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    let asked = |number: u8, first: u8| {
        let addresses = (first..first + 4).map(|last| [10, 1, 0, last].into()).collect();
        AttachmentSpec { addresses, ..spec(number) }
    };
    attachments.allocate(asked(1, 2)).unwrap();
    let refused = attachments.allocate(asked(2, 6)).unwrap_err();
    assert!(refused.code == ErrorCode::Exhausted && refused.message.contains("half"), "{refused:?}");
    for number in 3..12 {
        attachments.allocate(spec(number)).unwrap();
    }
    assert_eq!(attachments.pools()[0].used(), 13, "nothing was taken of it, and there was one for everybody");
}

#[test]
fn a_link_is_noted_and_a_removed_record_frees_its_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    attachments.allocate(spec(1)).unwrap();
    attachments.link(&id(1), Some(link(1))).unwrap();
    assert_eq!(open(dir.path()).get(&id(1)).unwrap().link, Some(link(1)));
    assert_eq!(attachments.pools()[0].used(), 1);
    attachments.remove(&id(1)).unwrap();
    attachments.remove(&id(1)).unwrap();
    assert_eq!((attachments.pools()[0].used(), attachments.all().count()), (0, 0));
    assert_eq!(attachments.link(&id(1), None).unwrap_err().code, ErrorCode::Unknown);
}

#[test]
fn garbage_is_of_one_network() {
    let dir = tempfile::tempdir().unwrap();
    let mut attachments = open(dir.path());
    attachments.allocate(spec(1)).unwrap();
    attachments.allocate(spec(2)).unwrap();
    assert_eq!(attachments.garbage("weft", &[id(1)]), [id(2)]);
    assert!(attachments.garbage("other", &[]).is_empty());
}

#[test]
fn a_torn_record_is_named_and_nothing_starts() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).allocate(spec(1)).unwrap();
    let file = dir.path().join("allocations/weft.c%2E1.eth0.json");
    fs::write(&file, b"{\"spec\":").unwrap();
    let settings = Settings { mtu: 1450, dns: DnsSettings::default(), socket_dir: "/".into() };
    let error = Attachments::open(dir.path(), &[], settings).unwrap_err().to_string();
    assert!(error.contains("weft.c%2E1.eth0.json") && error.contains("remove the file"), "{error}");
}

#[test]
fn recorded_releases_are_found_and_finished() {
    let dir = tempfile::tempdir().unwrap();
    assert!(pending::list(dir.path().join("none").as_path()).unwrap().is_empty());
    fs::write(dir.path().join("weft.a.eth0.json"), serde_json::to_vec(&id(1)).unwrap()).unwrap();
    fs::write(dir.path().join(".weft.b.eth0.json.12"), b"half").unwrap();
    fs::write(dir.path().join("broken.json"), b"half").unwrap();
    let found = pending::list(dir.path()).unwrap();
    assert_eq!(found.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), [id(1)]);
    assert!(found[0].stands());
    found[0].finish().unwrap();
    found[0].finish().unwrap();
    assert!(!found[0].stands() && pending::list(dir.path()).unwrap().is_empty());
}

/// Where a power cut hits an operation.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Half of the new file is written, beside its place.
    Half,
    /// Everything is done, but nobody was answered.
    Unanswered,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Allocate(u8, Option<u8>),
    Link(u8),
    Release(u8),
}

fn operation() -> impl Strategy<Value = (Operation, Option<Cut>, bool)> {
    let operation = prop_oneof![
        4 => (0_u8..20, proptest::option::weighted(0.2, 2_u8..15)).prop_map(|(n, asked)| Operation::Allocate(n, asked)),
        2 => (0_u8..20).prop_map(Operation::Link),
        3 => (0_u8..20).prop_map(Operation::Release),
    ];
    let cut = proptest::option::weighted(0.2, prop_oneof![Just(Cut::Half), Just(Cut::Unanswered)]);
    (operation, cut, proptest::bool::weighted(0.1))
}

fn perform(attachments: &mut Attachments, operation: Operation) -> Result<Option<Allocation>, ApiError> {
    match operation {
        Operation::Allocate(number, asked) => {
            let addresses = asked.map(|last| IpAddr::from([10, 1, 0, last])).into_iter().collect();
            attachments.allocate(AttachmentSpec { addresses, ..spec(number) }).map(Some)
        }
        Operation::Link(number) => attachments.link(&id(number), Some(link(number))).map(|_| None),
        Operation::Release(number) => attachments.remove(&id(number)).map(|()| None),
    }
}

fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir.join("allocations")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// What is on disk if the operation that led from `before` to now was cut off after half of its file.
fn cut_half(dir: &Path, before: &BTreeMap<std::path::PathBuf, Vec<u8>>) {
    let after = files(dir);
    for (path, content) in &after {
        if before.get(path) != Some(content) {
            fs::write(path.with_extension("tmp"), &content[..content.len() / 2]).unwrap();
        }
        if !before.contains_key(path) {
            fs::remove_file(path).unwrap();
        }
    }
    before.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_given_twice(operations in proptest::collection::vec(operation(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut attachments = open(dir.path());
        // What workloads were told, and were not told to give back.
        let mut told: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
        for (operation, cut, restart) in operations {
            let before = files(dir.path());
            let answer = perform(&mut attachments, operation);
            if cut.is_none() && let (Operation::Allocate(number, _), Ok(Some(allocation))) = (operation, &answer) {
                told.insert(number, given(allocation));
            }
            if let Operation::Release(number) = operation {
                told.remove(&number);
            }
            if let (Some(Cut::Unanswered), Operation::Allocate(number, _), Ok(_)) = (cut, operation, &answer) {
                // The old answer may have been replaced; nobody knows of the new one.
                told.remove(&number);
            }
            match cut {
                Some(Cut::Half) => cut_half(dir.path(), &before),
                Some(Cut::Unanswered) | None => {}
            }
            if cut.is_some() || restart {
                attachments = open(dir.path());
            }
            let all: Vec<IpAddr> = attachments.all().flat_map(|record| given(&record.allocation)).collect();
            let distinct: BTreeSet<&IpAddr> = all.iter().collect();
            prop_assert_eq!(all.len(), distinct.len(), "an address was given twice: {:?}", all);
            prop_assert_eq!(attachments.pools()[0].used() + attachments.pools()[1].used(), all.len() as u64);
            for (number, addresses) in &told {
                let record = attachments.get(&id(*number));
                prop_assert_eq!(record.map(|record| given(&record.allocation)), Some(addresses.clone()), "{} was forgotten", number);
            }
        }
    }
}
