// SPDX-License-Identifier: Apache-2.0

//! What the data path of a node has been told, read from its maps: nobody's claims.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use weft_abi::{
    Addr, AddressKey, Balancer, BlockKey, CidrKey, FrontendKey, INTERVALS_PER_RUN, Interval, List, MAX_RUNS, MemberKey,
    NO_LIST, PROTOCOL_ANY, RuleKey, Verdict, generation, part,
};
use weft_dataplane::{Maps, Options};

use crate::node::Node;

const TCP: u8 = 6;

/// The maps of a node's agent.
pub struct Tables {
    maps: Maps,
}

/// Where a frontend leads at a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frontend {
    service: u32,
    balancer: Balancer,
}

impl Tables {
    /// Of `node`, whose agent has made them.
    ///
    /// # Errors
    /// They are not there yet, or of another build.
    pub fn of(node: &Node) -> Result<Self> {
        Ok(Self { maps: Maps::open(&node.machine().path(Options::PIN_DIR))? })
    }

    /// Everything that has a number and everything that numbers stand for, as text: where two are the same, nothing was numbered
    /// or published anew.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn numbered(&self) -> Result<String> {
        let maps = &self.maps;
        let mut all = vec![format!("epoch {}", maps.generations().get(generation::EPOCH)?)];
        for entry in maps.digests() {
            let (slot, digest) = entry?;
            all.push(format!("{slot} is {digest} at {}", maps.generations().get(slot)?));
        }
        let frontends = maps.frontends().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let balancers = maps.balancers().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let ports = maps.ports().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let rules = maps.rules().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let lists = maps.lists().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let classes = maps.classes().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let peers = maps.peers().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let policy = rules.chain(lists).chain(classes).chain(peers);
        let entries = frontends.chain(balancers).chain(ports).chain(policy);
        all.extend(entries.collect::<Result<Vec<_>, _>>()?);
        all.sort_unstable();
        Ok(all.join("\n"))
    }

    /// The generation of the routes: flows that were decided under another one decide again.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn routes_generation(&self) -> Result<u32> {
        Ok(self.maps.generations().get(generation::ROUTES)?)
    }

    /// How many Service ports and backends there are; backends of a change that goes on are counted twice.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn services(&self) -> Result<(usize, usize)> {
        Ok((self.maps.balancers().len()?, self.maps.members().len()?))
    }

    /// The TCP frontend at `to`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn frontend(&self, to: SocketAddr) -> Result<Option<Frontend>> {
        let key = FrontendKey::of_cluster(to.ip().into(), to.port().to_be(), TCP);
        let Some(weft_abi::Frontend { service, .. }) = self.maps.frontends().get(&key)? else { return Ok(None) };
        Ok(self.maps.balancers().get(&service)?.map(|balancer| Frontend { service, balancer }))
    }

    /// Whether the frontend at `to`, which was `before`, has other backends now, and those of before are gone: the end of a
    /// change.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn has_moved(&self, to: SocketAddr, before: Frontend) -> Result<bool> {
        let Frontend { service, balancer: Balancer { internal: set, .. } } = before;
        if self.frontend(to)?.is_some_and(|now| now == before) {
            return Ok(false);
        }
        let last = MemberKey { service, set: set.set, index: set.count.saturating_sub(1) };
        Ok(self.maps.members().get(&last)?.is_none())
    }

    /// Where the TCP frontend at `to` leads, sorted; `None`: there is none.
    ///
    /// # Errors
    /// A backend is missing that the frontend counts.
    pub fn backends(&self, to: SocketAddr) -> Result<Option<Vec<SocketAddr>>> {
        loop {
            let Some(frontend) = self.frontend(to)? else { return Ok(None) };
            let found = self.backends_of(&frontend)?;
            if self.frontend(to)? != Some(frontend) {
                // Read while it changed.
                continue;
            }
            let Some(mut found) = found else { bail!("{to}: {frontend:?} counts backends that are not there") };
            found.sort_unstable();
            return Ok(Some(found));
        }
    }

    fn backends_of(&self, frontend: &Frontend) -> Result<Option<Vec<SocketAddr>>> {
        let mut found = Vec::new();
        let set = frontend.balancer.internal;
        for index in 0..set.count {
            let key = MemberKey { service: frontend.service, set: set.set, index };
            let Some(backend) = self.maps.members().get(&key)? else { return Ok(None) };
            found.push(SocketAddr::new(backend.addr.into(), u16::from_be(backend.port)));
        }
        Ok(Some(found))
    }

    /// The class that policies know `address` by; none: of it they know nothing.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn class(&self, address: IpAddr) -> Result<Option<u64>> {
        Ok(self.maps.peers().get(&AddressKey::of_cluster(address.into()))?)
    }

    /// Whether a workload is served behind device `ifindex`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn is_port(&self, ifindex: u32) -> Result<bool> {
        Ok(self.maps.ports().get(&ifindex)?.is_some())
    }

    /// Whether policies let `peer` reach the TCP port `port` of the workload behind device `ifindex`.
    ///
    /// # Errors
    /// There is no such workload.
    pub fn admits(&self, ifindex: u32, peer: IpAddr, port: u16) -> Result<bool> {
        let Some(workload) = self.maps.ports().get(&ifindex)? else { bail!("device {ifindex} is no port") };
        let list = workload.ingress_list;
        if list == NO_LIST {
            return Ok(true);
        }
        let Some(head) = self.maps.lists().get(&list)? else { return Ok(false) };
        let mut parts = vec![part::ANY];
        if let Some(class) = self.class(peer)?
            && let Some(class) = self.maps.classes().get(&class)?
        {
            parts.extend(class.terms.into_iter().chain([class.namespace]).filter(|term| *term != 0));
        }
        let addr = Addr::from(peer);
        for length in head.lengths[usize::from(!addr.is_v4())] {
            let prefix_len = u32::from(length);
            let key = BlockKey { blocks: head.blocks, addr: truncated(&addr, prefix_len), prefix_len, pad: 0 };
            if length != List::NO_LENGTH
                && let Some(block) = self.maps.blocks().get(&key)?
            {
                if self.allows(head.blocks, block, port)? {
                    return Ok(true);
                }
                break;
            }
        }
        let is_remote =
            self.maps.remotes().get(&CidrKey::of_cluster(addr, 128))?.is_some_and(|remote| remote.is_pods());
        let owner = self.maps.addresses().get(&AddressKey::of_cluster(addr))?;
        if owner.map_or(is_remote, |owner| owner.is_workload()) {
            parts.push(part::ANY_POD);
        }
        for part in parts {
            if self.allows(list, part, port)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn allows(&self, list: u64, part: u64, port: u16) -> Result<bool> {
        for place in 0..MAX_RUNS {
            let Some(run) = self.maps.rules().get(&RuleKey { list, part: part + place })? else { break };
            let accepts = |interval: &Interval| {
                Interval::verdict(interval.bits) == Verdict::Accept as u8
                    && matches!(interval.protocol, PROTOCOL_ANY | TCP)
                    && (interval.first..=interval.last).contains(&port)
            };
            if run.intervals.iter().any(accepts) {
                return Ok(true);
            }
            if run.intervals[INTERVALS_PER_RUN - 1].bits & Interval::MORE == 0 {
                break;
            }
        }
        Ok(false)
    }
}

/// The first bits of an address.
fn truncated(Addr(words): &Addr, length: u32) -> Addr {
    let all = words.iter().fold(0_u128, |all, word| all << 32 | u128::from(u32::from_be(*word)));
    let kept = all & !u128::MAX.checked_shr(length).unwrap_or(0);
    Addr::from_octets(kept.to_be_bytes())
}
