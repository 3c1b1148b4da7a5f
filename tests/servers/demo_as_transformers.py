"""The demo's trained embedding model and reranker as folders that transformers reads.

They come with Modelyard (MIT), were trained, and are read by llama.cpp too: what two engines say
about the same weights can be compared. Both are BERT; their GGUF files tell all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # noqa: TID253  # used by tests that compare with it
from gguf import GGUFReader
from gguf.quants import dequantize
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

_WORD = "▁"
"""What GGUF puts before a token that begins a word; WordPiece marks the others, with `##`."""
_BLOCK = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_WHOLE = {
    "token_embd.weight": "embeddings.word_embeddings.weight",
    "position_embd.weight": "embeddings.position_embeddings.weight",
    "token_types.weight": "embeddings.token_type_embeddings.weight",
    "token_embd_norm.weight": "embeddings.LayerNorm.weight",
    "token_embd_norm.bias": "embeddings.LayerNorm.bias",
    "cls.weight": "pooler.dense.weight",
    "cls.bias": "pooler.dense.bias",
    "cls.output.weight": "classifier.weight",
    "cls.output.bias": "classifier.bias",
}


def embedder(file: Path, folder: Path) -> None:
    """Mean pooling and unit vectors, as the server of llama.cpp gives them."""
    reader = GGUFReader(file)
    _save(reader, folder / "bert", BertModel, add_pooling_layer=False)
    modules = [Transformer(str(folder / "bert")), Pooling(_number(reader, "embedding_length"))]
    model = SentenceTransformer(modules=[*modules, Normalize()], device="cpu")
    model.save_pretrained(str(folder / "model"), create_model_card=False)


def reranker(file: Path, folder: Path) -> None:
    reader = GGUFReader(file)
    _save(reader, folder / "bert", BertForSequenceClassification, num_labels=1)
    model = CrossEncoder(str(folder / "bert"), device="cpu")
    model.save_pretrained(str(folder / "model"), create_model_card=False)


def _save(reader: GGUFReader, folder: Path, kind: Callable[..., Any], **more: Any) -> None:
    config = BertConfig(
        vocab_size=_number(reader, "vocab_size"),
        hidden_size=_number(reader, "embedding_length"),
        num_hidden_layers=_number(reader, "block_count"),
        num_attention_heads=_number(reader, "attention.head_count"),
        intermediate_size=_number(reader, "feed_forward_length"),
        max_position_embeddings=_number(reader, "context_length"),
        layer_norm_eps=float(reader.fields["bert.attention.layer_norm_epsilon"].contents()),
        hidden_act="gelu_pytorch_tanh",
        num_labels=more.pop("num_labels", 1),
    )
    model = kind(config, **more)
    is_bare = isinstance(model, BertModel)
    state: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name.endswith("token_type_embeddings.weight"):
            values = values.reshape(1, -1).repeat(2, 1)  # the library tells pairs apart
        state[name if is_bare or name.startswith("classifier") else f"bert.{name}"] = values
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    _tokenizer(reader).save_pretrained(folder)


def _name(gguf: str) -> str:
    if gguf in _WHOLE:
        return _WHOLE[gguf]
    _, at, part, kind = gguf.split(".")
    return f"encoder.layer.{at}.{_BLOCK[part]}.{kind}"


def _tokenizer(reader: GGUFReader) -> BertTokenizerFast:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    vocabulary = {_piece(token): at for at, token in enumerate(tokens)}
    return BertTokenizerFast(
        vocab=vocabulary,
        do_lower_case=True,
        strip_accents=True,
        model_max_length=_number(reader, "context_length"),
    )


def _piece(token: str) -> str:
    if token.startswith(_WORD):
        return token.removeprefix(_WORD)
    return token if token.startswith("[") and token.endswith("]") else f"##{token}"


def _number(reader: GGUFReader, key: str) -> int:
    return int(reader.fields[f"bert.{key}"].contents())
