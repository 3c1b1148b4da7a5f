"""LlamaIndex, through OpenAI's dialect: what it makes of our answers, as JSON.

Run by tests/clients/test_foreign_clients.py in an environment of its own: the address, then the
model to chat with, the one that calls tools, and the one that embeds.
"""

import json
import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

QUESTION = "What is 2 + 3?"
TEXTS = ["A cat sits on the mat.", "The stock market fell today."]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"warm in {city}"


def answers(url: str, chat: str, caller: str, embed: str) -> dict[str, object]:
    known = {"api_base": f"{url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60.0}
    model = OpenAILike(model=chat, is_chat_model=True, temperature=0, **known)
    asked = [ChatMessage(role="user", content=QUESTION)]
    whole = model.chat(asked)
    parts = list(model.stream_chat(asked))
    calling = OpenAILike(model=caller, is_chat_model=True, is_function_calling_model=True, **known)
    called = calling.chat_with_tools(
        [FunctionTool.from_defaults(weather)], user_msg="How is the weather in Rome?"
    )
    calls = calling.get_tool_calls_from_response(called)
    completing = OpenAILike(model=chat, is_chat_model=False, temperature=0, max_tokens=24, **known)
    try:
        OpenAILike(model="nobody", is_chat_model=True, **known).chat(asked)
        error = ""
    except Exception as refused:
        error = f"{type(refused).__name__}: {refused}"
    embeddings = OpenAILikeEmbedding(model_name=embed, **known)
    return {
        "whole": whole.message.content,
        "streamed": "".join(part.delta or "" for part in parts),
        "parts": len(parts),
        "called": [[call.tool_name, call.tool_kwargs] for call in calls],
        "completed": completing.complete("Modelyard is").text,
        "vectors": [len(vector) for vector in embeddings.get_text_embedding_batch(TEXTS)],
        "error": error,
    }


if __name__ == "__main__":
    print(json.dumps(answers(*sys.argv[1:])))
