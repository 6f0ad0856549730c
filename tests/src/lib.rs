// SPDX-License-Identifier: Apache-2.0

//! Weft's testbed: simulated nodes, containers, virtual machines, and a real Kubernetes to test it on.

pub mod cluster;
