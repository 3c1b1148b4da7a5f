"""How engines are reached: Unix sockets, their folders, and what is told of them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modelyard.core.errors import LaunchError
from modelyard.core.specs import Call, Endpoint
from modelyard.runtime.control import Unreachable, call
from modelyard.runtime.dialing import (
    MAX_PATH_BYTES,
    SocketFolders,
    is_taken,
    make_folder,
    open_streams,
    remove_folder,
)
from modelyard.runtime.readiness import answers_200, until_ready
from modelyard.runtime.upstream import Upstream

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Endpoint]:
    """A place for an engine, in a folder that is there."""
    endpoint = SocketFolders(tmp_path).new()
    make_folder(endpoint)
    yield endpoint
    remove_folder(endpoint)


# ---------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("depth", [0, 10, 40])
def test_the_path_of_a_socket_is_short_wherever_the_state_is(tmp_path: Path, depth: int) -> None:
    state_dir = tmp_path.joinpath(*["é" * 5] * depth)

    paths = [SocketFolders(state_dir).new().path for _ in range(2)]

    assert all(len(os.fsencode(path)) <= MAX_PATH_BYTES < 100 for path in paths)
    assert paths[0] != paths[1]


def test_each_state_folder_has_a_base_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    one, other = (tmp_path / ("x" * 90 + name) for name in "ab")

    assert SocketFolders(one).base == SocketFolders(one).base != SocketFolders(other).base


def test_a_folder_is_private_and_nothing_of_it_is_left(there: Endpoint) -> None:
    folder = Path(there.path).parent
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)]
    (folder / "left by the engine").touch()

    remove_folder(there)

    assert modes == [0o700, 0o700]
    assert not folder.parent.exists()


def test_a_base_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folders = SocketFolders(tmp_path / "s")
    folders.base.mkdir(parents=True)
    folders.base.chmod(0o755)
    try:
        with pytest.raises(LaunchError, match="others may enter it"):
            make_folder(folders.new())
    finally:
        folders.base.rmdir()


def test_a_link_in_place_of_the_base_is_refused(tmp_path: Path) -> None:
    folders = SocketFolders(tmp_path / "s")
    (tmp_path / "s").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folders.base.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(LaunchError):
            make_folder(folders.new())
    finally:
        folders.base.unlink()


def test_what_a_dead_server_left_is_swept_and_a_living_ones_stays(there: Endpoint) -> None:
    used = Path(there.path).parent
    dead = max(psutil.pids()) + 100_000
    left = used.with_name(f"{dead}-0badcafe")
    left.mkdir()
    (left / "s.sock").touch()
    folders = SocketFolders(Path("/"))
    folders.base = used.parent

    folders.sweep()

    assert [each.name for each in used.parent.iterdir()] == [used.name]


# -------------------------------------------------------------------------------------- connections


async def test_a_socket_that_is_not_there_refuses(there: Endpoint) -> None:
    with pytest.raises(ConnectionRefusedError):
        await open_streams(there)
    with pytest.raises(Unreachable):
        await call(there, Call("POST", "/sleep", "{}", timeout_s=5.0))

    assert not await answers_200(there, "/health")
    assert not is_taken(there)


async def test_a_full_backlog_is_waited_for(there: Endpoint) -> None:
    upstream = Upstream("m", 1, there, lambda: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(there.path)
        listener.listen(1)
        listener.setblocking(False)
        dialed = [asyncio.ensure_future(upstream.connect()) for _ in range(8)]
        await asyncio.sleep(0.05)
        waiting = sum(not each.done() for each in dialed)
        loop = asyncio.get_running_loop()
        taken = [(await loop.sock_accept(listener))[0] for _ in dialed]
        made = await asyncio.gather(*dialed)

    assert is_taken(there)
    assert waiting > 0
    assert all(connection.is_open for connection in made)
    upstream.close()
    for each in taken:
        each.close()


async def test_a_dial_that_is_given_up_leaves_no_socket(there: Endpoint) -> None:
    upstream = Upstream("m", 1, there, lambda: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(there.path)
        listener.listen(0)
        first = await upstream.connect()
        upstream.connect_timeout_s = 0.05
        with pytest.raises(TimeoutError):
            await upstream.connect()
        upstream.close()

    assert not first.is_open


async def test_an_engine_at_a_socket_becomes_ready_and_is_told_localhost(there: Endpoint) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        status = 503 if len(heads) < 3 else 200
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
        writer.close()
        await writer.wait_closed()

    ready = asyncio.ensure_future(until_ready(there, "/health"))
    await asyncio.sleep(0.03)
    server = await asyncio.start_unix_server(serve, there.path)
    async with asyncio.timeout(60):
        await ready
    server.close()
    await server.wait_closed()

    assert len(heads) == 3
    assert all(b"\r\nHost: localhost\r\n" in head for head in heads)


# --------------------------------------------------------------------------------------- the pool


@pytest.fixture
def listener(there: Endpoint) -> Iterator[socket.socket]:
    """Takes connections, and does nothing with them."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(there.path)
        listening.listen(16)
        yield listening


@pytest.mark.usefixtures("listener")
async def test_after_a_crowd_the_newest_idle_connections_are_kept(
    there: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.runtime.upstream.MAX_IDLE", 3)
    monkeypatch.setattr("modelyard.runtime.upstream.CROWD_S", 0.03)
    upstream = Upstream("m", 1, there, lambda: None)
    crowd = [await upstream.connect() for _ in range(5)]
    for connection in crowd:
        upstream.finished(connection)
    at_once = sum(connection.is_open for connection in crowd)
    async with asyncio.timeout(60):
        while crowd[1].is_open:
            await asyncio.sleep(0.01)

    assert at_once == 5
    assert [connection.is_open for connection in crowd] == [False, False, True, True, True]
    assert [upstream.idle_connection() for _ in range(4)] == [crowd[4], crowd[3], crowd[2], None]
    upstream.close()


@pytest.mark.usefixtures("listener")
async def test_idle_connections_that_are_stale_are_closed_by_themselves(there: Endpoint) -> None:
    upstream = Upstream("m", 1, there, lambda: None)
    upstream.fresh_for_s = 0.02
    connection = await upstream.connect()
    upstream.finished(connection)
    async with asyncio.timeout(60):
        while connection.is_open:
            await asyncio.sleep(0.01)

    assert upstream.idle_connection() is None
