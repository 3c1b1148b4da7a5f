CREATE TABLE models (id INTEGER PRIMARY KEY, original_name TEXT UNIQUE NOT NULL, created_at TIMESTAMP);
CREATE TABLE model_requests (id INTEGER PRIMARY KEY, model_id INTEGER, start_time REAL, end_time REAL,
  input_tokens INTEGER, output_tokens INTEGER, cache_n INTEGER, prompt_n INTEGER);
CREATE TABLE system_settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at TIMESTAMP);
CREATE TABLE model_defs (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, mode TEXT NOT NULL, port INTEGER NOT NULL,
  auto_start INTEGER NOT NULL DEFAULT 0, pricing_type TEXT NOT NULL DEFAULT 'tier', hourly_price REAL NOT NULL DEFAULT 0,
  support_cache INTEGER NOT NULL DEFAULT 0, ord INTEGER NOT NULL DEFAULT 0, updated_at TIMESTAMP);
CREATE TABLE model_aliases (model_id INTEGER, alias TEXT UNIQUE, ord INTEGER);
CREATE TABLE model_schemes (id INTEGER PRIMARY KEY, model_id INTEGER, config_source TEXT,
  required_devices TEXT, memory_mb TEXT, command TEXT, ord INTEGER);
CREATE TABLE pricing_tiers (pricing_id INTEGER, tier_index INTEGER, min_input INTEGER, max_input INTEGER,
  min_output INTEGER, max_output INTEGER, input_price REAL, output_price REAL, cache_write_price REAL, cache_read_price REAL);
CREATE TABLE log_lines (id INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE cloud_providers (id INTEGER PRIMARY KEY, name TEXT, api_key TEXT);
INSERT INTO system_settings (key, value) VALUES
  ('host', '127.0.0.1'), ('port', '8090'), ('alive_time', '30'), ('log_level', 'INFO'),
  ('log_retention_days', '30'), ('log_retention_count', '10'), ('claude_settings_path', ''),
  ('wol_broadcast', '255.255.255.255'), ('wol_mac', ''), ('claude_configs', '[]');
INSERT INTO model_defs (id, name, mode, port, auto_start, pricing_type, hourly_price, support_cache, ord) VALUES
  (1, 'second', 'Embedding', 8002, 0, 'hourly', 1.5, 0, 2), (2, 'first', 'Chat', 8001, 1, 'tier', 0, 1, 1);
INSERT INTO model_aliases VALUES (2, 'qwen-small', 2), (2, 'qwen', 1), (1, 'vectors', 1);
INSERT INTO model_schemes (model_id, config_source, required_devices, memory_mb, command, ord) VALUES
  (2, 'slow', '["cpu"]', '{"cpu": 8000}',
   '{"exe": "llama-server", "args": ["-m", "/m/q.gguf", "--port", "{{port}}"], "env": {}, "cwd": null, "conda_env": null}', 2),
  (2, 'fast', '["rtx 4060"]', '{"rtx 4060": 6144}',
   '{"exe": "llama-server", "args": ["-m", "/m/q.gguf", "-ngl", "99", "--port", "{{port}}", "-a", "{{alias}}"], "env": {"GGML_CUDA_GRAPH_OPT": "1"}, "cwd": "/tmp", "conda_env": "llm"}', 1),
  (1, 'default', '["CPU"]', '{"CPU": 0}', '{"exe": "embed-server", "args": ["--port={{port}}"], "env": {}, "cwd": null, "conda_env": null}', 1);
INSERT INTO pricing_tiers VALUES (2, 1, 0, 1000, 0, NULL, 0.5, 1.5, 0.1, 0.05), (2, 2, 1000, NULL, 0, NULL, 1.0, 3.0, 0.1, 0.05);
INSERT INTO models (id, original_name) VALUES (1, 'first'), (2, 'gone');
INSERT INTO model_requests (model_id, start_time, end_time, input_tokens, output_tokens, cache_n, prompt_n) VALUES
  (1, 100.0, 101.0, 10, 20, 4, 6), (1, 200.0, 203.0, 30, 40, 0, 30), (2, 1.0, 2.0, 5, 5, 0, 5);
INSERT INTO log_lines (text) VALUES ('a'), ('b');
INSERT INTO cloud_providers (name, api_key) VALUES ('openrouter', 'sk-very-secret');
