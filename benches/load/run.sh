#!/bin/sh
# Puts a release server on this machine under load and says whether it holds:
#
#     LOAD_FOLDER=/somewhere/with/100/MB benches/load/run.sh [checks and options of load.py]
#
# Everything goes through the loopback interface; every check ends by itself after a number of
# requests or a time. Exit status 1 if one of them failed. LOAD_PYTHON names a Python that has
# requirements.txt; without it, one is set up in LOAD_FOLDER.
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
# A client a socket, and a thousand of them at a time.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
exec "$LOAD_PYTHON" benches/load/load.py "$LOAD_FOLDER" --cutline "$target/release/cutline" "$@"
