#!/usr/bin/env bash
# Prediction speed on one NVIDIA GPU:
#
#     benchmarks/gpu_predict.sh [OUT [more options of predict_speed.py]]
#
# A model of the shape of Qwen1.5-7B is made of random numbers, with the tokenizer of a real model, and gets an adapter
# of random numbers: speed does not depend on training. Long texts (384 tokens) and news titles are classified by the
# tutorial's `generate`, by batched `generate`, by vLLM if it is there, and by fenlei with each of its switches changed.
# A trained 7B classifier instead: benchmarks/gpu_predict.sh OUT --run titles=RUN fudan-384=RUN2
#
# Needs Python with torch (CUDA) and what fenlei needs; the data sets (DATA, default: ../shared/data beside the
# repository); a tokenizer (MODEL: folder or spec of any Qwen model, no weights are read from it); 20 GB of disk in
# TMPDIR. OUT (default: gpu-predict) gets predict.json, written after every round, predict.md, charts and log.txt.
#
# PYTHON names the interpreter (default: python3), VLLM_PYTHON one that has vLLM.
# Without a GPU: benchmarks/gpu_predict.sh OUT --device cpu --model-shape 0.5b --rows 2 --repeats 1
set -euo pipefail

out="${1:-gpu-predict}"
[ $# -gt 0 ] && shift
python="${PYTHON:-python3}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>/dev/null |
  tee "$out/gpu.txt" || true

PYTHONUNBUFFERED=1 PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/predict_speed.py" \
  --fresh --device cuda --model-shape 7b --model "${MODEL:-qwen2.5-coder-0.5b}" \
  --data "${DATA:-$here/../../shared/data}" --vllm-python "${VLLM_PYTHON:-$python}" \
  --rows 256 --warmup-rows 64 --repeats 5 --patience 900 \
  --json "$out/predict.json" --markdown "$out/predict.md" --svg "$out/charts" "$@" 2>&1 | tee "$out/log.txt"
