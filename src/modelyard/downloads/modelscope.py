"""ModelScope's hub, by its HTTP API.

Laws of this file:
- Only what the documented routes say is used; its Python package would bring far more than that.

Source: modelscope's own client (`hub/api.py`, `hub/file_download.py`): a repository's files are
listed by `GET /api/v1/models/ORG/NAME/repo/files?Revision=…&Recursive=true` as
`{"Code": 200, "Success": true, "Data": {"Files": [{"Path", "Type": "blob"|"tree", "Size",
"Sha256", "Revision"}]}}`, a file is fetched by `GET …/repo?Revision=…&FilePath=…`, which knows
ranges; a token goes into the header Authorization and the cookie m_session_id.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

import httpx2

from modelyard import __version__
from modelyard.downloads.huggingface import LOOK_TIMEOUT_S, unreachable
from modelyard.downloads.job import Job, PullFailed
from modelyard.downloads.listing import Listing, not_too_many, remote_file

TOKEN = "MODELSCOPE_API_TOKEN"
_MAIN = "master"
_MOST_BYTES = 64 * 2**20


def look(job: Job) -> Listing:
    """The repository at the job's revision. Raises PullFailed."""
    revision = job.revision or _MAIN
    base = f"{job.endpoint}/api/v1/models/{job.repo}/repo"
    headers = {"user-agent": f"modelyard/{__version__}"}
    if token := os.environ.get(TOKEN):
        headers |= {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"}
    entries = _entries(
        job, f"{base}/files?Revision={quote(revision, safe='')}&Recursive=true", headers
    )
    not_too_many(len(entries))
    files = tuple(
        remote_file(entry.get("Path"), entry.get("Size"), entry.get("Sha256"))
        for entry in entries
        if entry.get("Type") != "tree"
    )

    def address(path: str) -> str:
        return f"{base}?Revision={quote(revision, safe='')}&FilePath={quote(path)}"

    return Listing(None, files, address, headers)


def _entries(job: Job, url: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    try:
        response = httpx2.get(url, headers=headers, timeout=LOOK_TIMEOUT_S, follow_redirects=True)
    except httpx2.HTTPError as error:
        raise unreachable(job, error) from None
    try:
        answer = response.json() if len(response.content) <= _MOST_BYTES else None
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    said = str(answer.get("Message") or "")[:300]
    if response.status_code in (401, 403):
        hint = f"give a token of ModelScope: {TOKEN}, or downloads.modelscope_token"
        raise PullFailed("forbidden", f"{job.repo} is not open to you {said}".strip(), hint=hint)
    if response.status_code == 404 or (answer and answer.get("Success") is False):
        of = f" at revision {job.revision!r}" if job.revision else ""
        message = f"there is no model {job.repo}{of} on ModelScope{f': {said}' if said else ''}"
        raise PullFailed("not_found", message, hint="check its name on https://modelscope.cn")
    files = answer.get("Data", {}).get("Files") if isinstance(answer.get("Data"), dict) else None
    if response.status_code != 200 or not isinstance(files, list):
        message = f"{job.endpoint} answered {response.status_code} and no list of files {said}"
        raise PullFailed("hub_failed", message.strip(), hint="try again later")
    return [entry for entry in files if isinstance(entry, dict)]
