"""LangChain, through OpenAI's dialect and through Ollama's: what it makes of our answers, as JSON.

Run by tests/clients/test_foreign_clients.py in an environment of its own: the address, then the
model to chat with, the one that calls tools, and the one that embeds.
"""

import json
import sys
from typing import Literal

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

QUESTION = "What is 2 + 3?"
TEXTS = ["A cat sits on the mat.", "The stock market fell today."]


class Choice(BaseModel):
    """A choice; small models ramble where anything else is allowed."""

    colour: Literal["red", "blue"]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"warm in {city}"


WEATHER = tool(weather)


def through_openai(url: str, chat: str, caller: str, embed: str) -> dict[str, object]:
    known = {"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60}
    model = ChatOpenAI(model=chat, temperature=0, stream_usage=True, **known)
    called, answered = with_tool(ChatOpenAI(model=caller, **known))
    embeddings = OpenAIEmbeddings(model=embed, check_embedding_ctx_length=False, **known)
    try:
        ChatOpenAI(model="nobody", **known).invoke(QUESTION)
        error = ""
    except Exception as refused:
        error = f"{type(refused).__name__}: {refused}"
    limited = ChatOpenAI(model=chat, temperature=0, max_tokens=200, **known)
    structured = limited.with_structured_output(Choice, method="json_schema").invoke(QUESTION)
    return {
        **said(model),
        "called": called,
        "answered": answered,
        "structured": isinstance(structured, Choice),
        "vectors": [len(vector) for vector in embeddings.embed_documents(TEXTS)],
        "error": error,
    }


def through_ollama(url: str, chat: str, caller: str, embed: str) -> dict[str, object]:
    known = {"base_url": url}
    called, answered = with_tool(ChatOllama(model=caller, **known))
    try:
        ChatOllama(model="nobody", **known).invoke(QUESTION)
        error = ""
    except Exception as refused:
        error = f"{type(refused).__name__}: {refused}"
    limited = ChatOllama(model=chat, temperature=0, num_predict=200, **known)
    structured = limited.with_structured_output(Choice, method="json_schema").invoke(QUESTION)
    embeddings = OllamaEmbeddings(model=embed, **known)
    return {
        **said(ChatOllama(model=chat, temperature=0, validate_model_on_init=True, **known)),
        "called": called,
        "answered": answered,
        "structured": isinstance(structured, Choice),
        "vectors": [len(vector) for vector in embeddings.embed_documents(TEXTS)],
        "error": error,
    }


def said(model: ChatOpenAI | ChatOllama) -> dict[str, object]:
    whole = model.invoke(QUESTION)
    parts: list[AIMessageChunk] = list(model.stream(QUESTION))
    together = parts[0]
    for part in parts[1:]:
        together += part
    return {
        "whole": whole.text,
        "streamed": together.text,
        "parts": len(parts),
        "usage": [whole.usage_metadata, together.usage_metadata],
    }


def with_tool(model: ChatOpenAI | ChatOllama) -> tuple[list[object], str]:
    bound = model.bind_tools([WEATHER])
    asked = HumanMessage("How is the weather in Rome?")
    first = bound.invoke([asked])
    results = [
        ToolMessage(WEATHER.invoke(call["args"]), tool_call_id=call["id"])
        for call in first.tool_calls
    ]
    calls: list[object] = [[call["name"], call["args"]] for call in first.tool_calls]
    return calls, bound.invoke([asked, first, *results]).text


if __name__ == "__main__":
    models = sys.argv[1:]
    print(json.dumps({"openai": through_openai(*models), "ollama": through_ollama(*models)}))
