"""From a folder and settings to a model that computes.

Laws of this file:
- Nothing is fetched: a model is what lies in its folder.
- Code in the folder runs only where the settings say so; without that, the libraries refuse models
  that need it, and pickled weights are read as weights alone.
- A folder that is another kind of model than its task needs is refused with what it is.
- The model has computed once before it counts as loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from transformers import AutoTokenizer

from modelyard.servers.lifeline import Unusable, announce
from modelyard.servers.transformers.models import (
    AnyKind,
    Embedder,
    LateInteraction,
    PairScorer,
)
from modelyard.servers.transformers.settings import Settings
from modelyard.servers.transformers.terms import DOCUMENT, QUERY, Cut, Prepared, Row

QWEN3_RERANKER: Final = """\
{%- set told = messages | selectattr("role", "equalto", "system") | map(attribute="content") -%}
{%- set asked = messages | selectattr("role", "equalto", "query") | map(attribute="content") -%}
{%- set found = messages | selectattr("role", "equalto", "document") | map(attribute="content") -%}
{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and \
the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\\n' -}}
{{- '<|im_start|>user\\n<Instruct>: ' -}}
{{- told | first | default("Given a web search query, retrieve relevant passages that answer the \
query", true) -}}
{{- '\\n<Query>: ' ~ (asked | first) ~ '\\n<Document>: ' ~ (found | first) -}}
{{- '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}
"""
"""The words that Qwen3-Reranker was trained with, from its model card (Qwen/Qwen3-Reranker-0.6B).
The checkpoints carry the chat template of the model they were made from, which knows neither
queries nor documents."""

_LATE: Final = ("MultiVectorEncoder", "ColBERT", "PyLate")
_TEMPLATE = "chat_template"


def load(folder: str, duty: str, settings: Settings) -> AnyKind:
    """Load the model for `duty` (`embedding` or `rerank`). Raises Unusable, and what the libraries
    raise."""
    path = Path(folder)
    if not path.is_dir():
        raise Unusable(f"the model {folder} is not a folder")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    transformers.logging.set_verbosity_error()
    announce("phase: loading weights")
    kind = _Files(path)
    model: AnyKind
    if duty == "embedding":
        model = _embedder(path, kind, settings)
    elif kind.made in _LATE or kind.is_late:
        model = LateInteraction(_made(MultiVectorEncoder, path, settings))
    elif kind.is_embedder:
        model = _embedder(path, kind, settings)
    else:
        model = _pair_scorer(path, kind, settings)
    announce("phase: warming up")
    _warm_up(model)
    return model


class _Files:
    """What the folder's small files say it is."""

    def __init__(self, path: Path) -> None:
        self.config = _json(path / "config.json")
        self.made = _json(path / "config_sentence_transformers.json").get("model_type")
        modules = _json(path / "modules.json", "modules").get("modules", [])
        types = [str(each.get("type", "")) for each in modules if isinstance(each, dict)]
        self.has_modules = bool(types)
        self.is_late = any(each.endswith("MultiVectorMask") for each in types)
        self.is_embedder = self.made != "CrossEncoder" and any(
            each.endswith(("Pooling", "StaticEmbedding")) for each in types
        )
        names = self.config.get("architectures")
        self.architecture = str(names[0]) if isinstance(names, list) and names else ""
        if not self.config and not self.has_modules:
            raise Unusable(f"{path} holds no model: neither config.json nor modules.json is there")


def _json(path: Path, wrap: str = "") -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"cannot read {path}: {error}") from None
    if wrap:
        return {wrap: found} if isinstance(found, list) else {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------------------------------- kinds


def _embedder(path: Path, kind: _Files, settings: Settings) -> Embedder:
    if kind.made in ("CrossEncoder", "SparseEncoder", *_LATE) or kind.is_late:
        made = kind.made or "late-interaction model"
        does = "give tasks: [rerank]" if made != "SparseEncoder" else "no route serves those"
        raise Unusable(f"{path} is a {made}, which has no single vector for a text: {does}")
    model = _made(SentenceTransformer, path, settings, truncate_dim=settings.truncate_dim)
    return Embedder(model, normalize=settings.normalize_embeddings)


def _pair_scorer(path: Path, kind: _Files, settings: Settings) -> PairScorer:
    processor = dict(settings.processor_kwargs or {})
    writes = kind.architecture.endswith("ForCausalLM")
    if settings.chat_template is not None:
        processor[_TEMPLATE] = settings.chat_template
    elif writes and _TEMPLATE not in processor and not _renders_pairs(path, settings):
        if not _speaks_chatml(path, settings):
            raise Unusable(
                f"the chat template of {path} shows neither query nor document; give one with "
                "the option chat_template_file"
            )
        processor[_TEMPLATE] = QWEN3_RERANKER
    model = _made(CrossEncoder, path, settings, processor_kwargs=processor)
    if model.num_labels != 1:
        raise Unusable(
            f"{path} gives {model.num_labels} scores for a text: it sorts into classes and does "
            "not rank; a reranker gives one"
        )
    return PairScorer(model)


def _renders_pairs(path: Path, settings: Settings) -> bool:
    """Whether the model's own template shows both parts of a pair."""
    tokenizer = _tokenizer(path, settings)
    if tokenizer.chat_template is None:
        return False
    pair = [{"role": QUERY, "content": "Qx7q"}, {"role": DOCUMENT, "content": "Dx7d"}]
    try:
        text = tokenizer.apply_chat_template(pair, tokenize=False)
    except Exception:  # a template of somebody else's can raise anything; then it renders no pairs
        return False
    return "Qx7q" in text and "Dx7d" in text


def _speaks_chatml(path: Path, settings: Settings) -> bool:
    tokenizer = _tokenizer(path, settings)
    return "<|im_start|>" in tokenizer.get_vocab()


def _tokenizer(path: Path, settings: Settings) -> Any:
    return AutoTokenizer.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=settings.trust_remote_code
    )


def _made(kind: Callable[..., Any], path: Path, settings: Settings, **more: Any) -> Any:
    """The library's model of one of its kinds."""
    named: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": settings.trust_remote_code,
        "model_kwargs": _model_kwargs(settings),
        "processor_kwargs": settings.processor_kwargs or {},
        "config_kwargs": settings.config_kwargs,
        "prompts": settings.prompts,
        "default_prompt_name": settings.default_prompt_name,
        **more,
    }
    if "device_map" not in named["model_kwargs"]:
        named["device"] = settings.device
    model = kind(str(path), **named)
    if isinstance(settings.max_seq_length, int):
        model.max_seq_length = settings.max_seq_length
    for module in model.modules():
        if hasattr(module, "unpad_inputs"):
            module.unpad_inputs = False  # batches are ours to pad
    return model.eval()


def _model_kwargs(settings: Settings) -> dict[str, Any]:
    kwargs = dict(settings.model_kwargs or {})
    if settings.dtype is not None:
        kwargs["dtype"] = settings.dtype
    if settings.attn_implementation is not None:
        kwargs["attn_implementation"] = settings.attn_implementation
    if settings.max_memory is not None:
        kwargs["device_map"] = kwargs.get("device_map", "auto")
        kwargs["max_memory"] = {
            int(name) if name.isdecimal() else name: most
            for name, most in settings.max_memory.items()
        }
    if settings.offload_folder is not None:
        kwargs["offload_folder"] = settings.offload_folder
    return kwargs


# ----------------------------------------------------------------------------------------- warm-up


def _warm_up(model: AnyKind) -> None:
    """Compute once: what does not work is found now, and the first client waits less."""
    cut = Cut(is_error=False)
    prepared: list[Prepared]
    if isinstance(model, Embedder):
        prepared = model.read(["warm up"], None, None, cut)
    elif isinstance(model, LateInteraction):
        prepared = model.read_as(["warm up"], QUERY, cut)
    else:
        prepared = model.read([("warm", "up")], None, cut)
    model.compute([Row(each.lane, each.length, each.row) for each in prepared])
    model.computed()
