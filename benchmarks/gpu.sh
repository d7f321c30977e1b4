#!/usr/bin/env bash
# Training speed on one NVIDIA GPU, without a network, a model or an installed fenlei:
#
#     benchmarks/gpu.sh [OUT [more options of train_speed.py]]
#
# A model of the shape of Qwen1.5-7B is made of random numbers on the GPU and trained on random rows, long (384 tokens)
# and short (80, as a news title's in the median; the first 59 are the same in all, as before a title), by the
# tutorial's script, by TRL if it is there, and by fenlei with each of its speed settings changed, with 4-bit weights
# and with activation checkpointing.
#
# Needs Python with torch (CUDA), transformers, peft, accelerate, pydantic, pyyaml. Measured where they are installed:
# liger-kernel, bitsandbytes (pip install 'fenlei[gpu]'), flash-attn where torch is older than 2.13.
# PYTHON names the interpreter (default: python3).
#
# OUT (default: gpu-benchmark) gets speed.json and speed.md, written after every round, and log.txt.
#
# Every variant makes the model anew, TRL once for each of its settings, so that all of it takes far more than ten
# minutes (some 50 starts). --variants takes names and patterns; a wrong one lists all. For ten minutes:
#
#     timeout 570 benchmarks/gpu.sh OUT --warmup 1 --repeats 3 --variants fenlei tutorial \
#       'fenlei without packed' 'fenlei without share_prefix' 'fenlei with kernels=torch' 'fenlei with 4-bit weights'
#
# (14 starts, long rows first, of an estimated 30 to 40 s each. What was measured when the time runs out is in OUT.)
#
# Without a GPU, to try the script:
#
#     benchmarks/gpu.sh OUT --device cpu --model-shape tiny --repeats 1 --variants fenlei tutorial
set -euo pipefail

out="${1:-gpu-benchmark}"
[ $# -gt 0 ] && shift
python="${PYTHON:-python3}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>/dev/null |
  tee "$out/gpu.txt" || true

PYTHONUNBUFFERED=1 PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/train_speed.py" \
  --device cuda --model-shape 7b --workloads synthetic-384 synthetic-80 --alone --warmup 2 --repeats 5 \
  --patience 300 --json "$out/speed.json" --markdown "$out/speed.md" "$@" 2>&1 | tee "$out/log.txt"
