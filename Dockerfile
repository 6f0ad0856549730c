# SPDX-License-Identifier: Apache-2.0
# Weft's image for those who have a container engine:
#
#   docker build --tag localhost/weft:dev .
#
# `cargo xtask image` makes the same without an engine, and the same bytes each time. Where the sources are no git checkout, say
# `--build-arg SOURCE_DATE_EPOCH=SECONDS --build-arg WEFT_REVISION=COMMIT`.
FROM debian:bookworm AS build
WORKDIR /weft
# Alone, so that an edit of the sources does not install everything again.
COPY scripts/ scripts/
RUN scripts/setup.sh build
COPY . .
ARG SOURCE_DATE_EPOCH
ARG WEFT_REVISION
RUN scripts/cargo.sh run --quiet --package xtask -- image --tarball
RUN mkdir /out && tar --extract --gzip --strip-components=1 --directory=/out --file="$(ls target/image/*.tar.gz)"

FROM scratch
LABEL org.opencontainers.image.title="Weft" \
      org.opencontainers.image.description="One eBPF dataplane for containers and virtual machines in Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
COPY --from=build /out/bin/ /usr/local/bin/
COPY --from=build /out/LICENSE* /out/THIRD-PARTY* /out/sbom.cdx.json /usr/share/doc/weft/
ENTRYPOINT ["/usr/local/bin/weft-agent"]
