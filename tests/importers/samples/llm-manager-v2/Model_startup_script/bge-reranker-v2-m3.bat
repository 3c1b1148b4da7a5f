@echo off
call D:\conda\Scripts\activate.bat rerank
python D:\LLM\rerank_server.py --host 127.0.0.1 --port 10014