// SPDX-License-Identifier: Apache-2.0

//! `weft kube-proxy cleanup` on real rules: what kube-proxy wrote goes, and what is others' stands as it stood. The rules are
//! those of a real kube-proxy (`kube_proxy_cleanup/`). Virtual servers of ipvs are not tested here: not every kernel has them.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weft_testbed::{Binaries, Namespace, Outcome, Place, Process, until};

const OTHERS: &str = include_str!("kube_proxy_cleanup/others.rules");
const IPTABLES: &str = include_str!("kube_proxy_cleanup/iptables.rules");
const IP6TABLES: &str = include_str!("kube_proxy_cleanup/ip6tables.rules");
const IPVS: &str = include_str!("kube_proxy_cleanup/ipvs.rules");
const NFTABLES: &str = include_str!("kube_proxy_cleanup/nftables.nft");

/// Rules and sets that are nobody's of Kubernetes.
const OTHERS_MORE: &str = "
nft -f - <<END
table inet theirs {
    set kube-proxy { type ipv4_addr; elements = { 192.0.2.1 }; }
    chain KUBE-SERVICES { type filter hook input priority 5; policy accept; ip saddr @kube-proxy accept; }
}
table bridge kube-proxy { chain theirs { }; }
END
ipset create THEIRS hash:ip
ipset add THEIRS 192.0.2.7
ipset create KUBE-SRC-2VJB64SDSIJUP5T6 hash:ip";

/// As mode ipvs makes them, those that the rules name; the last name is cut where kube-proxy cuts it.
const SETS: &str = "
for set in CLUSTER-IP EXTERNAL-IP EXTERNAL-IP-LOCAL LOAD-BALANCER LOAD-BALANCER-LOCAL LOAD-BALANCER-FW; do
    ipset create KUBE-$set hash:ip,port
done
for set in NODE-PORT-TCP NODE-PORT-LOCAL-TCP HEALTH-CHECK-NODE-PORT; do
    ipset create KUBE-$set bitmap:port range 0-65535
done
ipset add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
ipset create KUBE-LOOP-BACK hash:ip,port,ip
ipset create KUBE-LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net
ipset create KUBE-IPVS-IPS hash:ip
ipset create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6";

/// All that a cleanup could touch, without dates and counters of packets.
const STATE: &str = "
for tool in iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft; do
    echo \"== $tool\"; $tool-save 2>/dev/null | sed -e '/^#/d' -e '/^:/s/ \\[.*//'
done
echo == nft; nft --stateless list ruleset 2>/dev/null
echo == ipset; ipset save
echo == devices; ip -brief link";

/// A node with what is others', in a network namespace of its own.
struct Machine {
    namespace: Namespace,
    weft: String,
}

impl Machine {
    fn new(name: &str) -> Result<Self> {
        let weft = Binaries::command()?.display().to_string();
        let machine = Self { namespace: Namespace::new(name, None, "mount -t tmpfs rules /mnt")?, weft };
        machine.ok("for tool in iptables nft ipset; do command -v $tool >/dev/null || { echo \"$tool is missing: run scripts/setup.sh\"; exit 1; }; done")?;
        for tool in ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"] {
            machine.restore(tool, OTHERS)?;
        }
        machine.ok(&format!("set -e\n{OTHERS_MORE}"))?;
        Ok(machine)
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.namespace.sh(None, script)
    }

    fn ok(&self, script: &str) -> Result<String> {
        self.sh(script)?.ok().with_context(|| format!("run {script}"))
    }

    fn restore(&self, tool: &str, rules: &str) -> Result<()> {
        fs::write(self.namespace.path("/mnt/rules"), rules)?;
        self.ok(&format!("{tool}-restore --noflush /mnt/rules")).map(drop)
    }

    fn cleanup(&self, arguments: &str) -> Result<Outcome> {
        self.sh(&format!("{} kube-proxy cleanup {arguments}", self.weft))
    }

    fn state(&self) -> Result<String> {
        self.ok(STATE)
    }

    /// That a cleanup takes back what has come since `before`, after a dry run that foretells all of it. Gives its lines.
    fn is_cleaned_to(&self, before: &str) -> Result<String> {
        let with_kube_proxy = self.state()?;
        ensure!(with_kube_proxy != before, "there is nothing to clean up");
        let foretold = self.cleanup("--dry-run")?.ok()?;
        assert_eq!(self.state()?, with_kube_proxy, "a dry run has changed something");
        let removed = self.cleanup("")?.ok()?;
        assert_eq!(self.state()?, before);
        assert_eq!(foretold.replace("would remove ", "removed "), removed);
        assert_eq!(self.cleanup("")?.ok()?, "nothing of kube-proxy is here\n");
        assert_eq!(self.cleanup("-o json")?.ok()?, "");
        assert_eq!(self.state()?, before);
        Ok(removed)
    }
}

#[test]
fn chains_and_jumps_of_iptables_go_from_both_backends() -> Result<()> {
    let machine = Machine::new("iptables")?;
    let before = machine.state()?;
    for backends in [vec!["legacy"], vec!["nft"], vec!["legacy", "nft"]] {
        for backend in &backends {
            machine.restore(&format!("iptables-{backend}"), IPTABLES)?;
            machine.restore(&format!("ip6tables-{backend}"), IP6TABLES)?;
        }
        let removed = machine.is_cleaned_to(&before)?;
        for backend in &backends {
            for line in [
                format!(
                    "removed rule of nat (IPv4, iptables-{backend}): PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n"
                ),
                format!("removed chain KUBE-PROXY-CANARY of mangle (IPv6, ip6tables-{backend})\n"),
                format!("removed chain KUBE-SEP-C7LVQD3F5C2KNROV of nat (IPv4, iptables-{backend})\n"),
            ] {
                assert!(removed.contains(&line), "{line} is missing: {removed}");
            }
        }
        // Every chain of the two files, and every rule of a built-in chain.
        let chains = [IPTABLES, IP6TABLES].concat();
        let count = |starts: &[&str]| chains.lines().filter(|line| starts.iter().any(|s| line.starts_with(s))).count();
        let things = count(&[":", "-A INPUT", "-A FORWARD", "-A OUTPUT", "-A PREROUTING", "-A POSTROUTING"]);
        assert_eq!(removed.lines().count(), things * backends.len());
    }
    Ok(())
}

#[test]
fn tables_of_nftables_go() -> Result<()> {
    let machine = Machine::new("nftables")?;
    let before = machine.state()?;
    fs::write(machine.namespace.path("/mnt/rules"), NFTABLES)?;
    machine.ok("nft -f /mnt/rules")?;
    let removed = machine.is_cleaned_to(&before)?;
    assert_eq!(removed, "removed nftables table ip kube-proxy\nremoved nftables table ip6 kube-proxy\n");
    Ok(())
}

/// The kernel may have no dummy devices; the name is what counts.
#[test]
fn sets_and_the_device_of_ipvs_go_after_the_rules_that_name_them() -> Result<()> {
    let machine = Machine::new("ipvs")?;
    let before = machine.state()?;
    for backend in ["legacy", "nft"] {
        machine
            .ok(&format!("set -e\n{SETS}\nip link add kube-ipvs0 type dummy || ip link add kube-ipvs0 type bridge"))?;
        machine.ok("ip address add 10.96.0.10/32 dev kube-ipvs0")?;
        machine.restore(&format!("iptables-{backend}"), IPVS)?;
        let removed = machine.is_cleaned_to(&before)?;
        let (rules, rest) = removed.split_once("removed device kube-ipvs0\n").context("the device stays")?;
        assert!(
            !rules.contains("ipset") && rest.lines().all(|line| line.starts_with("removed ipset KUBE-")),
            "{removed}"
        );
        assert!(rest.contains("removed ipset KUBE-6-LOAD-BALANCER-SOURCE-CID\n"), "{removed}");
    }
    Ok(())
}

#[test]
fn one_failure_keeps_nothing_else_and_all_failures_are_named() -> Result<()> {
    let machine = Machine::new("failures")?;
    machine.ok("set -e
        nft add table ip6 kube-proxy
        ipset create KUBE-CLUSTER-IP hash:ip,port
        iptables-nft -A ADMIN -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
        iptables-nft -t nat -N KUBE-MARK-MASQ
        iptables-nft -t nat -N KUBE-SERVICES
        iptables-nft -t nat -A CNI-HOSTPORT-DNAT -j KUBE-MARK-MASQ
        iptables-nft -t mangle -N KUBE-PROXY-CANARY
        nft add rule ip mangle FORWARD numgen random mod 2 0 accept")?;
    let before = machine.state()?;
    let outcome = machine.cleanup("")?;
    assert_eq!(outcome.status, 1, "{}", outcome.output);
    for line in [
        "failed to remove chain KUBE-MARK-MASQ of nat (IPv4, iptables-nft): a rule leads to it that stays: CNI-HOSTPORT-DNAT -j KUBE-MARK-MASQ\n",
        "removed chain KUBE-SERVICES of nat (IPv4, iptables-nft)\n",
        "failed to remove ipset KUBE-CLUSTER-IP: a rule of somebody uses it\n",
        "removed nftables table ip6 kube-proxy\n",
        "failed to remove chains in mangle (IPv4, iptables-nft): the tool does not show them: look at the table with nft\n",
        "weft: this of kube-proxy's stays: chains in mangle (IPv4, iptables-nft); chain KUBE-MARK-MASQ of nat (IPv4, iptables-nft); ipset KUBE-CLUSTER-IP\n",
    ] {
        assert!(outcome.output.contains(line), "{line} is missing: {}", outcome.output);
    }
    // Once as a chain of iptables and once as nftables shows it.
    assert_eq!(before.matches("KUBE-SERVICES").count() - 2, machine.state()?.matches("KUBE-SERVICES").count());
    machine.ok("iptables-nft -t nat -D CNI-HOSTPORT-DNAT -j KUBE-MARK-MASQ; iptables-nft -D ADMIN 3; nft flush chain ip mangle FORWARD")?;
    let removed = machine.cleanup("-o json")?.ok()?;
    let expected = r#"{"state":"removed","what":"chain KUBE-PROXY-CANARY of mangle (IPv4, iptables-nft)"}
{"state":"removed","what":"chain KUBE-MARK-MASQ of nat (IPv4, iptables-nft)"}
{"state":"removed","what":"ipset KUBE-CLUSTER-IP"}
"#;
    assert_eq!(removed, expected);
    Ok(())
}

#[test]
fn a_missing_tool_is_an_error_where_kube_proxy_may_have_something() -> Result<()> {
    let machine = Namespace::new("tools", None, "")?;
    let weft = Binaries::command()?.display().to_string();
    let without = format!("PATH=/nonexistent {weft} kube-proxy cleanup");
    let run = |script: &str| machine.sh(None, script);
    assert_eq!(run(&without)?.ok()?, "nothing of kube-proxy is here\n");
    // Chains of nftables are seen without a tool: those of others are no reason to ask for one.
    run("iptables-nft -N THEIRS")?.ok()?;
    assert_eq!(run(&without)?.ok()?, "nothing of kube-proxy is here\n");
    run("nft add table ip kube-proxy; ip6tables-nft -N KUBE-FORWARD; iptables-legacy -t nat -N THEIRS")?.ok()?;
    let outcome = run(&without)?;
    assert_eq!(outcome.status, 1, "{}", outcome.output);
    for line in [
        "removed nftables table ip kube-proxy\n",
        "failed to remove chains in filter (IPv6, ip6tables-nft): ip6tables-nft-save is not in PATH: install the package iptables\n",
        "failed to remove chains that may be in nat (IPv4, iptables-legacy): iptables-legacy-save is not in PATH: install the package iptables\n",
    ] {
        assert!(outcome.output.contains(line), "{line} is missing: {}", outcome.output);
    }
    assert_eq!(
        run(&format!("{weft} kube-proxy cleanup"))?.ok()?,
        "removed chain KUBE-FORWARD of filter (IPv6, ip6tables-nft)\n"
    );
    Ok(())
}

#[test]
fn a_kube_proxy_that_runs_here_is_a_reason_to_refuse() -> Result<()> {
    let machine = Machine::new("running")?;
    machine.ok("nft add table ip kube-proxy; cp /bin/sleep /mnt/kube-proxy; ip netns add other")?;
    let elsewhere = machine.namespace.start("another namespace's", |command| {
        command.args(["ip", "netns", "exec", "other", "/mnt/kube-proxy", "600"]);
    })?;
    runs(&elsewhere)?;
    assert_eq!(machine.cleanup("")?.ok()?, "removed nftables table ip kube-proxy\n");

    machine.ok("nft add table ip kube-proxy")?;
    let here = machine.namespace.start("kube-proxy", |command| {
        command.args(["/mnt/kube-proxy", "600"]);
    })?;
    runs(&here)?;
    let refused = machine.cleanup("")?;
    assert_eq!(refused.status, 1);
    let why = "is a kube-proxy of this network namespace and writes its rules again";
    assert!(refused.output.contains(why) && refused.output.contains("--force"), "{}", refused.output);
    assert!(machine.ok("nft list tables")?.contains("table ip kube-proxy"));
    for (arguments, line) in [("--dry-run", "would remove nftables"), ("--force", "removed nftables")] {
        let told = machine.cleanup(arguments)?.ok()?;
        assert!(told.contains(why) && told.contains(line), "{told}");
    }
    drop(here);
    assert_eq!(machine.cleanup("")?.ok()?, "nothing of kube-proxy is here\n");
    Ok(())
}

/// That it is what it will be: until then it is the program that starts it.
fn runs(process: &Process) -> Result<()> {
    let name = format!("/proc/{}/comm", process.pid());
    until("kube-proxy runs", Duration::from_secs(10), || fs::read_to_string(&name).is_ok_and(|n| n == "kube-proxy\n"))
}

/// A client and the two endpoints of `default/node-ipv4` in network namespaces of their own, and a node that routes between
/// them and has kubelet's rule.
const PODS: &str = "set -e
sysctl -qw net.ipv4.ip_forward=1
iptables-nft -N KUBE-FIREWALL
iptables-nft -A INPUT -j KUBE-FIREWALL
iptables-nft -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
for pod in client:9 backend:2; do
    name=${pod%:*}; address=10.244.1.${pod#*:}
    ip netns add $name
    ip link add $name type veth peer name eth0 netns $name
    ip link set $name up
    ip address add 10.244.1.1/32 dev $name
    ip route add $address dev $name
    ip -n $name link set eth0 up
    ip -n $name address add $address/32 dev eth0
    ip -n $name route add 10.244.1.1 dev eth0
    ip -n $name route add default via 10.244.1.1
done
ip route add 10.244.1.3 dev backend
ip -n backend address add 10.244.1.3/32 dev eth0";
const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 11], 80);
const TARGET: ([u8; 4], u16) = ([0; 4], 8080);

struct Pod(PathBuf);

impl Place for Pod {
    fn net(&self) -> PathBuf {
        self.0.clone()
    }
}

/// The kernel translates packets of a connection as long as somebody in the network namespace uses conntrack, and has a chain
/// of the type `nat`. iptables' own stay; the ones of nftables' mode go with their table.
#[test]
fn connections_go_on_where_others_keep_conntrack_and_nat_at_work() -> Result<()> {
    let others = "nft add table ip theirs; nft 'add chain ip theirs nat { type nat hook postrouting priority 100; }'";
    for (case, rules, load, more, goes_on) in [
        ("iptables-nft", IPTABLES, "iptables-nft-restore --noflush", "true", true),
        ("iptables-legacy", IPTABLES, "iptables-legacy-restore --noflush", "true", true),
        ("nftables", NFTABLES, "nft -f", "true", false),
        ("nftables-and-others", NFTABLES, "nft -f", others, true),
    ] {
        let node = Namespace::new(case, None, "mount -t tmpfs rules /mnt")?;
        fs::write(node.path("/mnt/rules"), rules)?;
        node.sh(None, &format!("{PODS}\n{load} /mnt/rules\n{more}"))?.ok().context(case)?;
        let pod = |name: &str| Pod(node.path(format!("/run/netns/{name}")));
        let listener = pod("backend").inside(|| TcpListener::bind(SocketAddr::from(TARGET)))?;
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| echo(stream)))));
        let mut client = pod("client").inside(|| TcpStream::connect(SocketAddr::from(SERVICE)))?;
        client.set_read_timeout(Some(Duration::from_secs(3)))?;
        assert!(is_answered(&mut client), "{case}: kube-proxy's rules lead nowhere");
        node.sh(None, &format!("{} kube-proxy cleanup", Binaries::command()?.display()))?.ok().context(case)?;
        assert_eq!(is_answered(&mut client), goes_on, "{case}");
        pod("client").inside(|| match TcpStream::connect_timeout(&SERVICE.into(), Duration::from_secs(1)) {
            Ok(_) => Err(io::Error::other("a new connection is translated")),
            Err(_) => Ok(()),
        })?;
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; 1];
    while stream.read(&mut bytes)? > 0 {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

fn is_answered(client: &mut TcpStream) -> bool {
    client.write_all(b"?").and_then(|()| client.read_exact(&mut [0; 1])).is_ok()
}
