// SPDX-License-Identifier: Apache-2.0

//! Large changes, and what others wait for them.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use weft_testbed::{
    apiserver::{Key, Kind},
    load::percentile,
};

use super::{
    change::{self, Moving},
    site::Site,
};

/// Slices of the Service.
const SLICES: usize = 5;
/// Endpoints of each, the most that Kubernetes' controller gives one.
const ENDPOINTS: usize = 1000;
/// Large changes of a run.
const CHANGES: usize = 10;
const VIP: &str = "10.96.0.99:80";

/// A Service of many backends: a change of one of its slices writes the whole set anew.
pub(super) struct Large<'a> {
    site: &'a Site,
    vip: SocketAddr,
    /// How often it was changed.
    changed: Cell<usize>,
}

impl<'a> Large<'a> {
    pub(super) fn new(site: &'a Site) -> Result<Self> {
        let vip: SocketAddr = VIP.parse()?;
        let address = vip.ip().to_string();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": site.population.namespace(0), "name": "large", "uid": "large"},
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": vip.port(), "targetPort": 8080}],
            },
        });
        let large = Self { site, vip, changed: Cell::new(0) };
        site.server.put(Kind::Services, service)?;
        for number in 0..SLICES {
            site.server.put(Kind::EndpointSlices, large.slice(number, 0))?;
        }
        let tables = site.tables()?;
        site.wait("the large Service", || {
            Ok(tables.backends(vip).ok().flatten().is_some_and(|backends| backends.len() == SLICES * ENDPOINTS))
        })?;
        Ok(large)
    }

    /// Slice `number` in its form `form`.
    fn slice(&self, number: usize, form: usize) -> Value {
        let key = Key::new(&self.site.population.namespace(0), &format!("large-{number}"));
        let endpoints: Vec<Value> = (0..ENDPOINTS)
            .map(|place| {
                let group = number * 8 + place / 250 + form % 2 * 100;
                json!({"addresses": [format!("10.98.{group}.{}", place % 250 + 1)], "conditions": {"ready": true}})
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": key.namespace, "name": key.name, "uid": key.name, "labels": {"kubernetes.io/service-name": "large"}},
            "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        })
    }

    /// Microseconds an entry, and milliseconds that a small change waits longer behind a large one.
    pub(super) fn run(&self) -> Result<[f64; 2]> {
        let tables = self.site.tables()?;
        let (mut alone, mut behind, mut per_entry) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..CHANGES {
            alone.push(change::endpoint(self.site, &tables, number)?);
            self.changed.set(self.changed.get() + 1);
            let form = self.changed.get().div_ceil(SLICES);
            let slice = self.slice(self.changed.get() % SLICES, form);
            let mut large = Moving::begin(self.site, &tables, self.vip, slice)?;
            let mut small = Moving::small(self.site, &tables, number)?;
            self.site.wait("a large change and a small one", || Ok(small.look(&tables)? & large.look(&tables)?))?;
            behind.push(small.delay()?);
            per_entry.push(large.delay()? * 1000.0 / (SLICES * ENDPOINTS) as f64);
            std::thread::sleep(Duration::from_millis(20));
        }
        let usual = percentile(&alone, 50);
        Ok([percentile(&per_entry, 50), (percentile(&behind, 99) - usual).max(0.0)])
    }
}
