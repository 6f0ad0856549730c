// SPDX-License-Identifier: Apache-2.0
//! Lists by pages. The plan is held for the time of one page, and a page is bounded in entries and bytes, so that neither the engine
//! waits nor memory grows with the cluster.

use std::{fmt, io, net::SocketAddr, ops::Bound, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;
use tokio::task::block_in_place;
use weft_api::{
    ApiError, AttachmentId, Entries, ErrorCode, List, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, Page, PageQuery, RouteReport,
    ServiceReport, VmReport,
};

use super::{Shared, report};
use crate::model::{Attachment, ObjectKey};

/// Devices that are asked at the same time: how long their answers are is known only then.
const DEVICES: usize = 32;

/// One page.
///
/// # Errors
/// A field of the query is not valid.
pub(super) async fn page(query: &PageQuery, shared: &Shared) -> Result<Page, ApiError> {
    if query.list == List::Vms {
        return vms(query, shared).await;
    }
    if query.name.is_some() {
        return Err(invalid("name: only the list vms is searched by name; leave it out"));
    }
    block_in_place(|| match query.list {
        List::Services => services(query, shared),
        List::Policies => {
            let planner = shared.planner();
            let after = query.after_as(object_key)?;
            let first = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let key = |report: &weft_api::PolicyReport| format!("{}/{}", report.namespace, report.name);
            Ok(fill(planner.policy_reports_from(first), query.most()?, key, Entries::Policies))
        }
        List::Routes => {
            let planner = shared.planner();
            let after = query.after_as(route_key)?;
            let after = after.as_ref().map(|(node, cidr)| (&**node, *cidr));
            let key = |route: &RouteReport| format!("{} {}", route.node, route.pod_cidr);
            Ok(fill(planner.route_reports_after(after).cloned(), query.most()?, key, Entries::Routes))
        }
        List::Problems => {
            let after = query.after.as_deref();
            let problems = shared.problems().into_iter().collect::<std::collections::BTreeSet<_>>();
            let problems = problems.into_iter().filter(|problem| after.is_none_or(|after| after < problem.as_str()));
            Ok(fill(problems, query.most()?, Clone::clone, Entries::Problems))
        }
        List::Endpoints | List::Vms => {
            let (view, planner) = (shared.view(), shared.planner());
            let after = query.after_as(attachment_id)?;
            let is_before =
                |attachment: &Arc<Attachment>| after.as_ref().is_some_and(|after| attachment.spec.id <= *after);
            let skip = view.attachments.partition_point(is_before);
            let reports = view.attachments[skip..].iter();
            let reports = reports.map(|attachment| report::endpoint(attachment, &planner, &shared.devices));
            let key = |report: &weft_api::EndpointReport| report.id.to_string();
            Ok(fill(reports, query.most()?, key, Entries::Endpoints))
        }
    })
}

trait Query {
    fn most(&self) -> Result<usize, ApiError>;
    fn after_as<K>(&self, parse: impl Fn(&str) -> Option<K>) -> Result<Option<K>, ApiError>;
}

impl Query for PageQuery {
    /// Entries that the page may have.
    fn most(&self) -> Result<usize, ApiError> {
        match self.limit {
            Some(0) => Err(invalid("limit: 0 entries are no page; ask for 1 or more, or leave it out")),
            limit => Ok(limit.map_or(MAX_PAGE_ENTRIES, |limit| (limit as usize).min(MAX_PAGE_ENTRIES))),
        }
    }

    /// The key after which the page begins.
    fn after_as<K>(&self, parse: impl Fn(&str) -> Option<K>) -> Result<Option<K>, ApiError> {
        let Some(text) = &self.after else { return Ok(None) };
        let list = self.list;
        parse(text).map(Some).ok_or_else(|| {
            invalid(&format!(
                "continue: '{text}' is no place in the list {list:?}; give what the page before told, or leave it out to begin anew"
            ))
        })
    }
}

/// Takes entries while they fit; one at least.
fn fill<T: Serialize>(
    entries: impl Iterator<Item = T>,
    most: usize,
    key: impl Fn(&T) -> String,
    wrap: impl Fn(Vec<T>) -> Entries,
) -> Page {
    let (mut page, mut bytes, mut next) = (Vec::new(), 0, None);
    for entry in entries {
        bytes += length(&entry);
        if page.len() == most || (bytes > MAX_PAGE_BYTES && !page.is_empty()) {
            next = page.last().map(&key);
            break;
        }
        page.push(entry);
    }
    Page { entries: wrap(page), next, partial: false }
}

/// As JSON, with what separates it from the next.
fn length(entry: &impl Serialize) -> usize {
    let mut counted = Counted(0);
    // What counts takes everything.
    drop(serde_json::to_writer(&mut counted, entry));
    counted.0 + 1
}

struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a page of Services ends: after a Service, or within one that fits into no page.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    service: ObjectKey,
    within: Option<Within>,
}

/// After this backend of the port in this place.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Within {
    port: usize,
    backend: SocketAddr,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service.namespace, self.service.name)?;
        match self.within {
            Some(Within { port, backend }) => write!(f, " {port} {backend}"),
            None => Ok(()),
        }
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (service, within) = text.split_once(' ').map_or((text, None), |(service, within)| (service, Some(within)));
        let within = match within.map(|within| within.split_once(' ')) {
            None => None,
            Some(within) => {
                let (port, backend) = within?;
                Some(Within { port: port.parse().ok()?, backend: backend.parse().ok()? })
            }
        };
        Some(Self { service: object_key(service)?, within })
    }
}

fn services(query: &PageQuery, shared: &Shared) -> Result<Page, ApiError> {
    let (after, most) = (query.after_as(Place::parse)?, query.most()?);
    let first = match &after {
        None => Bound::Unbounded,
        Some(Place { service, within: None }) => Bound::Excluded(service),
        Some(Place { service, within: Some(_) }) => Bound::Included(service),
    };
    let planner = shared.planner();
    let (mut page, mut bytes) = (Vec::new(), 0);
    for mut report in planner.service_reports_from(first) {
        let key = ObjectKey::new(&report.namespace, &report.name);
        let told = after.as_ref().filter(|after| after.service == key).and_then(|after| after.within);
        if let Some(told) = told {
            skip(&mut report, told);
        }
        bytes += length(&report);
        if page.len() == most || (bytes > MAX_PAGE_BYTES && !page.is_empty()) {
            let last: Option<&ServiceReport> = page.last();
            let next = last.map(|last| format!("{}/{}", last.namespace, last.name));
            return Ok(Page { entries: Entries::Services(page), next, partial: false });
        }
        if bytes > MAX_PAGE_BYTES
            && let Some(within) = cut(&mut report, told.map_or(0, |told| told.port))
        {
            let next = Some(Place { service: key, within: Some(within) }.to_string());
            return Ok(Page { entries: Entries::Services(vec![report]), next, partial: true });
        }
        page.push(report);
    }
    Ok(Page { entries: Entries::Services(page), next: None, partial: false })
}

/// Takes away what earlier pages have told of a Service. A port's backends are those for one address of the Service after those for
/// the other; of one family they are in order.
fn skip(report: &mut ServiceReport, Within { port, backend }: Within) {
    let family =
        |address: &std::net::IpAddr| report.cluster_ips.iter().position(|ip| ip.is_ipv4() == address.is_ipv4());
    let place = |backend: SocketAddr| (family(&backend.ip()), backend.ip(), backend.port());
    let told = place(backend);
    report.ports.drain(..port.min(report.ports.len()));
    if let Some(first) = report.ports.first_mut() {
        first.backends.retain(|backend| place(SocketAddr::new(backend.address, backend.port)) > told);
    }
}

/// Takes away what does not fit into a page, and tells after which backend; none: all of it has to go into one. `skipped`: ports that
/// earlier pages have told.
fn cut(report: &mut ServiceReport, skipped: usize) -> Option<Within> {
    let ports = std::mem::take(&mut report.ports);
    let mut room = MAX_PAGE_BYTES.saturating_sub(length(report));
    let mut end: Option<Within> = None;
    for (number, mut port) in ports.into_iter().enumerate() {
        let backends = std::mem::take(&mut port.backends);
        room = room.saturating_sub(length(&port));
        for backend in backends {
            let bytes = length(&backend);
            if bytes > room && end.is_some() {
                if !port.backends.is_empty() {
                    report.ports.push(port);
                }
                report.ports.truncate(end.map_or(0, |end| end.port + 1 - skipped));
                return end;
            }
            room = room.saturating_sub(bytes);
            end = Some(Within { port: skipped + number, backend: SocketAddr::new(backend.address, backend.port) });
            port.backends.push(backend);
        }
        report.ports.push(port);
    }
    None
}

async fn vms(query: &PageQuery, shared: &Shared) -> Result<Page, ApiError> {
    let (after, most) = (query.after_as(attachment_id)?, query.most()?.min(DEVICES));
    let (reports, more) = shared.devices.reports_after(after.as_ref(), query.name.as_deref(), most).await;
    let last = reports.last().map(key_of_vm).filter(|_| more);
    let page = fill(reports.into_iter(), most, key_of_vm, Entries::Vms);
    Ok(Page { next: page.next.or(last), ..page })
}

fn key_of_vm(report: &VmReport) -> String {
    report.id.to_string()
}

fn object_key(text: &str) -> Option<ObjectKey> {
    text.split_once('/').map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn attachment_id(text: &str) -> Option<AttachmentId> {
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    let [network, container_id, ifname] = parts.try_into().ok()?;
    Some(AttachmentId { network, container_id, ifname })
}

fn route_key(text: &str) -> Option<(String, IpNet)> {
    let (node, cidr) = text.split_once(' ')?;
    Some((node.to_owned(), cidr.parse().ok()?))
}

fn invalid(message: &str) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message: message.to_owned() }
}

#[cfg(test)]
mod tests;
