# SPDX-License-Identifier: Apache-2.0
# The commands of a developer; everything else is `cargo xtask`.

CARGO := scripts/cargo.sh
XTASK := $(CARGO) run --quiet --package xtask --

.PHONY: help setup build demo test check bench

help: ## shows this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## installs what is needed (idempotent, as root)
	@scripts/setup.sh

build: setup ## builds every program
	@$(CARGO) build

demo: setup ## two nodes, containers and VMs, a Service, a NetworkPolicy: shown to work
	@$(XTASK) demo

test: setup ## the whole suite, a real two-node Kubernetes included
	@$(XTASK) test

check: setup ## formatting, lints, layouts, docs
	@$(XTASK) check

bench: setup ## the measurements that need neither a large cluster (cargo xtask bench scale) nor kube-proxy (bench services)
	@for name in datapath policy net vm cni vhost; do $(XTASK) bench $$name || exit 1; done
