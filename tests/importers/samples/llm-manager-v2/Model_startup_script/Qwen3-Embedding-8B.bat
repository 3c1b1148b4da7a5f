@echo off
start /b D:\llama-server.exe -m E:\q8.gguf --embeddings --host 127.0.0.1 --port 10012