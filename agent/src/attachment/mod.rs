// SPDX-License-Identifier: Apache-2.0
//! Attachments of this node: who is plugged in, with which addresses.
//!
//! [`life`] is what a port goes through, as a pure state machine; here is what it leaves on disk, before anybody is answered. An
//! address is free for others only when its record is gone, and the record goes after everything else: a crash at any point
//! leaves an address reserved, never given twice. At a start the kernel is asked what it still has ([`life::Event::Found`]).

pub mod life;
mod naming;
pub mod pending;
mod pool;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::GATEWAY_MAC;
use weft_api::{
    Allocation, ApiError, AssignedAddress, AttachmentId, AttachmentSpec, DnsSettings, ErrorCode, Mac, PortKind,
    PortLink, Route,
};

pub(crate) use self::naming::is_host_ifname;
use self::store::Store;
pub use self::{
    pool::Pool,
    store::{FOLDER, StoreError},
};
use crate::{guest::LINK_LOCAL_GATEWAY, model::Attachment, vhost};

/// Addresses of one family that may be asked for, for a veth.
const MAX_ADDRESSES: usize = 8;

/// What every attachment of the node is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest packet of workloads.
    pub mtu: u32,
    /// Name service settings.
    pub dns: DnsSettings,
    /// Folder of the sockets of vhost-user ports, for `weft-vhost` to listen on.
    pub socket_dir: PathBuf,
}

/// The attachments of this node.
#[derive(Debug)]
pub struct Attachments {
    store: Store,
    pools: Vec<Pool>,
    records: BTreeMap<AttachmentId, Arc<Attachment>>,
    settings: Settings,
}

impl Attachments {
    /// Reads the records under `state_dir`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(state_dir: &Path, pod_cidrs: &[IpNet], settings: Settings) -> Result<Self, StoreError> {
        let (store, records) = Store::open(state_dir)?;
        let records = records.into_iter().map(|(id, record)| (id, Arc::new(record))).collect();
        let mut attachments = Self { store, pools: Vec::new(), records, settings };
        attachments.set_pod_cidrs(pod_cidrs);
        Ok(attachments)
    }

    /// Gives out addresses of these pod CIDRs from now on; those that are given out stay with their workloads.
    pub fn set_pod_cidrs(&mut self, pod_cidrs: &[IpNet]) {
        let mut pools: Vec<Pool> = pod_cidrs.iter().copied().map(Pool::new).collect();
        for address in self.records.values().flat_map(|record| addresses(record)) {
            pools.iter_mut().for_each(|pool| pool.adopt(address));
        }
        self.pools = pools;
    }

    /// The largest packet of workloads that come from now on.
    pub const fn set_mtu(&mut self, mtu: u32) {
        self.settings.mtu = mtu;
    }

    /// The record of `id`.
    #[must_use]
    pub fn get(&self, id: &AttachmentId) -> Option<&Attachment> {
        self.records.get(id).map(|record| &**record)
    }

    /// All records.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Attachment>> {
        self.records.values()
    }

    /// The pools, in the order of the pod CIDRs.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Reserves addresses and names. The same request again gives the same answer; another one for the same id replaces the
    /// reservation.
    ///
    /// # Errors
    /// Names the field that cannot be served; nothing is changed then.
    pub fn allocate(&mut self, spec: AttachmentSpec) -> Result<Allocation, ApiError> {
        naming::check_id(&spec.id)?;
        let old = self.records.get(&spec.id).cloned();
        if let Some(old) = &old {
            if let Some(link) = &old.link {
                return Err(in_use(&spec.id, link));
            }
            if same(&old.spec, &spec) {
                return Ok(old.allocation.clone());
            }
        }
        self.check(&spec)?;
        // The new reservation may want what the old one has.
        let before = old.as_deref().map(addresses).unwrap_or_default();
        self.free(&before);
        let result = self.reserve(spec, old.as_deref());
        if result.is_err() {
            self.retake(&before);
        }
        result
    }

    fn reserve(&mut self, spec: AttachmentSpec, old: Option<&Attachment>) -> Result<Allocation, ApiError> {
        let taken = self.take_addresses(&spec)?;
        let allocation = self.allocation(&spec, taken);
        let record = Attachment { spec, allocation: allocation.clone(), link: None };
        if let Err(error) = self.store.save(&record) {
            let undone = old.map_or_else(|| self.store.remove(&record.spec.id), |old| self.store.save(old));
            // Only what is surely not on disk is free again.
            if undone.is_ok() {
                self.free(&addresses(&record));
            }
            return Err(io_error(&error));
        }
        self.records.insert(record.spec.id.clone(), Arc::new(record));
        Ok(allocation)
    }

    /// Notes the link of a reserved attachment; none takes the note back.
    ///
    /// # Errors
    /// [`ErrorCode::Unknown`], or the record cannot be written; nothing is changed then.
    pub fn link(&mut self, id: &AttachmentId, link: Option<PortLink>) -> Result<&Attachment, ApiError> {
        let record = self.records.get_mut(id).ok_or_else(|| unknown(id))?;
        let changed = Attachment { link, ..(**record).clone() };
        self.store.save(&changed).map_err(|error| io_error(&error))?;
        *record = Arc::new(changed);
        Ok(record)
    }

    /// Removes the record and frees its addresses. What is unknown is fine.
    ///
    /// # Errors
    /// The record cannot be removed; the addresses stay reserved.
    pub fn remove(&mut self, id: &AttachmentId) -> Result<(), ApiError> {
        self.store.remove(id).map_err(|error| io_error(&error))?;
        if let Some(record) = self.records.remove(id) {
            self.free(&addresses(&record));
        }
        Ok(())
    }

    /// Attachments of `network` that are not in `valid`.
    #[must_use]
    pub fn garbage(&self, network: &str, valid: &[AttachmentId]) -> Vec<AttachmentId> {
        let valid: BTreeSet<&AttachmentId> = valid.iter().collect();
        let of_network = self.records.keys().filter(|id| id.network == network);
        of_network.filter(|id| !valid.contains(id)).cloned().collect()
    }

    /// Everything about `spec` that can be judged before anything is taken.
    fn check(&self, spec: &AttachmentSpec) -> Result<(), ApiError> {
        let invalid = |message: String| Err(ApiError { code: ErrorCode::Invalid, message });
        if let Some(mac) = spec.mac {
            naming::check_mac(mac)?;
        }
        let dual_stack = self.pools.iter().any(|pool| pool.cidr().addr().is_ipv6());
        let least = if dual_stack { 1280 } else { 576 };
        if let Some(mtu) = spec.mtu.filter(|mtu| !(least..=self.settings.mtu).contains(mtu)) {
            return invalid(format!("mtu {mtu} does not fit this node; use {least} to {}", self.settings.mtu));
        }
        if spec.port == PortKind::Veth && spec.queues != 1 {
            return invalid(format!("queues {} for a veth; leave it out or use port tap", spec.queues));
        }
        if spec.port == PortKind::VhostUser {
            if !(1..=vhost::MAX_QUEUES).contains(&spec.queues) {
                return invalid(format!("queues {} for vhost-user; use 1 to {}", spec.queues, vhost::MAX_QUEUES));
            }
            vhost::check_folder(&self.settings.socket_dir, &naming::host_ifname(&spec.id, |_| false))
                .or_else(invalid)?;
        }
        // A guest is told of one address of a family (DHCP).
        let most = if spec.port == PortKind::Veth { MAX_ADDRESSES } else { 1 };
        for (position, address) in spec.addresses.iter().enumerate() {
            let before = &spec.addresses[..position];
            if before.contains(address) {
                return invalid(format!("ips {address} twice; ask for it once"));
            }
            if before.iter().filter(|other| other.is_ipv4() == address.is_ipv4()).count() >= most {
                return invalid(format!(
                    "ips {address} and {most} more of the same family; ask for {most} per family at most"
                ));
            }
            if !self.pools.iter().any(|pool| pool.contains(*address)) {
                let pools: Vec<_> = self.pools.iter().map(|pool| pool.cidr().to_string()).collect();
                return invalid(format!(
                    "address {address} is in no pod CIDR of this node; ask for one in {}",
                    pools.join(" or ")
                ));
            }
        }
        Ok(())
    }

    /// Addresses of each pool: those that were asked for, else any one; all or none.
    fn take_addresses(&mut self, spec: &AttachmentSpec) -> Result<Vec<AssignedAddress>, ApiError> {
        let mut taken = Vec::new();
        let result = self.pools.iter_mut().try_for_each(|pool| take_of(pool, spec, &mut taken));
        match result {
            Ok(()) => Ok(taken),
            Err(error) => {
                self.free(&taken.iter().map(|assigned| assigned.address.addr()).collect::<Vec<_>>());
                Err(error)
            }
        }
    }

    fn free(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.pools.iter_mut().for_each(|pool| pool.free(*address));
        }
    }

    fn retake(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            for pool in self.pools.iter_mut().filter(|pool| pool.contains(*address)) {
                // What lies outside of the workloads' part, from an earlier configuration, was never counted as free.
                drop(pool.reserve(*address));
            }
        }
    }

    fn allocation(&self, spec: &AttachmentSpec, addresses: Vec<AssignedAddress>) -> Allocation {
        let others = || self.records.values().filter(|record| record.spec.id != spec.id);
        let is_taken = |name: &str| others().any(|record| record.allocation.host_ifname == name);
        let host_ifname = naming::host_ifname(&spec.id, is_taken);
        let socket_path = (spec.port == PortKind::VhostUser)
            .then(|| vhost::socket_path(&self.settings.socket_dir, &host_ifname).display().to_string());
        Allocation {
            routes: all_routes(&addresses),
            addresses,
            mac: spec.mac.unwrap_or_else(|| naming::mac(&spec.id)),
            gateway_mac: Mac(GATEWAY_MAC),
            host_ifname,
            mtu: spec.mtu.unwrap_or(self.settings.mtu),
            dns: self.settings.dns.clone(),
            socket_path,
        }
    }
}

/// The address as the workload is told. On a veth everything is behind the gateway. A guest is told the node's own prefix by
/// DHCP, so that also a client without option 121 finds its gateway on-link; IPv6 has no such need.
fn assigned(pool: &Pool, address: IpAddr, port: PortKind) -> AssignedAddress {
    let host = IpNet::from(address);
    match address {
        IpAddr::V4(_) if port == PortKind::Veth => AssignedAddress { address: host, gateway: pool.gateway() },
        IpAddr::V4(_) => {
            AssignedAddress { address: IpNet::new_assert(address, pool.cidr().prefix_len()), gateway: pool.gateway() }
        }
        IpAddr::V6(_) => AssignedAddress { address: host, gateway: LINK_LOCAL_GATEWAY.into() },
    }
}

/// Takes the addresses that were asked for of a pool, else any one of it.
fn take_of(pool: &mut Pool, spec: &AttachmentSpec, taken: &mut Vec<AssignedAddress>) -> Result<(), ApiError> {
    let before = taken.len();
    for address in &spec.addresses {
        if pool.contains(*address) {
            if taken.len() > before {
                pool.check_plenty()?;
            }
            pool.reserve(*address)?;
            taken.push(assigned(pool, *address, spec.port));
        }
    }
    if taken.len() == before {
        let address = pool.allocate()?;
        taken.push(assigned(pool, address, spec.port));
    }
    Ok(())
}

/// The routes of all addresses, none twice.
fn all_routes(addresses: &[AssignedAddress]) -> Vec<Route> {
    let mut all = Vec::new();
    for route in addresses.iter().flat_map(routes) {
        if !all.contains(&route) {
            all.push(route);
        }
    }
    all
}

/// On-link to the gateway, then everything through it.
fn routes(assigned: &AssignedAddress) -> [Route; 2] {
    let everything = match assigned.gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    [Route { dst: assigned.gateway.into(), gateway: None }, Route { dst: everything, gateway: Some(assigned.gateway) }]
}

/// The addresses of a record.
fn addresses(record: &Attachment) -> Vec<IpAddr> {
    record.allocation.addresses.iter().map(|assigned| assigned.address.addr()).collect()
}

/// `AttachmentSpec` cannot be compared; its JSON can.
fn same(a: &AttachmentSpec, b: &AttachmentSpec) -> bool {
    matches!((serde_json::to_value(a), serde_json::to_value(b)), (Ok(a), Ok(b)) if a == b)
}

/// Nobody knows `id`.
#[must_use]
pub fn unknown(id: &AttachmentId) -> ApiError {
    ApiError { code: ErrorCode::Unknown, message: format!("the attachment {id} is not known here; run cni ADD first") }
}

/// `id` has a link, so that it cannot be reserved anew.
#[must_use]
pub fn in_use(id: &AttachmentId, link: &PortLink) -> ApiError {
    let message = format!("the attachment {id} is there already on {}; delete it first (cni DEL)", link.ifname);
    ApiError { code: ErrorCode::Exists, message }
}

fn io_error(error: &StoreError) -> ApiError {
    ApiError { code: ErrorCode::Io, message: error.to_string() }
}
