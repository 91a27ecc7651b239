#!/bin/sh
# Compares cutline with transformers at full size: BLIP base and large with seeded random weights.
#
#     tests/goldens/full_size.sh [python] [folder for 2.8 GB of checkpoints]
#
# Not part of cargo test: it needs requirements.txt, 8 GB of memory and a few minutes.
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python3}
sets=${2:-target/full-size-parity}
"$python" tests/goldens/make_goldens.py full "$sets"
CUTLINE_FULL_SIZE_SETS=$(cd "$sets" && pwd) \
    cargo test --release --features full-size-parity --test it parity::full_size -- --nocapture
