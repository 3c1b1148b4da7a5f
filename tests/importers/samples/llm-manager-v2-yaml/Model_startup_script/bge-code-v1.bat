@echo off
D:\llama\llama-server.exe -m E:\models\bge-code-v1.gguf --embeddings --host 127.0.0.1 --port 10002
