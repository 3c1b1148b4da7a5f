"""The Anthropic client, answered by a real vLLM: counts, stop sequences, begun answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from modelyard.core.specs import ModelSpec

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("nothing_left")]

Model = Callable[..., ModelSpec]
Serve = Callable[..., Any]


def read(usage: anthropic.types.Usage) -> int:
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.shows(route="/v1/messages", engine="vllm", dialect="anthropic")
@pytest.mark.shows(route="/v1/messages/count_tokens", engine="vllm", dialect="anthropic")
async def test_vllm_answers_anthropics_client(model: Model, serve: Serve) -> None:
    fixed: dict[str, Any] = {"model": "tiny", "extra_body": {"temperature": 0}, "timeout": 300}
    asked: Any = [{"role": "user", "content": "the yard"}]
    begun: Any = [*asked, {"role": "assistant", "content": "one two"}]
    async with (
        serve(model("tiny")) as yard,
        anthropic.AsyncAnthropic(base_url=yard.server.url, api_key="any") as client,
    ):
        whole = await client.messages.create(**fixed, messages=asked, max_tokens=8)
        async with client.messages.stream(**fixed, messages=asked, max_tokens=8) as stream:
            streamed = await stream.get_final_message()
        text = "".join(block.text for block in whole.content if block.type == "text")
        stop = text.strip()[:3]
        stopped = await client.messages.create(
            **fixed, messages=asked, max_tokens=8, stop_sequences=[stop]
        )
        gone_on = await client.messages.create(**fixed, messages=begun, max_tokens=4)
        counts = [
            (await client.messages.count_tokens(model="tiny", messages=each)).input_tokens
            for each in (asked, begun)
        ]

    assert text
    assert whole.stop_reason == "max_tokens"
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in whole.content
    ]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert counts == [read(whole.usage), read(gone_on.usage)]
    assert read(streamed.usage) == read(whole.usage)
