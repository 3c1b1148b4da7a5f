"""An engine whose health route always answers, whatever becomes of its model.

    python sick_engine.py --port PORT [--state well|sick|silent]

`POST /state/NAME` changes what it does with requests: it answers them (well), answers 500 (sick),
or keeps them until it is well again (silent). `GET /asked` tells every request it has had.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from modelyard.testing.fake_http import Refused, Request, Wire, send_json


class SickEngine:
    def __init__(self, state: str) -> None:
        self.asked: list[Any] = []
        self.changed = asyncio.Condition()
        self.state = state
        self.is_up = True

    async def answer(self, request: Request, _: Wire, writer: asyncio.StreamWriter) -> None:
        match request.method, request.path.split("/")[1:]:
            case "GET", ["health"]:
                send_json(writer, 200 if self.is_up else 503, {})
            case "GET", ["asked"]:
                send_json(writer, 200, {"asked": self.asked})
            case "POST", ["health", up]:
                self.is_up = up == "up"
                send_json(writer, 200, {})
            case "POST", ["state", state]:
                async with self.changed:
                    self.state = state
                    self.changed.notify_all()
                send_json(writer, 200, {})
            case "POST", ["v1", *_]:
                self.asked.append(request.json())
                async with self.changed:
                    await self.changed.wait_for(lambda: self.state != "silent")
                if self.state == "sick":
                    raise Refused(500, "EngineCore is dead")
                message = {"role": "assistant", "content": "I am well"}
                send_json(writer, 200, {"choices": [{"index": 0, "message": message}]})
            case _:
                raise Refused(404, "no such route")

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Wire(self.answer), "127.0.0.1", port)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", default="well")
    args = parser.parse_args()
    asyncio.run(SickEngine(args.state).run(args.port))
