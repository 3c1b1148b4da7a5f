@echo off
chcp 65001

cmd /k "D:\LLM\LLM-Manager\backend\llama.cpp\llama-server.exe -m E:\models\LLM\GGUF\Qwen3-Coder.gguf --jinja -ngl 99 -c 65536 -dev cuda0,cuda1 -ts 12,36 --host 127.0.0.1 --port 10001 -a Qwen3-Coder-30B-A3B-Instruct"