"""The two tokenizers: byte-level BPE for the chat model, WordPiece for the encoders.

Laws of this file:
* llama.cpp must cut every text into the same token ids: the BPE uses the pre-tokenisation
  pattern that llama.cpp calls "qwen2"; the WordPiece uses BERT's lower-casing normaliser.
* Special tokens have the lowest ids, in the order of the constants below.
* Training a tokenizer is deterministic: the same texts in the same order give the same ids.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BPE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN_START, TURN_END = range(3)
BPE_PRE_NAME = "qwen2"
_BPE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
WORDPIECE_SHARED = 600
_CONTINUES = "##"
_WORD_START = "\u2581"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer that llama.cpp can repeat exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_BPE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(BPE_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_loosely(
    tokenizer: Tokenizer, text: str, cut_chance: float, rng: random.Random
) -> list[int]:
    """The ids of the text cut at random places, so that a model meets many cuts of one word."""
    ids: list[int] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or rng.random() < cut_chance:
            ids += tokenizer.encode(text[start:end]).ids
            start = end
    return ids


def bpe_merges(tokenizer: Tokenizer) -> list[str]:
    """The merges in order, each as "left right", the way GGUF stores them."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def train_wordpiece(texts: Iterable[str], vocab_size: int, hanzi: Iterable[str]) -> Tokenizer:
    """A lower-casing WordPiece tokenizer that knows all of ASCII and the given characters.

    Chinese characters are words of their own, so only ASCII needs pieces that continue a word.
    The rest of the vocabulary is the words of the texts and, for words that they do not hold,
    the beginnings and the endings that many of them share.
    """
    ascii_letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    continuing = [_CONTINUES + letter for letter in ascii_letters if letter.isalnum()]
    vocabulary = [*WORDPIECE_SPECIALS, *ascii_letters, *continuing, *sorted(set(hanzi))]
    words = _count_words(texts)
    wanted = [word for word, times in _most_common(words) if times >= 2]
    shared = _most_common(_shared_pieces(words))
    room = vocab_size - len(vocabulary)
    pieces = [piece for piece, _ in shared[: max(WORDPIECE_SHARED, room - len(wanted))]]
    known = dict.fromkeys([*vocabulary, *wanted[: room - len(pieces)], *pieces])
    return _wordpiece({token: number for number, token in enumerate(known)})


def _count_words(texts: Iterable[str]) -> Counter[str]:
    cutter = _wordpiece({})
    words: Counter[str] = Counter()
    for text in texts:
        normal = cutter.normalizer.normalize_str(text)
        words.update(word for word, _ in cutter.pre_tokenizer.pre_tokenize_str(normal))
    return Counter({word: times for word, times in words.items() if len(word) > 1})


def _shared_pieces(words: Iterable[str]) -> Counter[str]:
    pieces: Counter[str] = Counter()
    for word in words:
        if word.isascii() and word.isalpha():
            lengths = range(2, min(len(word) - 1, 6))
            pieces.update(_CONTINUES + word[-length:] for length in lengths)
            pieces.update(word[:length] for length in lengths)
    return pieces


def _most_common(counted: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def vocabulary_in_order(tokenizer: Tokenizer) -> list[str]:
    """The tokens by id."""
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def gguf_wordpiece_token(token: str) -> str:
    """How GGUF writes a WordPiece token: a word start carries a mark, a continuation none."""
    if token in WORDPIECE_SPECIALS:
        return token
    if token.startswith(_CONTINUES) and len(token) > len(_CONTINUES):
        return token[len(_CONTINUES) :]
    return _WORD_START + token
