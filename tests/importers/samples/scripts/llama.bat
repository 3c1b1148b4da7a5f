@echo off
setlocal
rem A start script with variables
set "MODEL=E:\models\qwen.gguf"
set PORT=10050
cd /d "%~dp0"
start "qwen" /min llama-server.exe ^
  -m "%MODEL%" ^
  --port %PORT% --embeddings
pause
