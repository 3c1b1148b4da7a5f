"""What clients send, checked: each body becomes one frozen value or a `Refused`.

Laws of this file:
- Only what changes an answer is read; other fields are let pass, as OpenAI's and Cohere's clients
  send some that mean nothing here.
- Sources: OpenAI's API reference ("Create embeddings"); Cohere's and Jina's for rerank; vLLM's
  documentation of its pooling routes for `truncate_prompt_tokens` and score; Cohere's `input_type`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.terms import DOCUMENT, QUERY, Cut

_INPUT_TYPES = {
    "query": QUERY,
    "search_query": QUERY,
    "document": DOCUMENT,
    "passage": DOCUMENT,
    "search_document": DOCUMENT,
}
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Cuttable(msgspec.Struct, frozen=True, kw_only=True):
    model: Any = None
    """The name by which the client knows the model; whoever sent it here has looked at it."""
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Cut inputs to so many tokens; -1: to as many as the model takes."""
    truncate: bool | None = None
    """The same, without a number."""

    def cut(self, overlong: str) -> Cut:
        """How inputs are cut, where the settings say `overlong`. Raises Refused."""
        tokens = self.truncate_prompt_tokens
        if tokens == 0:
            raise Refused(
                "truncate_prompt_tokens: 0 would leave nothing", param="truncate_prompt_tokens"
            )
        if tokens is not None:
            return Cut(is_error=False, tokens=tokens if tokens > 0 else None)
        if self.truncate is not None:
            return Cut(is_error=not self.truncate)
        return Cut(is_error=overlong == "error")


class Embeddings(_Cuttable, frozen=True, kw_only=True):
    input: str | list[Any]
    """A text, texts, tokens, or several lists of tokens."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    prompt_name: str | None = None
    input_type: str | None = None

    @property
    def task(self) -> str | None:
        if self.input_type is None:
            return None
        if self.input_type not in _INPUT_TYPES:
            known = ", ".join(_INPUT_TYPES)
            raise Refused(
                f"input_type cannot be {self.input_type!r}; write one of {known}",
                param="input_type",
            )
        return _INPUT_TYPES[self.input_type]

    def texts_or_tokens(self, most: int) -> tuple[list[str], list[list[int]]]:
        """One of the two lists is filled. Raises Refused."""
        given = [self.input] if isinstance(self.input, str) else self.input
        if given and all(type(each) is int for each in given):
            given = [given]
        _check_count(len(given), most, "input")
        if isinstance(given[0], str):
            return _texts(given), []
        for at, each in enumerate(given):
            if not isinstance(each, list) or not all(type(one) is int for one in each):
                raise Refused(f"input {at} is neither a text nor a list of tokens", param="input")
            if not each:
                raise Refused(f"input {at} has no tokens", param="input")
        return [], [list(each) for each in given]


class Rerank(_Cuttable, frozen=True, kw_only=True):
    query: str
    documents: list[Any]
    top_n: Positive | None = None
    top_k: Positive | None = None
    """An older name for the same."""
    return_documents: bool = False
    instruction: str | None = None
    raw_scores: bool = False

    def texts(self, most: int) -> list[str]:
        """Raises Refused."""
        return _documents(self.documents, most, "documents")


class Scores(_Cuttable, frozen=True, kw_only=True):
    """One text with each of many, or each of many with its counterpart."""

    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    """vLLM's newer names of the two."""
    documents: Any = None
    instruction: str | None = None
    raw_scores: bool = False

    def pairs(self, most: int) -> list[tuple[str, str]]:
        """Raises Refused."""
        left_name, left = self._side("text_1", self.text_1, "queries", self.queries)
        right_name, right = self._side("text_2", self.text_2, "documents", self.documents)
        lefts = _documents(left, most, left_name)
        rights = _documents(right, most, right_name)
        if len(lefts) == 1:
            lefts *= len(rights)
        if len(lefts) != len(rights):
            raise Refused(
                f"{left_name} has {len(lefts)} texts and {right_name} {len(rights)}: send one with "
                "many, or as many of both",
                param=left_name,
            )
        return list(zip(lefts, rights, strict=True))

    @staticmethod
    def _side(name: str, value: Any, other_name: str, other: Any) -> tuple[str, list[Any]]:
        if value is None:
            name, value = (other_name, other) if other is not None else (name, None)
        if value is None:
            raise Refused(f"{name} is missing", param=name)
        return name, value if isinstance(value, list) else [value]


class Tokenize(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str


_Body = TypeVar("_Body", bound=msgspec.Struct)


def parse(kind: type[_Body], body: bytes) -> _Body:
    """Raises Refused."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(f"the request is not what this route takes: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}") from None


def _texts(given: list[Any]) -> list[str]:
    for at, each in enumerate(given):
        if not isinstance(each, str):
            raise Refused(f"input {at} is no text, as those before it are", param="input")
    return given


def _documents(given: list[Any], most: int, name: str) -> list[str]:
    _check_count(len(given), most, name)
    texts: list[str] = []
    for at, each in enumerate(given):
        text = each.get("text") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise Refused(
                f"{name}[{at}] must be a text, or an object with one as `text`", param=name
            )
        texts.append(text)
    return texts


def _check_count(count: int, most: int, name: str) -> None:
    if not count:
        raise Refused(f"{name} is empty", param=name)
    if count > most:
        raise Refused(
            f"{name} has {count} texts; at most {most} are taken in one request", param=name
        )
