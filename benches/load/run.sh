#!/bin/sh
# Runs a release server on this machine under load and checks the results:
#
#     LOAD_FOLDER=/somewhere/with/100/MB benches/load/run.sh [checks and options of load.py]
#
# All traffic uses the loopback interface. Every check ends after a number of requests or a time. The
# checks chaos, soak, pillow, contracts and kept run only if they are named. Exits with status 1 if a check fails.
# LOAD_PYTHON is a Python with the packages of requirements.txt; without it, the script sets one up in
# LOAD_FOLDER.
set -eu
mkdir -p "${LOAD_FOLDER:?set LOAD_FOLDER to a folder for photos and logs, 100 MB}"
LOAD_FOLDER=$(cd "$LOAD_FOLDER" && pwd)
cd "$(dirname "$0")/../.."

if [ -z "${LOAD_PYTHON:-}" ]; then
    LOAD_PYTHON=$LOAD_FOLDER/venv/bin/python
    [ -x "$LOAD_PYTHON" ] || python3 -m venv "$LOAD_FOLDER/venv"
    "$LOAD_PYTHON" -m pip install --quiet --requirement benches/load/requirements.txt
fi
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --locked --bin cutline
# Each client uses a socket, and up to a thousand clients run at a time.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
exec "$LOAD_PYTHON" benches/load/load.py "$LOAD_FOLDER" --cutline "$target/release/cutline" "$@"
