@echo off
set CUDA_VISIBLE_DEVICES=0
set GGML_CUDA_GRAPH_OPT=1
cmd /k "D:\llama-server.exe -m E:\models\Qwen3-Coder.gguf -ngl 20 --host 127.0.0.1 --port 10001"