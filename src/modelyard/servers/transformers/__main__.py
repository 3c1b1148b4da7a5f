"""`python -m modelyard.servers.transformers`: one model of a folder, served until a signal or the
end of stdin.

Laws of this file:
- The address is taken and answers `/health` before torch is imported, which takes seconds.
- What the options mean to a user is the adapter's business (`engines/transformers.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
import uvicorn

from modelyard.servers.command_line import Parser, read_template
from modelyard.servers.lifeline import (
    EXIT_FAILED,
    EXIT_PERMANENT,
    Unusable,
    announce,
    die_with_stdin,
    leave,
    restore_signals,
)
from modelyard.servers.transformers.process import bind_threads, listen
from modelyard.servers.transformers.settings import ChatSettings, Duty, Settings, read_settings
from modelyard.servers.transformers.web import Application

if TYPE_CHECKING:
    from modelyard.servers.transformers.models import AnyKind

KEEP_ALIVE_S = 75
HIGHEST_CONCURRENCY = 1024
"""Requests at once; uvicorn refuses more with 503."""


def main(argv: Sequence[str]) -> NoReturn:
    restore_signals()
    try:
        args = _arguments(argv)
        if args.exit_with_stdin:
            die_with_stdin()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        duties = [Duty(task) for task in args.task]
        names = tuple(args.alias)
        if Duty.CHAT in duties:
            if len(duties) > 1:
                raise Unusable("one process serves chat or the other tasks, not both")
            from modelyard.servers.transformers.chat import serve_chat

            chat = read_settings(ChatSettings, args.settings)
            bind_threads(chat.threads)
            serve_chat(args.model, names, args.host, args.port, chat)
        if not Path(args.model).is_dir():
            raise Unusable(f"the model {args.model} is not a folder")
        settings = read_settings(Settings, args.settings)
        if args.chat_template_file is not None:
            template = read_template(args.chat_template_file)
            settings = msgspec.structs.replace(settings, chat_template=template)
        bind_threads(settings.threads)
        listener = listen(args.host, args.port)
        asyncio.run(_serve(listener, args.model, names, duties, settings))
    except Unusable as error:
        leave(EXIT_PERMANENT, str(error))
    except OSError as error:
        leave(EXIT_FAILED, f"cannot listen on {args.host} port {args.port}: {error.strerror}")
    leave(EXIT_FAILED, "the server ended by itself")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("modelyard.servers.transformers", __doc__, source="FOLDER")
    parser.add_argument(
        "--task", required=True, action="append", choices=[duty.value for duty in Duty]
    )
    return parser.parse_args(argv)


async def _serve(
    listener: socket.socket,
    folder: str,
    names: tuple[str, ...],
    duties: Sequence[Duty],
    settings: Settings,
) -> None:
    application = Application(names, duties, settings)
    duty = Duty.EMBEDDING if Duty.EMBEDDING in duties else Duty.RERANK

    def load() -> AnyKind:
        announce("phase: starting torch")
        from modelyard.servers.transformers.loading import load as load_model

        model = load_model(folder, duty, settings)
        host, port = listener.getsockname()[:2]
        announce(f"{names[0]} is ready at http://{host}:{port}")
        return model

    server = _Server(
        uvicorn.Config(
            application,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=HIGHEST_CONCURRENCY,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
    application.computing.start(load)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the process at once: whoever sends them has let its requests end."""
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
