"""An engine that has every route: it answers a POST with what reached it, byte for byte.

The answer is JSON: `path`, the names of the `headers`, the `type` of the body, and its SHA-256 as
`digest`. Arguments are the port, and how many seconds an answer takes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"status": "ok"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        digest = hashlib.sha256(body).hexdigest()
        kind = self.headers["content-type"]
        time.sleep(float(sys.argv[2]))
        names = sorted(name.lower() for name in self.headers)
        self.answer({"path": self.path, "headers": names, "type": kind, "digest": digest})

    def answer(self, said: dict[str, Any]) -> None:
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
