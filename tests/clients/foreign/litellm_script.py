"""LiteLLM as a client, through OpenAI's, Ollama's and the rerank dialects, as JSON.

Run by tests/clients/test_foreign_clients.py in an environment of its own: the address, then the
model to chat with, the one that calls tools, the one that embeds, and the one that ranks.
"""

import json
import sys

import litellm

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
TEXTS = ["A cat sits on the mat.", "The stock market fell today."]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
RICE = ["The train leaves at noon.", "Rice is cooked in boiling water for fifteen minutes."]


def chats(provider: str, base: str, chat: str, caller: str) -> dict[str, object]:
    known = {"api_base": base, "api_key": "any", "max_retries": 0, "timeout": 60}
    model = f"{provider}/{chat}"
    whole = litellm.completion(model=model, messages=QUESTION, temperature=0, **known)
    parts = list(
        litellm.completion(model=model, messages=QUESTION, temperature=0, stream=True, **known)
    )
    called = litellm.completion(
        model=f"{provider}/{caller}", messages=QUESTION, tools=[TOOL], **known
    )
    calls = called.choices[0].message.tool_calls or []
    try:
        litellm.completion(model=f"{provider}/nobody", messages=QUESTION, **known)
        error = ""
    except Exception as refused:
        error = f"{type(refused).__name__}: {refused}"
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(part.choices[0].delta.content or "" for part in parts),
        "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
        "called": [[c.function.name, json.loads(c.function.arguments)] for c in calls],
        "error": error,
    }


def answers(url: str, chat: str, caller: str, embed: str, rerank: str) -> dict[str, object]:
    known = {"api_key": "any", "timeout": 60}
    vectors = litellm.embedding(
        model=f"openai/{embed}", input=TEXTS, api_base=f"{url}/v1", encoding_format="float", **known
    )
    ranked = [
        litellm.rerank(
            model=f"{provider}/{rerank}",
            query="How do I cook rice?",
            documents=RICE,
            top_n=1,
            api_base=base,
            **known,
        )
        for provider, base in (("cohere", f"{url}/v2/rerank"), ("jina_ai", f"{url}/v1/rerank"))
    ]
    return {
        "openai": chats("openai", f"{url}/v1", chat, caller),
        "ollama": chats("ollama_chat", url, chat, caller),
        "vectors": [len(each["embedding"]) for each in vectors.data],
        "ranked": [[result["index"] for result in each.results] for each in ranked],
    }


if __name__ == "__main__":
    print(json.dumps(answers(*sys.argv[1:])))
