"""Writes trained networks as GGUF files under the names and keys that llama.cpp reads.

Laws of this file:
* Matrices are stored as Q8_0 or F16 as asked, vectors always as F32.
* Rows of Q8_0 tensors are multiples of 32 long; gguf refuses others.
* A file is written beside its place and then moved there, so a reader never sees half a file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
from tokenizers import Tokenizer
from torch import nn

from training import tokenizer as tokens
from training.decoder import Decoder
from training.encoder import Encoder

LICENSE = "mit"
AUTHOR = "Modelyard"
_FILE_TYPES = {
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _add_general(
    writer: gguf.GGUFWriter, name: str, about: str, kind: gguf.GGMLQuantizationType, size: int
) -> None:
    writer.add_name(name)
    writer.add_author(AUTHOR)
    writer.add_description(about)
    writer.add_license(LICENSE)
    writer.add_languages(["en", "zh"])
    writer.add_size_label(f"{size / 1e6:.1f}M")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tensors(
    writer: gguf.GGUFWriter, network: nn.Module, kind: gguf.GGMLQuantizationType
) -> None:
    for name, weight in network.named_parameters():
        values = weight.detach().numpy().astype(numpy.float32)
        if values.ndim == 1 or name.startswith(("position_embd", "token_types")):
            writer.add_tensor(name, values)
        elif kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, values.astype(numpy.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _finish(writer: gguf.GGUFWriter, partial: Path, place: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(place)


def parameter_count(network: nn.Module) -> int:
    """How many numbers the network has learned."""
    return sum(weight.numel() for weight in network.parameters())


def write_chat(place: Path, network: Decoder, tokenizer: Tokenizer) -> None:
    """The chat model as a Qwen3 GGUF file."""
    kind = gguf.GGMLQuantizationType.Q8_0
    partial = place.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    shape = network.shape
    about = "A tiny chat model that demonstrates Modelyard."
    _add_general(writer, "Yard Chat", about, kind, parameter_count(network))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab)
    vocabulary = tokens.vocabulary_in_order(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.BPE_PRE_NAME)
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in tokens.BPE_SPECIALS else gguf.TokenType.NORMAL
            for token in vocabulary
        ]
    )
    writer.add_token_merges(tokens.bpe_merges(tokenizer))
    writer.add_bos_token_id(tokens.END_OF_TEXT)
    writer.add_eos_token_id(tokens.TURN_END)
    writer.add_eot_token_id(tokens.TURN_END)
    writer.add_pad_token_id(tokens.END_OF_TEXT)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    _add_tensors(writer, network, kind)
    _finish(writer, partial, place)


def write_encoder(
    place: Path, network: Encoder, tokenizer: Tokenizer, *, name: str, about: str
) -> None:
    """An embedding model or a reranker as a BERT GGUF file."""
    kind = gguf.GGMLQuantizationType.Q8_0
    partial = place.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "bert")
    shape = network.shape
    _add_general(writer, name, about, kind, parameter_count(network))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.norm_epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if shape.ranks else gguf.PoolingType.MEAN)
    writer.add_vocab_size(shape.vocab)
    if shape.ranks:
        writer.add_classifier_output_labels(["relevance"])
    vocabulary = tokens.vocabulary_in_order(tokenizer)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokens.gguf_wordpiece_token(token) for token in vocabulary])
    writer.add_token_types(
        [
            gguf.TokenType.UNKNOWN
            if token == "[UNK]"
            else gguf.TokenType.CONTROL
            if token in tokens.WORDPIECE_SPECIALS
            else gguf.TokenType.NORMAL
            for token in vocabulary
        ]
    )
    writer.add_token_type_count(1)
    writer.add_bos_token_id(tokens.CLS)
    writer.add_eos_token_id(tokens.SEP)
    writer.add_unk_token_id(tokens.UNKNOWN)
    writer.add_sep_token_id(tokens.SEP)
    writer.add_pad_token_id(tokens.PAD)
    writer.add_mask_token_id(tokens.MASK)
    writer.add_key_value("tokenizer.ggml.cls_token_id", tokens.CLS, gguf.GGUFValueType.UINT32)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(not shape.ranks)
    writer.add_add_sep_token(shape.ranks)
    _add_tensors(writer, network, kind)
    _finish(writer, partial, place)
