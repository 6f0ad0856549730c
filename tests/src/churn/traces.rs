// SPDX-License-Identifier: Apache-2.0

//! Everything that attachments could leave on a node.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use crate::{node::Node, shell::Shell as _};

/// What to look at, and how. Flows and their generations are not there: flows end by age, and every use of a generation's
/// slot moves it on. Identities and the numbers in file contents may differ as well.
const LOOKS: [(&str, &str); 10] = [
    ("links", "ip -o link | sed 's/^[0-9]*: //; s/[@:].*//' | sort"),
    ("addresses", "ip -o address | awk '{print $2, $4}' | sort"),
    ("routes", "ip route show table all | sort; ip -6 route show table all | sed 's/ expires.*//' | sort"),
    ("rules", "ip rule; ip -6 rule; nft list ruleset"),
    ("namespaces", "ip netns list | awk '{print $1}' | sort"),
    (
        "files",
        "find /mnt/node1/state /run/weft -type f | sort; find /run/devinfo -type f 2>/dev/null; find /mnt/node1/state -name '*.json' -path '*pending*'",
    ),
    (
        "devices",
        r"for line in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$line | grep -o '^[^ ]*weft-vhost .*--tap=[^ ]*'; done 2>/dev/null | sort",
    ),
    ("pins", "find /sys/fs/bpf/weft | sort"),
    ("neighbours", "ip neigh show dev weft0; bridge fdb show dev weft_vxlan 2>/dev/null | sort"),
    (
        "maps",
        "for map in PORTS ADDRESSES PEERS CLASSES LISTS RULES BLOCKS FRONTENDS BALANCERS MEMBERS BACKENDS; do \
        echo $map $(bpftool map dump pinned $(find /sys/fs/bpf/weft -name $map) 2>/dev/null | grep -c 'key'); done",
    ),
];

/// What is there.
pub(super) struct Traces(BTreeMap<&'static str, String>);

impl Traces {
    pub(super) fn of(node: &Node) -> Result<Self> {
        let look = |(name, script): (&'static str, &str)| {
            let seen = node.sh(script)?.ok().with_context(|| format!("look at the {name}"))?;
            Ok((name, seen))
        };
        let mut traces = LOOKS.into_iter().map(look).collect::<Result<BTreeMap<_, _>>>()?;
        let status: weft_api::StatusReport = node.weft_json("status")?;
        let used: Vec<u64> = status.addresses_used.iter().map(|(used, _)| *used).collect();
        traces.insert("addresses used", format!("{used:?}"));
        Ok(Self(traces))
    }

    /// That `after` is the same.
    pub(super) fn compare(&self, after: &Self) -> Result<()> {
        for (name, before) in &self.0 {
            let now = &after.0[name];
            ensure!(now == before, "{name} differ.\nbefore:\n{before}\nafter:\n{now}");
        }
        Ok(())
    }
}
