// SPDX-License-Identifier: Apache-2.0
use std::{fs, path::Path, time::Duration};

use weft_api::{PortKind, PortLink};

use super::{
    Board, Cgroups, DeviceSpec, DeviceState, DeviceStatus, Devices, check_folder, socket_path, supervise::Pauses,
};
use crate::model::Attachment;

fn attachment(folder: &Path, port: PortKind) -> Attachment {
    let mut attachment = Attachment::sample(1, None, &[]);
    (attachment.spec.port, attachment.spec.queues, attachment.spec.owner) = (port, 2, Some(107));
    let socket = socket_path(folder, "weft1").display().to_string();
    attachment.allocation.socket_path = (port == PortKind::VhostUser).then_some(socket);
    attachment.link = Some(PortLink { ifindex: 7, ifname: "weft1".into() });
    attachment
}

#[test]
fn a_device_is_told_everything_about_its_port() {
    let spec = DeviceSpec::of(&attachment(Path::new("/run/weft/vhost"), PortKind::VhostUser)).unwrap();
    let expected = [
        "--socket=/run/weft/vhost/weft1/vhost.sock",
        "--control=/run/weft/vhost/weft1/control.sock",
        "--tap=weft1",
        "--queues=2",
        "--mac=02:00:00:00:00:01",
        "--user=1879048199:1879048199",
        "--mtu=1450",
        "--socket-owner=107:0",
    ];
    assert_eq!(spec.arguments(), expected);
}

#[test]
fn only_attached_vhost_user_ports_have_a_device() {
    let vhost = attachment(Path::new("/r"), PortKind::VhostUser);
    assert!(DeviceSpec::of(&Attachment { link: None, ..vhost }).is_none());
    assert!(DeviceSpec::of(&attachment(Path::new("/r"), PortKind::Tap)).is_none());
}

#[test]
fn a_folder_too_long_for_sockets_is_refused_with_its_limit() {
    let folder = |length: usize| format!("/{}", "x".repeat(length - 1));
    let tap = "weft0123456789";
    check_folder(Path::new(&folder(79)), tap).unwrap();
    let error = check_folder(Path::new(&folder(80)), tap).unwrap_err();
    assert!(error.contains("at most 79 bytes") && error.contains("runDir"), "{error}");
}

/// Their devices do not answer: nobody listens.
#[tokio::test]
async fn devices_are_told_from_any_place_on_and_by_name() {
    let (dir, board) = (tempfile::tempdir().unwrap(), Board::default());
    let pods = [Some(("a", "vm")), Some(("b", "vm")), None];
    for (number, pod) in (1..).zip(pods) {
        let mut attachment = Attachment { link: None, ..attachment(dir.path(), PortKind::VhostUser) };
        attachment.spec = Attachment::sample(number, pod, &[]).spec;
        attachment.link = Some(PortLink { ifindex: number.into(), ifname: format!("weft{number}") });
        let status = DeviceStatus::new(DeviceSpec::of(&attachment).unwrap());
        board.put(tokio::sync::watch::channel(status).1);
    }
    let told = async |after: Option<&weft_api::AttachmentId>, name, most| {
        let (reports, more) = board.reports_after(after, name, most).await;
        (reports.into_iter().map(|report| report.ifname).collect::<Vec<_>>().join(" "), more)
    };
    let first = Attachment::sample(1, None, &[]).spec.id;
    assert_eq!(told(None, None, 2).await, ("weft1 weft2".into(), true));
    assert_eq!(told(None, None, 3).await, ("weft1 weft2 weft3".into(), false));
    assert_eq!(told(Some(&first), None, 2).await, ("weft2 weft3".into(), false));
    assert_eq!(told(None, Some("vm"), 1).await, ("weft1".into(), true));
    assert_eq!(told(None, Some("b/vm"), 2).await, ("weft2".into(), false));
    assert_eq!(told(None, Some("weft3"), 2).await, ("weft3".into(), false));
    assert_eq!(told(None, Some("weft/c3/eth0"), 2).await, ("weft3".into(), false));
    assert_eq!(told(None, Some("weft"), 2).await, (String::new(), false));
}

#[test]
fn pauses_grow_are_bounded_and_forgotten() {
    let mut pauses = Pauses::default();
    let short = Duration::from_secs(1);
    let first: Vec<u128> = (0..4).map(|_| pauses.after(short).as_millis()).collect();
    assert_eq!(first, [0, 100, 200, 400]);
    let last = (0..100).map(|_| pauses.after(short)).last().unwrap();
    assert_eq!(last, Duration::from_secs(30));
    assert_eq!(pauses.after(Duration::from_secs(60)), Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_start_fails_its_add_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let board = Board::default();
    let mut devices = Devices::new("/nonexistent/weft-vhost".into(), dir.path().into(), Cgroups::none(), board.clone());
    let attachment = attachment(dir.path(), PortKind::VhostUser);
    devices.start(&attachment).unwrap();
    let error = devices.ready(&attachment.spec.id).unwrap().await.unwrap_err();
    assert!(error.message.contains("/nonexistent/weft-vhost") && error.message.contains("weft1"), "{error}");
    let status = board.get(&attachment.spec.id).unwrap();
    assert!(matches!(status.state, DeviceState::Restarting(_)) && status.pid.is_none(), "{status:?}");
    let reports = board.reports().await;
    assert!(reports.len() == 1 && reports[0].state.starts_with("device restarting: ") && reports[0].metrics.is_none());

    devices.stopped(&attachment.spec.id).await;
    assert!(board.get(&attachment.spec.id).is_none() && devices.ready(&attachment.spec.id).is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "its files are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_ends_is_told_with_its_status_and_last_word() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("device");
    fs::write(&binary, "#!/bin/sh\necho no tap >&2\nexit 3\n").unwrap();
    fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let folder = dir.path().join("vhost");
    let mut devices = Devices::new(binary, folder.clone(), Cgroups::none(), Board::default());
    let attachment = attachment(&folder, PortKind::VhostUser);
    devices.start(&attachment).unwrap();
    let error = devices.ready(&attachment.spec.id).unwrap().await.unwrap_err();
    assert!(error.message.contains("device restarting: exit status 3: no tap"), "{error}");
    devices.stopped(&attachment.spec.id).await;
}
