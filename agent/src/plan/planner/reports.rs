// SPDX-License-Identifier: Apache-2.0
//! What the plan tells of Services, policies and routes, when it is asked: from any place on, one after the other, so that a page
//! costs what it shows.

use std::ops::Bound;

use weft_api::{PolicyReport, RouteReport, ServiceReport};

use super::Planner;
use crate::{
    model::ObjectKey,
    plan::{backends::Here, services},
};

impl Planner {
    /// For `weft services`, in the order of their names: those from `first` on.
    pub fn service_reports_from(&self, first: Bound<&ObjectKey>) -> impl Iterator<Item = ServiceReport> {
        // Without the node's facts nothing is planned: the plan is somebody else's.
        let made = self.desired.service_reports.iter().filter(|_| self.facts.is_none());
        let made = made.filter(move |report| is_from(first, &report.namespace, &report.name)).cloned();
        let of_node = self.facts.iter().flat_map(move |facts| {
            let here = Here::of(&self.snapshot, facts, &self.services.weights);
            let services = self.snapshot.services.range::<ObjectKey, _>((first, Bound::Unbounded));
            services.filter_map(move |(key, service)| {
                services::report_one(key, service, &self.services.slices_of(&self.snapshot, key), here)
            })
        });
        made.chain(of_node)
    }

    /// For `weft services`.
    #[must_use]
    pub fn service_reports(&self) -> Vec<ServiceReport> {
        self.service_reports_from(Bound::Unbounded).collect()
    }

    /// For `weft policies`, in the order of their names: those from `first` on.
    pub fn policy_reports_from(&self, first: Bound<&ObjectKey>) -> impl Iterator<Item = PolicyReport> {
        let made = self.desired.policy_reports.iter().filter(|_| self.policy.is_none());
        let made = made.filter(move |report| is_from(first, &report.namespace, &report.name)).cloned();
        let compiled = self.policy.iter().flat_map(move |policy| {
            let forms = self.forms.range::<ObjectKey, _>((first, Bound::Unbounded));
            policy.reports(forms).map(|(report, _)| report)
        });
        made.chain(compiled)
    }

    /// For `weft policies`.
    #[must_use]
    pub fn policy_reports(&self) -> Vec<PolicyReport> {
        self.policy_reports_from(Bound::Unbounded).collect()
    }

    /// The ways to other nodes, by node and CIDR: those after the route to `after`.
    pub fn route_reports_after(&self, after: Option<(&str, ipnet::IpNet)>) -> impl Iterator<Item = &RouteReport> {
        let routes = &self.desired.route_reports;
        let skip = after.map_or(0, |after| routes.partition_point(|route| (&*route.node, route.pod_cidr) <= after));
        routes[skip..].iter()
    }
}

fn is_from(first: Bound<&ObjectKey>, namespace: &str, name: &str) -> bool {
    let place = (namespace, name);
    match first {
        Bound::Unbounded => true,
        Bound::Included(first) => place >= (&*first.namespace, &*first.name),
        Bound::Excluded(first) => place > (&*first.namespace, &*first.name),
    }
}
