@echo off
chcp 936
rem 启动脚本
set CUDA_VISIBLE_DEVICES=1

cmd /k "conda activate lmdeploy && lmdeploy serve api_server E:\models\LLM\Qwen3-8B-AWQ --server-name 127.0.0.1 --server-port 10007 --model-name Qwen3-8B-AWQ --backend turbomind --session-len 2048 --chat-template D:\LLM\自定义聊天模板\Qwen3-NoCot.json"
