"""Texts to tokens, and tokens of many requests to one batch.

Laws of this file:
- The model's own library turns a text into tokens, with its prompt, its template and its special
  tokens, so that the vectors are those that the library gives. Only the padding is ours, because
  it takes place when a batch is known.
- An input that is too long is an error that names it, or is cut the way the library cuts, as the
  request and the settings say; it is never cut in silence.
- Texts are read in one thread: the tokenizers keep their truncation in themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.terms import Cut, Lane, Prepared, Row

CHUNK = 128
"""Texts that are read at once."""
CHARACTERS_PER_TOKEN = 1000
"""No tokenizer spends fewer tokens than one on as many characters; a longer text is not read."""
UNLIMITED = 10_000_000
"""Tokenizers that know no limit say one beyond this."""

Numbers = npt.NDArray[np.int64]
Text = str | tuple[str, str]
"""A text, or a query and a document that are read together."""


class TextReader:
    """Reads for one model of sentence-transformers (any of its kinds)."""

    def __init__(self, model: Any) -> None:
        self._model = model
        tokenizer = model.tokenizer
        side = getattr(tokenizer, "padding_side", "right")
        self._pads_left = side == "left"
        self._padding = {
            "input_ids": getattr(tokenizer, "pad_token_id", None) or 0,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", None) or 0,
        }
        longest = model.max_seq_length
        self.limit: int | None = None
        """Tokens that the model takes; None knows no limit."""
        if longest is not None and longest < UNLIMITED:
            self.limit = int(longest)

    def texts(
        self, texts: Sequence[Text], prompt: str | None, task: str | None, cut: Cut
    ) -> list[Prepared]:
        """Raises Refused for a text that is too long or has no tokens."""
        prepared: list[Prepared] = []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            self._check_characters(chunk, start)
            found = self._read(chunk, prompt, task, {"truncation": False})
            limit = self._limit(cut)
            if limit is not None and any(each.length > limit for each in found):
                if cut.is_error:
                    at, each = next((i, e) for i, e in enumerate(found) if e.length > limit)
                    raise too_long(start + at, each.length, limit)
                found = self._read(chunk, prompt, task, {"max_length": limit})
            prepared += found
        for at, each in enumerate(prepared):
            if not each.length:
                raise Refused(f"input {at} has no tokens", param="input")
        return prepared

    def as_the_model_cuts(
        self, texts: Sequence[Text], prompt: str | None, task: str | None
    ) -> list[Prepared]:
        """For models whose lengths are part of what they are: late interaction."""
        prepared: list[Prepared] = []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            self._check_characters(chunk, start)
            prepared += self._read(chunk, prompt, task, {})
        return prepared

    def tokens(self, rows: Sequence[Sequence[int]], task: str | None, cut: Cut) -> list[Prepared]:
        """Inputs that are tokens already, taken as they are. Raises Refused."""
        (example,) = self._read(["a"], None, task, {"truncation": False})
        unknown = example.row.keys() - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise Refused(
                f"this model reads more than tokens ({', '.join(sorted(unknown))}); send texts",
                param="input",
            )
        vocabulary = self._vocabulary()
        limit = self._limit(cut)
        prepared: list[Prepared] = []
        for at, row in enumerate(rows):
            if limit is not None and len(row) > limit:
                if cut.is_error:
                    raise too_long(at, len(row), limit)
                row = row[:limit]
            if min(row) < 0 or max(row) >= vocabulary:
                raise Refused(
                    f"input {at} has a token that this model does not know; its tokens are 0 to "
                    f"{vocabulary - 1}, and those of other models mean nothing to it",
                    param="input",
                )
            ids = np.asarray(row, dtype=np.int64)
            values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            values["token_type_ids"] = np.zeros_like(ids)
            kept = {name: values[name] for name in example.row}
            prepared.append(Prepared(example.lane, len(row), kept))
        return prepared

    def batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the model's modules take, padded to the longest."""
        lane = rows[0].lane
        assert isinstance(lane, Lane), "rows are those of `texts` or `tokens`"
        values = [row.row for row in rows if isinstance(row.row, Mapping)]
        lengths = [row.length for row in rows]
        if lane.is_flat:
            offsets = np.cumsum([0, *lengths[:-1]])
            features = {
                "input_ids": np.concatenate([each["input_ids"] for each in values]),
                "offsets": offsets,
            }
        else:
            features = {name: self._padded(name, values, max(lengths)) for name in values[0]}
        return {name: torch.from_numpy(array) for name, array in features.items()} | dict(
            lane.common
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as the model gets them, without a prompt or a template."""
        tokenizer = self._model.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # static embeddings have the bare tokenizer
            return [int(one) for one in tokenizer.encode(text, add_special_tokens=False).ids]
        return [int(one) for one in tokenizer(text)["input_ids"]]

    # ------------------------------------------------------------------------------------- helpers

    def _limit(self, cut: Cut) -> int | None:
        limits = [limit for limit in (self.limit, cut.tokens) if limit is not None]
        return min(limits, default=None)

    def _check_characters(self, texts: Sequence[Text], start: int) -> None:
        most = (self.limit or UNLIMITED) * CHARACTERS_PER_TOKEN
        for at, text in enumerate(texts, start):
            characters = len(text) if isinstance(text, str) else sum(map(len, text))
            if characters > most:
                raise Refused(
                    f"input {at} has {characters} characters, and the model reads {self.limit} "
                    "tokens; send less",
                    param="input",
                )

    def _read(
        self, texts: Sequence[Text], prompt: str | None, task: str | None, text: dict[str, Any]
    ) -> list[Prepared]:
        named = {} if task is None else {"task": task}
        features = self._model.preprocess(
            list(texts), prompt=prompt, processing_kwargs={"text": text}, **named
        )
        return list(_rows(dict(features), len(texts), task))

    def _padded(
        self, name: str, values: Sequence[Mapping[str, Numbers]], width: int
    ) -> npt.NDArray[Any]:
        first = values[0][name]
        array = np.full((len(values), width), self._padding.get(name, 0), dtype=first.dtype)
        for at, each in enumerate(values):
            row = each[name]
            if self._pads_left:
                array[at, width - len(row) :] = row
            else:
                array[at, : len(row)] = row
        return array

    def _vocabulary(self) -> int:
        backbone = self._model.transformers_model
        if backbone is not None:
            return int(backbone.get_input_embeddings().num_embeddings)
        embedding = getattr(self._model[0], "embedding", None)
        return int(getattr(embedding, "num_embeddings", 0))


def too_long(at: int, length: int, limit: int) -> Refused:
    return Refused(
        f"input {at} has {length} tokens, and at most {limit} are read; shorten it, or have it cut "
        "with truncate_prompt_tokens: -1 (in the configuration: overlong: truncate)",
        code="context_length_exceeded",
        param="input",
    )


def _rows(features: dict[str, Any], count: int, task: str | None) -> Iterator[Prepared]:
    """The single inputs of what the library made of a batch, without its padding."""
    if "offsets" in features:
        ids, offsets = features["input_ids"].numpy(), features["offsets"].tolist()
        for first, last in zip(offsets, [*offsets[1:], len(ids)], strict=True):
            yield Prepared(Lane(task, (), True), last - first, {"input_ids": ids[first:last]})
        return
    arrays = {
        name: value.numpy()
        for name, value in features.items()
        if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[0] == count
    }
    common = {name: value for name, value in features.items() if name not in arrays}
    lane = Lane(task, tuple(sorted(common.items())))
    seen = arrays["attention_mask"].astype(bool)
    if "query_expansion_positions" in arrays:
        seen = seen | arrays["query_expansion_positions"].astype(bool)
    for at in range(count):
        places = np.flatnonzero(seen[at])
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        row = {name: array[at, first:last] for name, array in arrays.items()}
        yield Prepared(lane, last - first, row)
