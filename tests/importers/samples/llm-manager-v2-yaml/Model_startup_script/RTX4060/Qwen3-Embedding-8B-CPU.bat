@echo off
D:\llama\llama-server.exe -m E:\models\q8.gguf --embeddings -ngl 0 --port 10009
