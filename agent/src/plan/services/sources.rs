// SPDX-License-Identifier: Apache-2.0
//! Whom the addresses of a load balancer serve: `loadBalancerSourceRanges`.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use crate::{model::objects::ServiceSpec, plan::address::parse_cidr};

/// The clients of one Service's load balancer.
#[derive(Debug, Default)]
pub(super) struct Sources {
    ranges: BTreeSet<IpNet>,
    /// A range is none that anybody can be in: who else is meant is not known.
    is_unclear: bool,
}

impl Sources {
    /// Those of a Service; `problems` tells of ranges that are none.
    pub(super) fn of(spec: &ServiceSpec, problems: &mut Vec<String>) -> Self {
        let mut sources = Self::default();
        let texts = spec.load_balancer_source_ranges.iter().flatten().filter(|_| is_load_balancer(spec));
        for text in texts {
            match parse_cidr(text.trim()) {
                Ok(range) => drop(sources.ranges.insert(range)),
                Err(why) => {
                    sources.is_unclear = true;
                    problems.push(format!(
                        "spec.loadBalancerSourceRanges: {why}; it admits nobody, and no family is open to all"
                    ));
                }
            }
        }
        sources
    }

    /// Whether an address of the load balancer serves only some. As in kube-proxy, ranges of one family say nothing about the other.
    pub(super) fn limit(&self, ipv4: bool) -> bool {
        self.is_unclear || self.of_family(ipv4).next().is_some()
    }

    /// Whether there are some, and none for this family.
    pub(super) fn leave_open(&self, ipv4: bool) -> bool {
        !self.ranges.is_empty() && !self.limit(ipv4)
    }

    /// The clients of one family.
    pub(super) fn ranges(&self, ipv4: bool) -> Arc<[IpNet]> {
        self.of_family(ipv4).copied().collect()
    }

    fn of_family(&self, ipv4: bool) -> impl Iterator<Item = &IpNet> {
        self.ranges.iter().filter(move |range| range.addr().is_ipv4() == ipv4)
    }
}

/// Only its own load balancer's addresses count, not what is left of another type.
pub(super) fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}
