@echo off
chcp 65001 >nul
cd /d "%~dp0"
call conda activate YOUR_ACTUAL_CONDA_ENV  # 修改为您的环境
python -m vllm.entrypoints.openai.api_server \
  --model /your/local/model/path  # 修改为您的模型路径
  --port 10002 \
  --tensor-parallel-size 2 \
  --gpu-memory-utilization 0.9
