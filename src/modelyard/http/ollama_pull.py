"""`POST /api/pull`: a download of ours as Ollama's clients watch theirs.

Laws of this file:
- A model that is served already is there: clients pull before they ask, to be sure.
- A client that leaves does not end its download, because others may wait for the same one;
  `DELETE /api/pulls/ID` does.
- Success means that the model can be asked for, not only that its files have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from modelyard.config.pulling import ENDED, PULLS, PullView
from modelyard.core.errors import ModelyardError
from modelyard.dialects import ollama_listing
from modelyard.runtime.loop import Loop
from modelyard.runtime.pulls import Pulls

SERVED_WITHIN_S: Final = 15.0
"""How long after the last byte a model may take to be found in its folder."""
_LOOK_S: Final = 0.1
_WORDS: Final = {
    "queued": "waiting for another download",
    "looking": "pulling manifest",
    "waiting": "waiting for another download of the same",
}


async def progress(yard: Loop, pulls: Pulls, pull_id: str) -> AsyncIterator[dict[str, Any]]:
    """The lines of a download, the last of which says `success` or has an `error`."""
    try:
        with yard.broadcast.subscribe([PULLS]) as news:
            view = pulls.view(pull_id)
            line = _line(view)
            yield line
            if view.state not in ENDED:
                async for _ in news:
                    view = pulls.view(pull_id)
                    if view.state in ENDED:
                        break
                    before, line = line, _line(view)
                    if line != before:
                        yield line
        yield await _end(yard, view)
    except ModelyardError as error:
        yield {"error": str(error)}


def already_there() -> list[dict[str, Any]]:
    """The lines for a model that is served already."""
    return [{"status": "pulling manifest"}, {"status": "success"}]


def _line(view: PullView) -> dict[str, Any]:
    if view.state in _WORDS or not view.total_bytes:
        return {"status": _WORDS.get(view.state, "pulling manifest")}
    status = f"pulling {view.model}"
    return ollama_listing.progress(status, view.model, view.total_bytes, view.done_bytes)


async def _end(yard: Loop, view: PullView) -> dict[str, Any]:
    if view.error is not None:
        return {"error": view.error.message}
    if view.state != "done":
        return {"error": "the download was cancelled; the same one goes on from where it was"}
    for _ in range(round(SERVED_WITHIN_S / _LOOK_S)):
        if view.folder is None or _is_served(yard, Path(view.folder)):
            return {"status": "success"}
        await asyncio.sleep(_LOOK_S)
    return {
        "error": f"its files are in {view.folder}, and no engine here can serve them;"
        " `modelyard list` tells why"
    }


def _is_served(yard: Loop, folder: Path) -> bool:
    sources = (slot.spec.source for slot in yard.scheduler.models.values())
    return any(source is not None and Path(source).is_relative_to(folder) for source in sources)
