# syntax=docker/dockerfile:1
# cutline on a CPU: one binary with its model in it, on a base without a shell.
#
#   docker build -t cutline .
#   docker run --rm -p 127.0.0.1:8000:8000 cutline

# The version is that of rust-toolchain.toml. The runtime below has the same glibc, Debian 12's.
FROM rust:1.95.0-bookworm AS build
WORKDIR /build
ENV CARGO_TERM_COLOR=never

COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY crates crates
COPY models models
COPY src src
# Downloads and compiled crates stay on the builder, so that the next build compiles what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release \
    && install -D target/release/cutline /out/usr/local/bin/cutline \
    && mkdir -p /out/models

# glibc, libgcc and certificates; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="cutline" \
      org.opencontainers.image.description="Image captions over HTTP: BLIP on the machine in front of you" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build --chown=65532:65532 /out/ /
# Checkpoints from the hub are stored in /models; mount a volume there to keep them.
ENV HOST=0.0.0.0 \
    PORT=8000 \
    MODEL_CACHE_DIR=/models
USER 65532:65532
EXPOSE 8000
# There is no curl in the image. Checkpoints are downloaded within the start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/usr/local/bin/cutline", "health"]
ENTRYPOINT ["/usr/local/bin/cutline"]
CMD ["serve"]
