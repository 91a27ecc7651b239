#!/bin/sh
# Compares captions from this machine's GPU with captions from its CPU, compares the speed with that of
# transformers, and prints one table:
#
#     GPU_FOLDER=/somewhere/with/3/GB benches/gpu.sh path/to/cutline [options of gpu/main.py]
#
# The binary must have been built with --features cuda. GPU_PYTHON is a Python with torch and
# transformers. The script installs and downloads nothing.
set -eu
binary=${1:?give the path of a cutline binary built with --features cuda}
shift
[ -x "$binary" ] || { echo "$binary is not an executable file" >&2; exit 2; }
binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")
mkdir -p "${GPU_FOLDER:?set GPU_FOLDER to a folder for weights and results, 3 GB}"
GPU_FOLDER=$(cd "$GPU_FOLDER" && pwd)
cd "$(dirname "$0")/.."
# Keeps the models offline, and writes no bytecode into the checkout.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
exec "${GPU_PYTHON:-python3}" benches/gpu/main.py "$GPU_FOLDER" --cutline "$binary" "$@"
