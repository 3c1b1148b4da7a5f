"""An upstream that answers what a test says and remembers all that it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.core.circuit import Thresholds
from modelyard.core.specs import Limits, ModelSpec, Profile, RemoteModel, RemoteUpstream, Task

OK = b'{"object":"chat.completion","choices":[{"message":{"content":"hi"}}]}'
PART = 64 * 1024
Script = Callable[[bytes], bytes | None]
"""From a request's head to the bytes of its answer; None closes the connection."""


def answer(status: int, body: bytes = OK, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}"]).encode() + b"\r\n\r\n" + body


@dataclass
class Peer:
    """`heads` and `bodies` are those of the requests for answers, `probes` counts the others."""

    port: int = 0
    script: Script = lambda _: answer(200)
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    probes: list[bytes] = field(default_factory=list)
    closed_early: int = 0
    """Connections that the other side closed while it was owed an answer."""
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    connections: int = 0
    sent: int = 0
    """Bytes of answers that the other side had room for."""

    def url(self, scheme: str = "http", host: str = "127.0.0.1", path: str = "/v1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):
            self.probes.append(head)
            writer.write(self.script(head) or b"")
            return False
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))
        said = self.script(head)
        if said is None:
            return False
        sent = said.removesuffix(b"...")
        for at in range(0, len(sent), PART):
            writer.write(sent[at : at + PART])
            await writer.drain()
            self.sent += len(sent[at : at + PART])
        if said.endswith(b"..."):  # unfinished: wait for the other side
            if not await reader.read(1):
                self.closed_early += 1
            return False
        return True

    async def stop(self) -> None:
        """Refuse connections from now on, and break those that there are."""
        if self.server is not None:
            self.server.close()
            for writer in tuple(self.writers):
                writer.transport.abort()
            await self.server.wait_closed()
            self.server = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self.server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def peer(
    script: Script = lambda _: answer(200), tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    made = Peer(script=script)
    await made.start(tls)
    try:
        yield made
    finally:
        await made.stop()


def remote(
    *upstreams: RemoteUpstream | Peer,
    thresholds: Thresholds = Thresholds(failures=1, open_s=0.05, open_max_s=0.1),  # noqa: B008
    tasks: frozenset[Task] = frozenset(Task),
    **fields: Any,
) -> ModelSpec:
    """A remote model `m`."""
    written = [
        RemoteUpstream(each.url(), key="k") if isinstance(each, Peer) else each
        for each in upstreams
    ]
    return ModelSpec(
        "m",
        "remote",
        tasks,
        profiles=(Profile("remote", ()),),
        remote=RemoteModel(tuple(written), thresholds),
        limits=Limits(max_wait_s=10.0, response_timeout_s=10.0),
        **fields,
    )


def certificates(folder: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context for `host`, and the file of the authority that signed it."""
    import subprocess

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "ext").write_text(f"subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=yard ca")
    openssl("req", *curve, "-keyout", "s.key", "-out", "s.csr", "-subj", f"/CN={host}")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext")
    openssl("x509", "-req", "-in", "s.csr", "-out", "s.pem", *signing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "s.pem", folder / "s.key")
    return context, folder / "ca.pem"
