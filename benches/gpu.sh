#!/bin/sh
# Compares captions made on this machine's GPU with those of the CPU, and their speed with
# transformers', and prints one table:
#
#     GPU_FOLDER=/somewhere/with/3/GB benches/gpu.sh path/to/cutline [options of gpu/main.py]
#
# The binary is built elsewhere, with --features cuda. GPU_PYTHON names a Python that has torch and
# transformers; nothing is installed or fetched.
set -eu
binary=${1:?give the path of a cutline that was built with --features cuda}
shift
[ -x "$binary" ] || { echo "$binary is no program" >&2; exit 2; }
binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")
mkdir -p "${GPU_FOLDER:?set GPU_FOLDER to a folder for weights and results, 3 GB}"
GPU_FOLDER=$(cd "$GPU_FOLDER" && pwd)
cd "$(dirname "$0")/.."
# The models and programs of this machine's user are not asked for.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
exec "${GPU_PYTHON:-python3}" benches/gpu/main.py "$GPU_FOLDER" --cutline "$binary" "$@"
