// SPDX-License-Identifier: Apache-2.0
//! Weft's node agent: watch, plan, apply.
//!
//! | Room | What it does |
//! |---|---|
//! | [`config`] | the agent's configuration file and flags |
//! | [`watch`] | keeps a [`model::Snapshot`] of the cluster, from the API server or from a folder of manifests |
//! | [`plan`] | pure: snapshot and node facts to [`model::Desired`] |
//! | [`apply`] | observes the maps, diffs, and moves them closer |
//! | [`device`] | the node's own devices, routes and sysctls |
//! | [`attachment`] | CNI server, attachment store, IPAM |
//! | [`guest`] | DHCPv4, DHCPv6 and RA for VMs |
//! | [`vhost`] | the devices of vhost-user ports |
//! | `event` | Events on objects that do not fit |
//! | `file` | files that are replaced whole |
//! | [`heap`] | how the allocator is used |
//! | [`serve`] | the local API, flow events, metrics and health |
//! | [`run`] | wires them together |

pub mod apply;
pub mod attachment;
pub mod config;
pub mod device;
mod event;
mod file;
pub mod guest;
pub mod heap;
pub mod model;
pub mod plan;
pub mod run;
pub mod serve;
pub mod vhost;
pub mod watch;
