// SPDX-License-Identifier: Apache-2.0
//! The guest room against real clients: busybox's `udhcpc`, the kernel's IPv6 stack and a DHCPv6 client on a real UDP socket,
//! in a network namespace that stands for the guest (needs root, busybox and util-linux).

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod support;

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use weft_agent::{
    device::links,
    guest::{self, GuestHandle, GuestPort, LINK_LOCAL_GATEWAY},
};
use weft_api::{AssignedAddress, DnsSettings, Mac};

use crate::support::{ip, on_a_node};

const GUEST_MAC: &str = "02:00:00:00:00:05";
const GATEWAY_MAC: &str = "02:77:65:66:74:01";
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace with one device, `eth0`, whose other end is `tap0` on this side.
struct Guest {
    holder: Process,
}

impl Guest {
    fn boot() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        let guest = Self { holder: Process(holder) };
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("the guest's namespace", || fs::read_link(guest.namespace()).is_ok_and(|theirs| theirs != own));
        ip("link add tap0 type veth peer name eth0");
        ip("link set tap0 up");
        ip(&format!("link set eth0 address {GUEST_MAC} netns {}", guest.pid()));
        guest
    }

    fn pid(&self) -> u32 {
        self.holder.0.id()
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Runs a command of the guest and gives its output.
    fn run(&self, command: &str) -> String {
        let pid = self.pid().to_string();
        let output = Command::new("nsenter").args(["-t", &pid, "-n"]).args(command.split(' ')).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command}: {text}{errors}");
        text
    }
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn serve() -> GuestHandle {
    let tap = links::prepare_port("tap0").await.unwrap();
    let port = GuestPort {
        ifindex: tap.index,
        mac: GUEST_MAC.parse::<Mac>().unwrap(),
        addresses: vec![
            AssignedAddress { address: "10.1.1.5/24".parse().unwrap(), gateway: "10.1.1.1".parse().unwrap() },
            AssignedAddress { address: "fd00:1::5/128".parse().unwrap(), gateway: LINK_LOCAL_GATEWAY.into() },
        ],
        mtu: 1450,
        dns: DnsSettings {
            nameservers: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
            search: vec!["default.svc.cluster.local".to_owned()],
        },
        hostname: Some("vm-a".to_owned()),
    };
    guest::serve(&port, &Arc::default()).unwrap()
}

/// Runs something that blocks while the server goes on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A counter of ICMP messages that the node has sent.
fn icmp_sent(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let index = names.split_whitespace().position(|found| found == name).unwrap();
    values.split_whitespace().nth(index).unwrap().parse().unwrap()
}

/// A script for `udhcpc` that appends its event and environment to a file.
fn write_script(folder: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let (script, log) = (folder.join("script"), folder.join("log"));
    fs::write(&script, format!("#!/bin/sh\n(env; echo event=$1) >> {}\n", log.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script.display().to_string()
}

#[test]
fn udhcpc_gets_everything_it_asks_for() {
    on_a_node(|| async {
        let guest = Guest::boot();
        let server = serve().await;
        blocking(move || {
            let folder = tempfile::tempdir().unwrap();
            let script = write_script(folder.path());
            guest.run("ip link set eth0 up");
            guest.run(&format!(
                "busybox udhcpc -i eth0 -f -n -q -t 10 -T 1 -s {script} -O mtu -O staticroutes -O search -O domain"
            ));
            let log = fs::read_to_string(folder.path().join("log")).unwrap();
            for line in [
                "event=bound",
                "ip=10.1.1.5",
                "mask=24",
                "subnet=255.255.255.0",
                "router=10.1.1.1",
                "serverid=10.1.1.1",
                "dns=10.96.0.10",
                "mtu=1450",
                "lease=86400",
                "hostname=vm-a",
                "domain=default.svc.cluster.local",
                "search=default.svc.cluster.local",
                "staticroutes=0.0.0.0/0 10.1.1.1",
            ] {
                assert!(log.lines().any(|found| found.trim_end() == line), "'{line}' is not in\n{log}");
            }
        })
        .await;
        drop(server);
    });
}

#[test]
fn udhcpc_renews_and_asks_for_what_it_may_not_have() {
    on_a_node(|| async {
        let guest = Guest::boot();
        let server = serve().await;
        // The host as it is under Weft: it has the gateway's address, and routes to workloads lead elsewhere.
        ip("link add host0 type veth peer name host1");
        ip("link set host0 up");
        ip("link set host1 up");
        ip("addr add 10.1.1.1/32 dev host0");
        ip("route add 10.1.1.0/24 dev host0");
        blocking(move || {
            let folder = tempfile::tempdir().unwrap();
            let script = write_script(folder.path());
            let log = folder.path().join("log");
            let events = || fs::read_to_string(&log).unwrap_or_default();
            guest.run("ip link set eth0 up");
            // What the client will have; and the gateway, for which the programs would answer.
            guest.run("ip addr add 10.1.1.5/24 dev eth0");
            guest.run(&format!("ip neigh add 10.1.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent"));
            let pid = guest.pid().to_string();
            let arguments =
                ["-t", &pid, "-n", "busybox", "udhcpc", "-i", "eth0", "-f", "-t", "10", "-T", "1", "-s", &script];
            // It asks for another address: what it is offered is its own all the same.
            let client = Command::new("nsenter").args(arguments).args(["-r", "10.1.1.99"]).spawn();
            let client = Process(client.unwrap());
            wait_for("the lease", || events().contains("event=bound"));
            assert!(events().contains("ip=10.1.1.5"));
            // nsenter has become the client: a renewal, by unicast to the server.
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(client.0.id().try_into().unwrap()),
                nix::sys::signal::Signal::SIGUSR1,
            )
            .unwrap();
            wait_for("the renewal", || events().contains("event=renew"));
            assert!(!events().contains("event=nak"));
            assert_eq!(icmp_sent("OutDestUnreachs"), 0, "the host's own stack answers the renewal, too");
        })
        .await;
        drop(server);
    });
}

#[test]
fn the_kernel_takes_route_and_mtu_from_the_advertisement() {
    on_a_node(|| async {
        let guest = Guest::boot();
        let server = serve().await;
        blocking(move || {
            guest.run("ip link set eth0 up");
            wait_for("the default route", || {
                guest.run("ip -6 route show default").contains("via fe80::1 dev eth0 proto ra")
            });
            let mtu = guest.run("cat /proc/sys/net/ipv6/conf/eth0/mtu");
            assert_eq!(mtu.trim(), "1450");
            let neighbour = guest.run("ip -6 neigh show fe80::1");
            assert!(neighbour.contains(GATEWAY_MAC) && neighbour.contains("router"), "{neighbour}");
            let addresses = guest.run("ip -6 -o addr show dev eth0 scope global");
            assert_eq!(addresses, "", "no address by autoconfiguration");
        })
        .await;
        drop(server);
    });
}

#[test]
fn a_dhcpv6_client_gets_its_address() {
    on_a_node(|| async {
        let guest = Guest::boot();
        let server = serve().await;
        blocking(move || {
            guest.run("ip link set eth0 up");
            wait_for("a link-local address", || {
                let addresses = guest.run("ip -6 -o addr show dev eth0 scope link");
                !addresses.is_empty() && !addresses.contains("tentative")
            });
            let reply = exchange(&guest, &solicit_rapidly());
            assert_eq!(reply[..4], [7, 9, 9, 9], "a reply to our transaction: {reply:02x?}");
            let address = "fd00:1::5".parse::<Ipv6Addr>().unwrap().octets();
            assert!(reply.windows(16).any(|bytes| bytes == address), "{reply:02x?}");
        })
        .await;
        drop(server);
    });
}

/// SOLICIT with client identifier, IA_NA and rapid commit (RFC 8415, sections 21.2, 21.4 and 21.14).
fn solicit_rapidly() -> Vec<u8> {
    let mut message = vec![1, 9, 9, 9];
    message.extend([0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 5]);
    message.extend([0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([0, 14, 0, 0]);
    message
}

/// Sends from the guest's UDP port 546 to all servers until one answers; the kernel has checked the checksum then.
fn exchange(guest: &Guest, message: &[u8]) -> Vec<u8> {
    let namespace = fs::File::open(guest.namespace()).unwrap();
    let own = fs::File::open("/proc/thread-self/ns/net").unwrap();
    setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    let socket = UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 546, 0, 0)).unwrap();
    setns(&own, CloneFlags::CLONE_NEWNET).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let servers = SocketAddrV6::new("ff02::1:2".parse().unwrap(), 547, 0, index);
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 1500];
    while Instant::now() < deadline {
        socket.send_to(message, servers).unwrap();
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                assert_eq!(from.to_string(), format!("[fe80::1%{index}]:547"));
                return buffer[..len].to_vec();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("receiving: {error}"),
        }
    }
    panic!("no answer");
}

#[test]
fn a_dropped_handle_ends_the_service_and_an_absent_port_is_an_error() {
    on_a_node(|| async {
        let guest = Guest::boot();
        drop(serve().await);
        let tap = links::find("tap0").await.unwrap().unwrap();
        blocking(move || {
            guest.run("ip link set eth0 up");
            let pid = guest.pid().to_string();
            let arguments =
                ["-t", &pid, "-n", "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "2", "-T", "1", "-s"];
            let output = Command::new("nsenter").args(arguments).arg("/bin/true").output().unwrap();
            assert!(!output.status.success(), "somebody answered");
        })
        .await;
        let absent = GuestPort {
            ifindex: tap.index + 1000,
            mac: Mac([2; 6]),
            addresses: Vec::new(),
            mtu: 1450,
            dns: DnsSettings::default(),
            hostname: None,
        };
        assert_eq!(guest::serve(&absent, &Arc::default()).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    });
}
