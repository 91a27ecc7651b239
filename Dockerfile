# syntax=docker/dockerfile:1
# cutline on a CPU: one binary with the model embedded, on a base image without a shell.
#
#   docker build -t cutline .
#   docker run --rm -p 127.0.0.1:8000:8000 cutline

# Same Rust version as rust-toolchain.toml. The runtime image below has the same glibc (Debian 12).
FROM rust:1.95.0-bookworm AS build
WORKDIR /build
ENV CARGO_TERM_COLOR=never

# Assembles the SIMD of the JPEG decoder.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nasm \
    && rm -rf /var/lib/apt/lists/*

COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY crates crates
COPY models models
COPY src src
# Downloads and compiled crates are cached on the builder, so the next build compiles only what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release --features simd-jpeg \
    && install -D target/release/cutline /out/usr/local/bin/cutline \
    && mkdir -p /out/models

# Contains glibc, libgcc and certificates, but no shell and no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="cutline" \
      org.opencontainers.image.description="Image captions over HTTP: BLIP on your own machine" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build --chown=65532:65532 /out/ /
# Checkpoints from the hub are stored in /models; mount a volume there to keep them.
ENV HOST=0.0.0.0 \
    PORT=8000 \
    MODEL_CACHE_DIR=/models
USER 65532:65532
EXPOSE 8000
# The image has no curl, so the program checks itself. The start period covers the download of a checkpoint.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/usr/local/bin/cutline", "health"]
ENTRYPOINT ["/usr/local/bin/cutline"]
CMD ["serve"]
