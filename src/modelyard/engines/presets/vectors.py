"""Programs that serve embeddings and rerank.

Sources, as of autumn 2026:
- Text Embeddings Inference (`tei`): huggingface/text-embeddings-inference, CLI arguments
  (`--model-id --hostname --port --dtype`); its OpenAPI document: `/v1/embeddings` as OpenAI's,
  `/rerank` with `query` and `texts`.
- infinity: michaelfeil/infinity, `infinity_server.py`: `/health` has no prefix, `/embeddings` and
  `/rerank` have that of `--url-prefix`; a request that names no deployed model is refused (400).
"""

from __future__ import annotations

from types import MappingProxyType

from modelyard.engines.presets.base import Preset
from modelyard.engines.quirks import Quirks, rerank_from_list, tei_rerank_request

TEI = Preset(
    "tei",
    program=("text-embeddings-router",),
    arguments=("--model-id", "{model}", "--hostname", "{host}", "--port", "{port}"),
    filled=frozenset({"model_id", "hostname", "port"}),
    quirks=Quirks(
        paths=MappingProxyType({"/v1/rerank": "/rerank"}),
        requests=MappingProxyType({"/v1/rerank": tei_rerank_request}),
        answers=MappingProxyType({"/v1/rerank": rerank_from_list}),
    ),
    assigns=MappingProxyType({"dtype": "dtype"}),
)

INFINITY = Preset(
    "infinity",
    program=("infinity_emb", "v2"),
    arguments=(
        *("--model-id", "{model}", "--served-model-name", "{alias}"),
        *("--host", "{host}", "--port", "{port}", "--url-prefix", "/v1"),
    ),
    filled=frozenset({"model_id", "served_model_name", "host", "port", "url_prefix"}),
    quirks=Quirks(served_name="{alias}"),
    assigns=MappingProxyType({"dtype": "dtype"}),
)
