"""Writes a tiny Llama with random weights, a tokenizer and a chat template into a folder.

The tests with a real vLLM run it in vLLM's own environment, whose transformers it needs:
`.venv-vllm/bin/python training/tiny_llama.py FOLDER`. The weights are the same every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 512
CONTEXT = 512
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant:"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text can be said; a few merges, so that tokens differ in length."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    built.train_from_iterator(["the trains of the yard wait for the signal"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_CHAT,
    )


def model(words: int) -> LlamaForCausalLM:
    """Two layers of 64; what it says makes no sense, and is the same every time."""
    torch.manual_seed(20260)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    words = tokenizer()
    words.save_pretrained(folder)
    # Several files, as large models have them.
    model(len(words)).save_pretrained(folder, max_shard_size="100KB")
