#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what Weft needs to be built, tested and shown on a Debian machine. Says what it installs; does nothing where
# everything is there. Run as root. With the argument `build` it installs only what building takes.
set -eu

# Build: the compiler for the eBPF programs (rustc-web carries LLVM 22 and the sources of core), bpf-linker's libraries.
build='rustc-web rust-web-src cargo-web llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev gcc libc6-dev pkg-config
libseccomp-dev make git ca-certificates'
# Test: simulated nodes, traffic, what an operator would look with; systemd-analyze for the unit file;
# what a kube-proxy leaves.
test='iproute2 iputils-ping bpftool util-linux mount procps kmod systemd
nftables iptables ipset'
# Guests: QEMU by software emulation, Debian's cloud kernel, an initramfs of busybox.
guest='qemu-system-x86 busybox-static cpio gzip linux-image-cloud-amd64'
# Front ends of the vhost-user-net device besides QEMU: DPDK's testpmd.
frontend='dpdk-dev'
# Images and the Kubernetes testbed.
cluster='mmdebstrap openssl binutils conntrack'

linker_version=0.13.0
rust_minimum=1.95

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

require_debian_root() {
    [ "$(id -u)" = 0 ] || fail 'must run as root: it installs packages, and the tests make network namespaces; try sudo make'
    command -v apt-get >/dev/null || fail 'no apt-get: this script knows Debian 12 only; install the packages it lists by hand'
}

wanted_packages() {
    [ "$only" = build ] && echo "$build" || echo "$build $test $guest $frontend $cluster $(formatter_packages)"
}

missing_packages() {
    for package in $(wanted_packages); do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

# rustup brings its own formatter and lints; Debian's cargo needs the packages beside it.
formatter_packages() {
    command -v rustup >/dev/null || printf 'rustfmt-web rust-web-clippy'
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    say "installing by apt-get: $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
        fail 'apt-get could not install the packages; rustc-web and llvm-22-dev come from the security and updates suites of Debian 12'
}

check_rust() {
    found=$("$(dirname "$0")/cargo.sh" --version | cut -d' ' -f2)
    lowest=$(printf '%s\n%s\n' "$rust_minimum" "$found" | sort -V | head -n1)
    [ "$lowest" = "$rust_minimum" ] ||
        fail "cargo is $found, Weft needs $rust_minimum; run 'rustup update stable', or remove rustup's from PATH to use Debian's"
}

install_linker() {
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    case "$(bpf-linker --version 2>/dev/null || true)" in
    *" $linker_version"*) return 0 ;;
    esac
    say "installing by cargo: bpf-linker $linker_version (about a minute)"
    # Its build asks the llvm-config that it finds first; Debian's is not in the usual PATH.
    PATH="/usr/lib/llvm-22/bin:$PATH" LLVM_PREFIX=/usr/lib/llvm-22 "$(dirname "$0")/cargo.sh" install bpf-linker --version "$linker_version" --force \
        --quiet --no-default-features --features llvm-22 --locked
}

check_kernel() {
    for node in /sys/fs/bpf /dev/net/tun; do
        [ -e "$node" ] || fail "$node is missing: this kernel or container cannot run the tests (need BPF, tun and veth)"
    done
}

# Only the Kubernetes of `make test` is built with Go; the demo is not.
note_go() {
    command -v go >/dev/null ||
        say "no go in PATH: 'make demo' works, 'make test' needs Go 1.26 or newer for its Kubernetes"
}

only=${1:-}
require_debian_root
install_packages
check_rust
install_linker
if [ "$only" != build ]; then
    check_kernel
    note_go
fi
say 'everything is there'
