"""The admin API for keys: which there are, adding and removing them.

Laws of this file:
- Neither a key nor its digest is ever in an answer.
- Keys live in the configuration file alone; a change is in force when the answer comes.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fastapi import APIRouter

from modelyard.config.keyring import KeyChange, KeyView, KeyWanted
from modelyard.config.keys import view_of
from modelyard.http.access import Access, Caller
from modelyard.runtime.config_file import ConfigFile


def routes(access: Access, file: ConfigFile) -> APIRouter:
    router = APIRouter(prefix="/api/keys", tags=["keys"])

    @router.get("")
    async def keys() -> list[KeyView]:
        """Every key, what it allows, and what has been used of it since the server knows it."""
        now = time.time()
        return [_view(caller, now) for caller in access.callers]

    @router.put("/{name}", status_code=201)
    async def add(name: str, wanted: KeyWanted) -> KeyChange:
        """Let in the key with this digest, and write it into the configuration file."""
        return await file.add_key(name, wanted)

    @router.delete("/{name}")
    async def remove(name: str) -> KeyChange:
        """Let the key in no more. Requests under way go on."""
        return await file.remove_key(name)

    return router


def _view(caller: Caller, now: float) -> KeyView:
    assert caller.key is not None, "who has no key is not listed"
    return replace(
        view_of(caller.key, now),
        running=caller.running,
        used_requests=caller.requests,
        used_tokens=caller.tokens,
        last_used_at=caller.last_used,
    )
