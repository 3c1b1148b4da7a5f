"""How the tokens of a chat are counted, by each kind of engine."""

from __future__ import annotations

import json

import pytest

from modelyard.dialects.base import UnreadableAnswer
from modelyard.dialects.tokens import COUNT_PATH, counted, question
from modelyard.engines.quirks import COUNTS_BY_ANSWERING, Quirks


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (b'{"input_tokens":14,"object":"response.input_tokens"}', 14),
        (b'{"count":7,"max_model_len":4096,"tokens":[1,2]}', 7),
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}', 3),
        (b'{"usage":{"input_tokens":3,"cache_read_input_tokens":20}}', 23),
    ],
)
def test_every_engines_count_is_understood(answer: bytes, tokens: int) -> None:
    assert counted(answer) == tokens


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"usage":{}}', b'{"count":"many"}'])
def test_what_is_no_count_is_not_taken_for_one(answer: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        counted(answer)


def test_the_question_is_answered_with_one_token_where_nothing_counts() -> None:
    asked = question({"model": "m", "stream": True, "max_completion_tokens": 99, "tools": []})

    assert json.loads(asked) == {"model": "m", "stream": False, "max_tokens": 1, "tools": []}


def test_an_engine_without_a_route_for_it_is_asked_on_the_chats_own() -> None:
    elsewhere = Quirks(base="/api/v3", requests={"/v1/chat/completions": bytes.upper})

    assert COUNTS_BY_ANSWERING.path(COUNT_PATH) == "/v1/chat/completions"
    assert elsewhere.path(COUNT_PATH) == "/api/v3/chat/completions"
    assert elsewhere.request(COUNT_PATH, b"x") == b"X"
    assert Quirks(paths={COUNT_PATH: "/tokenize"}).path(COUNT_PATH) == "/tokenize"
