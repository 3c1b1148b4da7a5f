"""An engine that calls a tool: small models in tests cannot be made to.

A chat with tools and no result yet is answered with a call of the first tool, its arguments in two
parts if it is streamed; any other chat with what was said last. `GET /asked` tells the requests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ARGUMENTS = '{"city":"Rome"}'
USAGE = {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}
asked: list[dict[str, Any]] = []


def message(request: dict[str, Any]) -> dict[str, Any]:
    last = request["messages"][-1]
    if request.get("tools") and last["role"] != "tool":
        function = {"name": request["tools"][0]["function"]["name"], "arguments": ARGUMENTS}
        call = {"id": "call_of_engine", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": f"It said: {last['content']}"}


def deltas(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for call in said.get("tool_calls", ()):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {"name": name, "arguments": arguments[:5]}
        yield {"tool_calls": [{**call, "index": 0, "function": first}]}
        yield {"tool_calls": [{"index": 0, "function": {"arguments": arguments[5:]}}]}
    for word in (said["content"] or "").split(" "):
        yield {"content": f"{word} "}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(asked if self.path == "/asked" else {"status": "ok"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked.append(request)
        said = message(request)
        reason = "tool_calls" if "tool_calls" in said else "stop"
        frame = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "message": said, "finish_reason": reason}
            kind = {"object": "chat.completion", "choices": [choice]}
            self.answer({**frame, **kind, "usage": USAGE})
            return
        chunks: list[dict[str, Any]]
        chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas(said)]
        chunks.append({"index": 0, "delta": {}, "finish_reason": reason})
        chunk_frame = {**frame, "object": "chat.completion.chunk"}
        lines = [{**chunk_frame, "choices": [chunk]} for chunk in chunks]
        lines.append({**chunk_frame, "choices": [], "usage": USAGE})
        events = b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines)
        self.send(events + b"data: [DONE]\n\n", "text/event-stream")

    def answer(self, value: object) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
