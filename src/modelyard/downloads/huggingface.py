"""Hugging Face's hub, through its own client library.

Laws of this file:
- Only the library's answers and errors are known here; the rest of the program sees `Listing` and
  `PullFailed`.
- It is imported in the download process alone: the library reads its environment when it is
  imported.

Source: huggingface_hub 2.4 (`HfApi.model_info` with `files_metadata`, `hf_hub_url`,
`utils.build_hf_headers`, `errors`). The hub answers 401 both for what is missing and for what is
private, and says `GatedRepo` in X-Error-Code where a licence has to be accepted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi, ModelInfo, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # says its guide

from modelyard import __version__
from modelyard.downloads.choose import RemoteFile
from modelyard.downloads.job import Job, PullFailed
from modelyard.downloads.listing import Listing, not_too_many, remote_file

LOOK_TIMEOUT_S = 20.0
_MOST_NEAR = 5
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_BAD_TOKEN = "Invalid credentials in Authorization header"


def look(job: Job) -> Listing:
    """The repository at the job's revision. Raises PullFailed."""
    api = HfApi(endpoint=job.endpoint, library_name="modelyard", library_version=__version__)
    with told(job):
        try:
            info = api.model_info(
                job.repo, revision=job.revision, files_metadata=True, timeout=LOOK_TIMEOUT_S
            )
        except HfHubHTTPError as error:
            if not _means_missing(error):
                raise
            raise _not_found(job, _near(api, job.repo)) from None
        files = _files(info)
        commit = str(info.sha)
    if _COMMIT.fullmatch(commit) is None:
        raise PullFailed("bad_listing", f"{job.endpoint} names no commit: {commit[:100]!r}")

    def address(path: str) -> str:
        return hf_hub_url(job.repo, path, revision=commit, endpoint=job.endpoint)

    headers = build_hf_headers(library_name="modelyard", library_version=__version__)
    gated = ("its licence had to be accepted on its page",) if info.gated else ()
    return Listing(commit, files, address, headers, notes=gated)


def _files(info: ModelInfo) -> tuple[RemoteFile, ...]:
    siblings = info.siblings or []
    not_too_many(len(siblings))
    return tuple(
        remote_file(
            sibling.rfilename,
            sibling.lfs.size if sibling.lfs else sibling.size,
            sibling.lfs.sha256 if sibling.lfs else None,
            None if sibling.lfs else sibling.blob_id,
        )
        for sibling in siblings
    )


@contextmanager
def told(job: Job) -> Iterator[None]:
    """A block in which the library's errors become ours, each with what to do."""
    page = f"{job.endpoint}/{job.repo}"
    try:
        yield
    except GatedRepoError:
        hint = f"accept its terms at {page}, and give a token of that account: {_TOKEN}"
        raise PullFailed("forbidden", f"{job.repo} is gated", hint=hint) from None
    except RevisionNotFoundError:
        message = f"{job.repo} has no revision {job.revision!r}"
        hint = f"its branches and tags are at {page}/tree/main"
        raise PullFailed("not_found", message, hint=hint) from None
    except RemoteEntryNotFoundError as error:
        message = f"{job.repo} does not have a file that its listing names: {_path(error)}"
        raise PullFailed("not_found", message, hint="try again; it may be changing") from None
    except RepositoryNotFoundError:
        raise _not_found(job, []) from None
    except HFValidationError as error:
        raise PullFailed("invalid_request", str(error)) from None
    except OfflineModeIsEnabled:
        raise PullFailed("offline", "HF_HUB_OFFLINE is set", hint="unset it to download") from None
    except HfHubHTTPError as error:
        raise _refused(job, error) from None
    except httpx2.HTTPError as error:
        raise unreachable(job, error) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PullFailed(
            "bad_listing",
            f"what answers at {job.endpoint} does not speak like a hub: {error}"[:500],
            hint="check downloads.endpoint and HF_ENDPOINT, and whether a proxy asks to log in",
        ) from None


def unreachable(job: Job, error: Exception) -> PullFailed:
    """Why the hub cannot be talked to, from an error of httpx2."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx2.ProxyError):
        hint = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    elif "CERTIFICATE" in text.upper() or "SSL" in text.upper():
        hint = "where a proxy opens TLS, name its certificate in SSL_CERT_FILE"
    elif isinstance(error, httpx2.TimeoutException):
        hint = "the hub is slow or blocked; try again, or set a mirror as downloads.endpoint"
        text = text if "time" in text.lower() else f"no answer in time ({text})"
    else:
        hint = "check the network, set HTTPS_PROXY, or a mirror as downloads.endpoint"
    return PullFailed("unreachable", f"cannot reach {job.endpoint}: {text[:300]}", hint=hint)


_TOKEN = "HF_TOKEN, `hf auth login`, or downloads.token"


def _not_found(job: Job, near: list[str]) -> PullFailed:
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    hint = f"check the name; if it is private, give a token: {_TOKEN}"
    return PullFailed("not_found", f"there is no model {job.repo} on the hub{meant}", hint=hint)


def _means_missing(error: HfHubHTTPError) -> bool:
    """Whether the hub says that there is no such repository, or none for this token. The library
    recognises its 401 on https addresses only, and mirrors may have others."""
    if isinstance(error, RepositoryNotFoundError):
        return not isinstance(error, GatedRepoError)
    said = error.response.headers.get("X-Error-Message")
    return error.response.status_code == 401 and said != _BAD_TOKEN


def _near(api: HfApi, repo: str) -> list[str]:
    """Repositories of similar names, if the hub can search; none where it cannot."""
    organisation, _, name = repo.partition("/")
    try:
        found = list(api.list_models(search=name, sort="downloads", limit=20))
        found += list(api.list_models(author=organisation, limit=20)) if not found else []
    except (HfHubHTTPError, httpx2.HTTPError, ValueError, TypeError, KeyError):
        return []  # the name is missing either way; advice is all that is lost
    names = list(dict.fromkeys(info.id for info in found if isinstance(info.id, str)))
    return difflib.get_close_matches(repo, names, n=_MOST_NEAR, cutoff=0.3)


def _refused(job: Job, error: HfHubHTTPError) -> PullFailed:
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message") or ""
    what = f"{job.endpoint} answered {status}{f': {said[:300]}' if said else ''}"
    if status in (401, 403):
        hint = f"the token may be wrong or lack a permission: {_TOKEN}"
        return PullFailed("forbidden", what, hint=hint)
    if status == 429:
        return PullFailed("rate_limited", what, hint=f"wait, or give a token: {_TOKEN}")
    return PullFailed("hub_failed", what, hint="try again later; what was fetched is kept")


def _path(error: HfHubHTTPError) -> str:
    return error.response.url.path.rpartition("/resolve/")[2].partition("/")[2][:300]
