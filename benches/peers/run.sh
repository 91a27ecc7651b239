#!/bin/sh
# Compares cutline with other programs that can run BLIP, on this machine's CPU:
#
#     PEERS_FOLDER=/somewhere/with/6/GB benches/peers/run.sh [options of compare.py]
#
# The first run makes seeded random weights of BLIP base and the peers' files in PEERS_FOLDER. Every run
# runs all programs in turn and prints a table for each batch. PEERS_PYTHON is a Python with the packages
# of requirements.txt; without it, the script sets one up in PEERS_FOLDER.
set -eu
mkdir -p "${PEERS_FOLDER:?set PEERS_FOLDER to a folder for weights and graphs, 6 GB}"
PEERS_FOLDER=$(cd "$PEERS_FOLDER" && pwd)
cd "$(dirname "$0")/../.."

if [ -z "${PEERS_PYTHON:-}" ]; then
    PEERS_PYTHON=$PEERS_FOLDER/venv/bin/python
    [ -x "$PEERS_PYTHON" ] || python3 -m venv "$PEERS_FOLDER/venv"
    "$PEERS_PYTHON" -m pip install --quiet --requirement benches/peers/requirements.txt
fi
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --bin cutline
# If a peer cannot be built, its row of the table reports the failure; the others still run.
cargo build --release --manifest-path benches/peers/candle/Cargo.toml --target-dir "$target" || true

"$PEERS_PYTHON" benches/peers/prepare.py "$PEERS_FOLDER"
exec "$PEERS_PYTHON" benches/peers/compare.py "$PEERS_FOLDER" \
    --cutline "$target/release/cutline" --candle "$target/release/cutline-peer-candle" "$@"
