#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the cargo that builds Weft: rustup's or whatever comes first in PATH if it is new enough, else Debian's.
minimum=1.95
PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
export PATH

new_enough() {
    version=$("$1" --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$minimum" "$version" | sort -V | head -n1)" = "$minimum" ]
}

for cargo in cargo /usr/bin/cargo; do
    new_enough "$cargo" || continue
    # Debian's cargo must not pick up a foreign rustc.
    [ "$cargo" = cargo ] || export RUSTC=/usr/bin/rustc
    exec "$cargo" "$@"
done
echo "no cargo $minimum or newer: run 'make setup'" >&2
exit 1
