"""Whatever comes, from clients or engines, ends in an answer or in an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import to_anthropic
from modelyard.dialects.anthropic import count_tokens, models, translate
from modelyard.dialects.anthropic_reply import Reply
from modelyard.dialects.base import Asked, UnreadableAnswer

WORDS = (
    "auto", "text", "image", "tool_use", "tool_result", "thinking", "document", "base64", "url",
    "user", "assistant", "system", "tool", "enabled", "json_schema", "function", "search_result",
    "data:application/pdf;base64,x", "stop", "message_start", "content_block_start", "error",
    "content_block_delta", "message_delta", "message_stop",
)  # fmt: skip
NAMES = (
    "type", "text", "role", "content", "source", "data", "media_type", "id", "name", "input",
    "tool_use_id", "function", "arguments", "tool_calls", "index", "delta", "content_block",
    "message", "usage", "stop_reason", "citations", "title", "is_error", "image_url", "url", "file",
)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional={"content": inner})
    ),
    max_leaves=12,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON}) | JSON, max_size=4)
FIELDS = (
    "system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences", "container",
    "chat_template_kwargs", "stop", "response_format", "user", "max_tokens", "stream_options",
)  # fmt: skip
REQUESTS = st.builds(
    lambda messages, fields: {"model": "m", "messages": messages, **fields},
    MESSAGES | JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
)
CHOICES = st.fixed_dictionaries({}, optional={"choices": st.lists(JSON, max_size=2), "id": JSON})
DELTAS = st.builds(lambda delta: {"choices": [{"delta": delta}]}, JSON)


@given(REQUESTS)
@settings(max_examples=80)
def test_any_request_is_translated_or_refused(request: dict[str, Any]) -> None:
    body = json.dumps(request).encode()

    for asked in (translate, count_tokens):
        with contextlib.suppress(InvalidRequest):
            made = asked(body)
            assert isinstance(made, Asked)
            assert isinstance(json.loads(made.body)["messages"], list)
    with contextlib.suppress(InvalidRequest):
        assert json.loads(to_anthropic.request(body))["max_tokens"]


@given(st.lists(CHOICES | DELTAS | JSON, max_size=5), JSON)
@settings(max_examples=80)
def test_any_answer_is_turned_or_called_unreadable(events: list[Any], whole: Any) -> None:
    stream = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events)

    for reply in (Reply("m"), to_anthropic.Reply("m", wants_usage=True)):
        with contextlib.suppress(UnreadableAnswer):
            reply.part(stream)
        assert reply.end() or reply.part(stream) == b""
    for reply in (Reply("m"), to_anthropic.Reply("m")):
        with contextlib.suppress(UnreadableAnswer):
            json.loads(reply.whole(json.dumps(whole).encode()))


@given(st.text(max_size=8), st.text(max_size=4), st.text(max_size=4))
def test_any_page_is_shown_or_refused(limit: str, after_id: str, before_id: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert models([], limit=limit, after_id=after_id, before_id=before_id)
