# `just` lists the recipes; `just RECIPE` runs one. Each is one command that also works without just.

_default:
    @just --list

# Build the program
build:
    cargo build --release

# Serve captions at http://127.0.0.1:8000
run *arguments:
    cargo run --release -- serve {{ arguments }}

# What has to pass before every commit: a few minutes
test *arguments:
    cargo test --workspace {{ arguments }}

# With the long comparisons that CI runs
test-long *arguments:
    cargo test --workspace --features long-tests {{ arguments }}

# Format, then look for what clippy finds
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# The documentation of the library, in a browser
docs:
    cargo doc --workspace --no-deps --open

# The benches: `just bench gemm` for one of them
bench name="*":
    cargo bench --bench '{{ name }}'

# How fast this machine captions
speed:
    cargo run --release -- bench

# Files that are written by the program itself
generated:
    cargo run -- openapi > openapi.json

# Everything that CI checks
ci:
    .ci/run

# The packages for crates.io, without publishing them
package:
    cargo package --workspace --locked

# The wheel for Python, with its tests
wheel:
    .ci/python

# The Debian package, in target/debian
deb: build
    .ci/deb target/release/cutline
