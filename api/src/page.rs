// SPDX-License-Identifier: Apache-2.0
//! Lists that grow with the cluster or with the node, page by page.

use serde::{Deserialize, Serialize};

use crate::{EndpointReport, PolicyReport, Request, RouteReport, ServiceReport, VmReport};

/// Entries that a page has at most, however many are asked for.
pub const MAX_PAGE_ENTRIES: usize = 1000;

/// Bytes of JSON that the entries of a page have at most. Only an entry that is larger by itself is alone in a page of its size;
/// a Service is not: see [`Page::partial`].
pub const MAX_PAGE_BYTES: usize = 256 << 10;

/// What can be asked for by pages.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum List {
    /// Ports of this node, by their ids.
    Endpoints,
    /// Services as programmed, by namespace and name.
    Services,
    /// Policies as compiled, by namespace and name.
    Policies,
    /// vhost-user ports of this node, by their ids.
    Vms,
    /// Pod CIDRs of other nodes, by node and CIDR.
    Routes,
    /// What wants the operator's eye, by its text.
    Problems,
}

/// Which part of a list is asked for; see [`Request::List`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PageQuery {
    /// Of what.
    pub list: List,
    /// So many entries at most; [`MAX_PAGE_ENTRIES`] where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// [`Page::next`] of the page before; the first page where absent.
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Only entries of this name. Of [`List::Vms`] alone: the pod (`NAMESPACE/NAME` or `NAME`) or the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A part of a list, in the order of its keys. The key of the last entry is where the next page begins, so that what comes and
/// goes between two pages makes no other entry appear twice or not at all.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Page {
    /// The entries.
    pub entries: Entries,
    /// Ask for what is after it ([`PageQuery::after`]); none: there is no more.
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The last entry, a Service, does not fit into a page: the next page begins with more of it, under the same name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Entries of one list.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entries {
    /// Of [`List::Endpoints`].
    Endpoints(Vec<EndpointReport>),
    /// Of [`List::Services`].
    Services(Vec<ServiceReport>),
    /// Of [`List::Policies`].
    Policies(Vec<PolicyReport>),
    /// Of [`List::Vms`].
    Vms(Vec<VmReport>),
    /// Of [`List::Routes`].
    Routes(Vec<RouteReport>),
    /// Of [`List::Problems`].
    Problems(Vec<String>),
}

impl List {
    /// What an agent that knows no pages is asked instead.
    pub(crate) const fn whole(self) -> Request {
        match self {
            Self::Endpoints => Request::Endpoints,
            Self::Services => Request::Services,
            Self::Policies => Request::Policies,
            Self::Vms => Request::Vms,
            Self::Routes | Self::Problems => Request::Status,
        }
    }
}

impl ServiceReport {
    /// Adds what another page tells of the same Service; what is another Service's comes back.
    ///
    /// # Errors
    /// `more` is of another Service.
    pub fn extend(&mut self, more: Self) -> Result<(), Box<Self>> {
        if (&self.namespace, &self.name) != (&more.namespace, &more.name) {
            return Err(Box::new(more));
        }
        for port in more.ports {
            let is_same = |last: &&mut crate::ServicePortReport| {
                (&last.name, &last.protocol, last.port) == (&port.name, &port.protocol, port.port)
            };
            match self.ports.last_mut().filter(is_same) {
                Some(last) => last.backends.extend(port.backends),
                None => self.ports.push(port),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Entries, List, Page, PageQuery};
    use crate::{Answer, Reply, Request, ServicePortReport, ServiceReport};

    /// What is on the wire does not change within a version.
    #[test]
    fn a_page_on_the_wire() {
        let mut query = PageQuery { list: List::Services, limit: None, after: None, name: None };
        assert_eq!(
            serde_json::to_value(Request::List(query.clone())).unwrap(),
            json!({"op": "list", "list": "services"})
        );
        (query.limit, query.after) = (Some(10), Some("x/web".into()));
        let line = json!({"op": "list", "list": "services", "limit": 10, "continue": "x/web"});
        let Request::List(read) = serde_json::from_value(line).unwrap() else { panic!() };
        assert_eq!(read, query);
        let page = Page { entries: Entries::Problems(vec!["no".into()]), next: Some("no".into()), partial: false };
        let expected = json!({"ok": {"kind": "page", "value": {"entries": {"problems": ["no"]}, "continue": "no"}}});
        assert_eq!(serde_json::to_value(Reply::Ok(Answer::Page(page))).unwrap(), expected);
    }

    #[test]
    fn only_parts_of_the_same_service_are_put_together() {
        let port = |name: &str| ServicePortReport {
            name: name.into(),
            protocol: "TCP".into(),
            port: 80,
            node_port: None,
            backends: Vec::new(),
        };
        let service = |name: &str, ports: &[&str]| ServiceReport {
            namespace: "x".into(),
            name: name.into(),
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            ports: ports.iter().map(|name| port(name)).collect(),
            affinity_seconds: None,
            algorithm: String::new(),
        };
        let mut first = service("a", &["p"]);
        assert_eq!(first.extend(service("b", &["p"])), Err(Box::new(service("b", &["p"]))));
        assert_eq!(first.extend(service("a", &["p", "q"])), Ok(()));
        assert_eq!(first, service("a", &["p", "q"]));
    }
}
