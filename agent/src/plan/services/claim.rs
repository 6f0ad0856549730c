// SPDX-License-Identifier: Apache-2.0
//! Who has a frontend that several ask for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use weft_abi::FrontendKey;

use crate::model::ObjectKey;

/// By what right a Service, or a workload, asks for a frontend: the strongest first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Claim {
    /// Its ClusterIP: the API server gives each to one Service.
    ClusterIp,
    /// Its NodePort: likewise.
    NodePort,
    /// An address that a load balancer gave it, in its status, which is not for everybody to write who may write a Service.
    LoadBalancer,
    /// A `hostPort` of a Pod.
    HostPort,
    /// One of its `externalIPs`: whoever may write a Service may write any (CVE-2020-8554).
    ExternalIp,
}

/// Comes before the ranks of those who do not get the frontend: of equal claims that of the oldest object, so that nobody takes what
/// others have with a new one; of objects of one second the first by name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Rank {
    pub(crate) claim: Claim,
    /// None: the source does not tell.
    pub(crate) created: Option<Time>,
    pub(crate) object: ObjectKey,
}

/// What an object asks for, and the frontend without which it does not: where that leads, this one would lead, too.
pub(super) type Asked = (Rank, FrontendKey, Option<FrontendKey>);

/// Who has which frontend.
pub(super) fn holders(mut asked: Vec<Asked>) -> BTreeMap<FrontendKey, ObjectKey> {
    asked.sort_unstable();
    let mut holders = BTreeMap::<FrontendKey, ObjectKey>::new();
    for (Rank { object, .. }, frontend, first) in asked {
        if first.is_none_or(|first| holders.get(&first) == Some(&object)) {
            holders.entry(frontend).or_insert(object);
        }
    }
    holders
}
