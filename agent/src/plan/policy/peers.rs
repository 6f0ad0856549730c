// SPDX-License-Identifier: Apache-2.0
//! Peers of policy rules: what an address must be to match.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};

use crate::{
    model::HashKey,
    plan::{
        address::parse_cidr,
        policy::{
            list::term_of,
            selector::{Labels, Selector},
        },
        protocol,
    },
};

/// The label that gives every namespace its own name; the API server sees to it.
const NAME_OF_NAMESPACE: &str = "kubernetes.io/metadata.name";

/// Whom a rule lets in or out to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Peer {
    /// Pods, wherever they are.
    Pods(PodPeer),
    /// Addresses.
    Block(Block),
}

/// Pods, wherever they are.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct PodPeer {
    /// Of these namespaces.
    pub(crate) namespaces: Namespaces,
    /// With these labels.
    pub(crate) pods: Selector,
}

/// Which namespaces a peer means.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Namespaces {
    /// The policy's own.
    Named(String),
    /// By their labels.
    Matching(Selector),
}

/// An `ipBlock`, host bits cleared.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Block {
    pub(crate) cidr: IpNet,
    pub(crate) except: BTreeSet<IpNet>,
}

/// A port that each pod numbers for itself.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    /// IP protocol number.
    pub(crate) protocol: u8,
}

/// What classes of addresses are asked for: pods, and for egress by a named port also how each of them numbers that port.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct PeerTerm {
    /// Which pods.
    pub(crate) peer: PodPeer,
    /// The port that they number for themselves.
    pub(crate) named: Option<NamedPort>,
}

impl Peer {
    /// Reads a peer of a policy in `namespace`.
    ///
    /// # Errors
    /// What the API server would refuse, with the field's name.
    pub(crate) fn parse(peer: &NetworkPolicyPeer, namespace: &str) -> Result<Self, String> {
        let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
        let namespaces = match (ip_block, namespace_selector) {
            (Some(_), _) if namespace_selector.is_some() || pod_selector.is_some() => {
                return Err("ipBlock: may not stand beside podSelector or namespaceSelector".into());
            }
            (Some(block), _) => return Block::parse(block).map(Self::Block),
            (None, Some(selector)) => {
                Namespaces::Matching(Selector::parse(selector).map_err(|why| format!("namespaceSelector.{why}"))?)
            }
            (None, None) if pod_selector.is_none() => {
                return Err("podSelector: missing; a peer needs podSelector, namespaceSelector or ipBlock".into());
            }
            (None, None) => Namespaces::Named(namespace.to_owned()),
        };
        let pods = pod_selector.as_ref().map_or(Ok(Selector::everything()), Selector::parse);
        Ok(Self::Pods(PodPeer { namespaces, pods: pods.map_err(|why| format!("podSelector.{why}"))? }))
    }
}

impl PeerTerm {
    /// Its number, without a port.
    pub(crate) fn number(&self, hash: HashKey) -> u64 {
        term_of(hash.of("peer").text(&self.to_string()).finish())
    }
}

impl Peer {
    /// The pods that it means.
    pub(crate) const fn as_pods(&self) -> Option<&PodPeer> {
        match self {
            Self::Pods(pods) => Some(pods),
            Self::Block(_) => None,
        }
    }
}

impl PodPeer {
    /// Whether it means every pod of every namespace: where an address lies tells it, whosever it is.
    pub(crate) fn is_everybody(&self) -> bool {
        let every = matches!(&self.namespaces, Namespaces::Matching(selector) if selector.is_everything());
        every && self.pods.is_everything()
    }

    /// The namespaces of which it means every pod, where it names them.
    pub(crate) fn whole_namespaces(&self) -> Option<Vec<&str>> {
        if !self.pods.is_everything() {
            return None;
        }
        match &self.namespaces {
            Namespaces::Named(name) => Some(vec![name]),
            Namespaces::Matching(selector) => {
                let (_, names) = selector.values().filter(|(key, _)| *key == NAME_OF_NAMESPACE)?;
                Some(names.iter().collect())
            }
        }
    }

    /// Every pod of every namespace.
    pub(crate) fn all() -> Self {
        Self { namespaces: Namespaces::Matching(Selector::everything()), pods: Selector::everything() }
    }
}

impl Namespaces {
    /// Whether pods of the namespace are meant; labels that are not known match no selector.
    pub(crate) fn matches(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::Named(name) => name == namespace,
            Self::Matching(selector) => labels.is_some_and(|labels| selector.matches(labels)),
        }
    }
}

impl Block {
    fn parse(block: &IPBlock) -> Result<Self, String> {
        let cidr = parse_cidr(&block.cidr).map_err(|why| format!("ipBlock.cidr: {why}"))?;
        let mut except = BTreeSet::new();
        for text in block.except.iter().flatten() {
            let hole = parse_cidr(text).map_err(|why| format!("ipBlock.except: {why}"))?;
            if hole == cidr || !cidr.contains(&hole) {
                return Err(format!("ipBlock.except: {text} is not strictly inside {}", block.cidr));
            }
            except.insert(hole);
        }
        Ok(Self { cidr, except })
    }
}

impl fmt::Display for NamedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.name, protocol::name(self.protocol))
    }
}

/// One text for one meaning; the number is a hash of it.
impl fmt::Display for PeerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer: PodPeer { namespaces, pods }, named } = self;
        match namespaces {
            Namespaces::Named(name) => write!(f, "pods {pods} of {name}")?,
            Namespaces::Matching(selector) => write!(f, "pods {pods} of {selector}")?,
        }
        named.iter().try_for_each(|named| write!(f, " at {named}"))
    }
}
