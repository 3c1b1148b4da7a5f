#!/usr/bin/env bash
# A start script.
set -euo pipefail
cd "$(dirname "$0")"
source ~/miniconda3/etc/profile.d/conda.sh
conda activate vllm
export CUDA_VISIBLE_DEVICES=0,1
export HF_HOME=/data/hf
MODEL=/models/Qwen3-8B
PORT=${PORT:-8000}
exec vllm serve "$MODEL" \
  --host 0.0.0.0 --port "$PORT" \
  --tensor-parallel-size 2 > vllm.log 2>&1
