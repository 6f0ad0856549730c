// SPDX-License-Identifier: Apache-2.0

//! What the data path of a node has been told, read from its maps: nobody's claims.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use weft_abi::{
    ANY_IDENTITY, Addr, AddressKey, Balancer, CidrKey, FrontendKey, MemberKey, PROTOCOL_ANY, RuleKey, WORLD_IDENTITY,
    generation,
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
        let identities = maps.identities().iter().map(|entry| entry.map(|entry| format!("{entry:?}")));
        let entries = frontends.chain(balancers).chain(ports).chain(rules).chain(identities);
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

    /// What policies know `address` as, and whether they know it singly.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn identity(&self, address: IpAddr) -> Result<u32> {
        let addr = Addr::from(address);
        if let Some(identity) = self.maps.identities().get(&AddressKey::of_cluster(addr))? {
            return Ok(identity);
        }
        Ok(self.maps.cidrs().get(&CidrKey::of_cluster(addr, 128))?.unwrap_or(WORLD_IDENTITY))
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
        let policy = workload.ingress_policy;
        if policy == 0 {
            return Ok(true);
        }
        for identity in [self.identity(peer)?, ANY_IDENTITY] {
            if self.allows(policy, identity, port)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn allows(&self, policy: u32, identity: u32, port: u16) -> Result<bool> {
        for chunk in 0..RuleKey::MAX_CHUNKS {
            let Some(rules) = self.maps.rules().get(&RuleKey { policy, identity, chunk })? else { break };
            let allowed = rules.rules[..usize::from(rules.count)]
                .iter()
                .any(|rule| matches!(rule.protocol, PROTOCOL_ANY | TCP) && (rule.first..=rule.last).contains(&port));
            if allowed {
                return Ok(true);
            }
            if rules.more == 0 {
                break;
            }
        }
        Ok(false)
    }
}
