"""The smallest request of each task: one token, one vector, one score.

Laws of this file:
- Pure: it builds a `Call`, somebody else makes it.
- A model with several tasks is asked by the cheapest to get wrong: the order of `_BODIES`.
- Tasks whose smallest request is dear (an image, speech) or needs a file (a recording) have none:
  of such a model the health route alone is asked.

Sources of the bodies: OpenAI's API reference for chat, completions and embeddings; Jina's for
rerank; vLLM's `/classify` (entrypoints/pooling/classify) for classification. `max_tokens` is
deprecated by OpenAI for chat in favour of `max_completion_tokens`, which not all engines know; all
know the old name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from modelyard.core.specs import Call, ModelSpec, Task
from modelyard.engines.quirks import Quirks

_BODIES: Mapping[Task, tuple[str, Mapping[str, object]]] = {
    Task.COMPLETION: ("/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
    Task.CHAT: (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    ),
    Task.EMBEDDING: ("/v1/embeddings", {"input": "Hi"}),
    Task.RERANK: ("/v1/rerank", {"query": "Hi", "documents": ["Hi"]}),
    Task.CLASSIFICATION: ("/classify", {"input": "Hi"}),
}


def smallest_request(spec: ModelSpec, quirks: Quirks | None = None) -> Call | None:
    """A request for one token or one vector of `spec`, None if none of its tasks has one.

    It names the model by its id, in the usual shape, unless `quirks` knows better.
    """
    task = next((task for task in _BODIES if task in spec.tasks), None)
    if task is None:
        return None
    path, fields = _BODIES[task]
    body = json.dumps({"model": spec.id, **fields}, ensure_ascii=False).encode()
    if quirks is not None:
        body = quirks.request(path, body)
        path = quirks.path(path)
    return Call("POST", path, body.decode(), spec.health.timeout_s)
