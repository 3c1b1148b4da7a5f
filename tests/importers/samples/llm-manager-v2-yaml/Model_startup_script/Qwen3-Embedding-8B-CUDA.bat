@echo off
set GGML_CUDA_ENABLE_UNIFIED_MEMORY=1
D:\llama\llama-server.exe -m E:\models\q8.gguf --embeddings -ngl 99 --port 10009
