// SPDX-License-Identifier: Apache-2.0

//! kube-proxy's node: the same pods and Services, without a policy.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use weft_testbed::{
    Bed,
    apiserver::{ApiServer, Kind, Population},
    load::{self, ProxyMode, ProxyNode, ProxyPod},
};

use super::{
    objects::{LOAD, Size, put},
    wire::{self, TURNS},
};

/// Services that come at once: what a transaction takes the kernel grows with the square of its size.
const STEP: usize = 2_000;

/// A node of kube-proxy.
pub(super) struct Peer {
    pub(super) client: ProxyPod,
    pub(super) servers: [ProxyPod; 2],
    pub(super) node: ProxyNode,
    pub(super) server: Arc<ApiServer>,
    pub(super) mode: ProxyMode,
    population: Population,
}

impl Peer {
    /// Makes node `number` on the switch of `bed`, with pods of this MTU; kube-proxy does not run yet.
    pub(super) fn new(bed: &Bed, number: u8, mode: ProxyMode, size: Size, mtu: u32) -> Result<Self> {
        eprintln!("kube-proxy, {}: {} Services of {} endpoints", mode.name(), size.services, size.endpoints);
        let server = Arc::new(ApiServer::new());
        let node = ProxyNode::new(bed, number, mode, &server)?;
        let population = size.population(node.name());
        let pod = || node.pod(bed, mtu);
        let (client, servers) = (pod()?, [pod()?, pod()?]);
        load::serve(&servers[0], LOAD.port, TURNS)?;
        Ok(Self { client, servers, node, server, mode, population })
    }

    /// Serves the measured Service and `services` others, which are all there from the beginning.
    pub(super) fn install(&self, services: usize) -> Result<()> {
        Population { services, ..self.population.clone() }.install(&self.server);
        self.server.put(Kind::Nodes, self.node.object())?;
        put(&self.server, &LOAD, self.node.name(), &[self.servers[0].v4()])
    }

    /// Starts kube-proxy with the measured Service alone, lets the others come by and by, and tells how many were in its rules within
    /// `patience`.
    pub(super) fn grow(&self, patience: Duration) -> Result<usize> {
        let start = Instant::now();
        self.install(0)?;
        self.node.start_proxy()?;
        if wire::await_served(&self.client.network(), self.to(), patience)?.is_none() {
            return Ok(0);
        }
        for first in (0..self.population.services).step_by(STEP) {
            let next = self.population.services.min(first + STEP);
            for number in first..next {
                self.population.put_service(&self.server, number)?;
            }
            while !self.node.has_written(next + 1) {
                if start.elapsed() > patience {
                    return Ok(first + 1);
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        eprintln!("  kube-proxy, {}: ready after {:.1} s", self.mode.name(), start.elapsed().as_secs_f64());
        self.node.forget_connections()?;
        Ok(self.population.services + 1)
    }

    /// Seconds of a start until the measured Service is served: kube-proxy's first transaction has all. None: not within `patience`.
    pub(super) fn start(&self, patience: Duration) -> Result<Option<f64>> {
        let start = Instant::now();
        self.node.start_proxy()?;
        let served = wire::await_served(&self.client.network(), self.to(), patience).context("start kube-proxy")?;
        Ok(served.map(|end| (end - start).as_secs_f64()))
    }

    /// Where the load is.
    pub(super) fn to(&self) -> SocketAddr {
        SocketAddr::new(LOAD.vip.into(), LOAD.port)
    }
}
