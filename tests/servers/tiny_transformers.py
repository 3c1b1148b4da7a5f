"""Tiny checkpoints with random weights, of every kind that the engine `transformers` serves.

Run it as a script to make them in a folder: `python tests/servers/tiny_transformers.py FOLDER`.
The same seed gives the same weights, so what is said about them stays true.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: TID253  # run as a script, and by tests that compare with it
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPOKEN = (
    "the a of to and in is it was for on that with as at by from bread bake flour water yeast knead"
    " moon orbits earth sun star planet cat dog sat mat how what when where why who paris berlin "
    "city river runs query passage search document"
)
WORDS = SPOKEN.split()
LONGEST = 64
"""Tokens that the tiny encoders read."""
WIDTH = 32
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""A chat model's template; it would show a query and a document as two strangers' turns."""
TURNS = (
    "{%- for message in messages -%}{%- if message.role in ('system', 'user', 'assistant') -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""As Qwen3's does: other roles than a chat's are passed over."""


def make_all(folder: Path) -> None:
    """Every kind in a folder of its name."""
    torch.manual_seed(7)
    encoder = folder / "encoder"
    _encoder(encoder)
    _sentence(encoder, folder / "mean", "mean")
    _sentence(encoder, folder / "cls-normalized", "cls", Normalize())
    _sentence(
        encoder,
        folder / "prompted",
        "mean",
        Dense(WIDTH, 24),
        Normalize(),
        prompts={"query": "query: ", "document": "passage: ", "search": "search for "},
        default="search",
    )
    _static(encoder, folder / "static")
    _cross(encoder, folder / "cross", labels=1)
    _cross(encoder, folder / "classes", labels=3)
    _late(encoder, folder / "late")
    _writer(folder / "qwen3-reranker", TURNS)
    _writer(folder / "qwen3-chat", CHATML)
    _writer(folder / "qwen3-base", None)


def _tokenizer() -> BertTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789:,.?!"
    vocabulary = [*pieces, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    return BertTokenizerFast(
        vocab={word: at for at, word in enumerate(dict.fromkeys(vocabulary))},
        model_max_length=LONGEST,
    )


def _bert(tokenizer: Any, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=LONGEST, initializer_range=0.3, **more,
    )  # fmt: skip


def _encoder(folder: Path) -> None:
    tokenizer = _tokenizer()
    BertModel(_bert(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sentence(
    encoder: Path,
    folder: Path,
    pooling: str,
    *more: Any,
    prompts: dict[str, str] | None = None,
    default: str | None = None,
) -> None:
    modules = [Transformer(str(encoder)), Pooling(WIDTH, pooling), *more]
    model = SentenceTransformer(
        modules=modules, prompts=prompts, default_prompt_name=default, device="cpu"
    )
    model.save_pretrained(str(folder), create_model_card=False)


def _static(encoder: Path, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    module = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )


def _cross(encoder: Path, folder: Path, labels: int) -> None:
    tokenizer = _tokenizer()
    config = _bert(tokenizer, num_labels=labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(folder), create_model_card=False)


def _late(encoder: Path, folder: Path) -> None:
    reader = Transformer(
        str(encoder),
        query_length=16,
        document_length=48,
        query_expansion={"strategy": "fixed", "attend": False, "length": 16},
    )
    modules = [
        reader,
        Dense(
            WIDTH, 12, module_input_name="token_embeddings", module_output_name="token_embeddings"
        ),
        MultiVectorMask(skiplist_words=[",", "."]),
        Normalize(),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)


def _writer(folder: Path, template: str | None) -> None:
    """A causal language model; with its name in mind, what it says is a reranker's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SPOKEN, "yes no yes no yes no"], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    if template is not None:
        whole.chat_template = template
    config = Qwen3Config(
        vocab_size=len(whole), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        initializer_range=0.3, eos_token_id=whole.eos_token_id, pad_token_id=whole.pad_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    whole.save_pretrained(folder)


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    make_all(folder)
    print(json.dumps(sorted(each.name for each in folder.iterdir())))


if __name__ == "__main__":
    main(sys.argv[1:])
