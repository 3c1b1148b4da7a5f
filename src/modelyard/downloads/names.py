"""How people name what they want from a hub.

Laws of this file:
- Pure. What cannot be a repository is refused with what it probably was meant to be.

Sources: the hub allows `ORG/NAME` of letters, digits, `-`, `_` and `.`, 96 characters each
(huggingface_hub's `validate_repo_id`); `NAME:QUANTISATION` is how llama.cpp's `-hf` and Ollama's
`hf.co/` names choose a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from modelyard.core.errors import InvalidRequest

HUGGING_FACE = "hf"
MODELSCOPE = "modelscope"
HUBS = (HUGGING_FACE, MODELSCOPE)

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_PREFIXES = {
    "hf": HUGGING_FACE,
    "huggingface": HUGGING_FACE,
    "modelscope": MODELSCOPE,
    "ms": MODELSCOPE,
}
_HOSTS = {
    "hf.co": HUGGING_FACE,
    "huggingface.co": HUGGING_FACE,
    "www.huggingface.co": HUGGING_FACE,
    "modelscope.cn": MODELSCOPE,
    "www.modelscope.cn": MODELSCOPE,
    "modelscope.ai": MODELSCOPE,
    "www.modelscope.ai": MODELSCOPE,
}
_SHORT = re.compile(r"[a-z0-9][a-z0-9_.-]*(:[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True, slots=True)
class Asked:
    """A repository, and what of it."""

    repo: str
    hub: str = HUGGING_FACE
    quantization: str | None = None
    revision: str | None = None
    file: str | None = None
    """A file that an address named."""


def read_name(text: str, hub: str | None = None) -> Asked:
    """What `text` asks for. `hub` None is the one that `text` names, else Hugging Face.

    Raises InvalidRequest for what names no repository.
    """
    if hub is not None and hub not in HUBS:
        raise InvalidRequest(f"there is no hub {hub!r}", hint=f"there are {' and '.join(HUBS)}")
    rest, named, revision, file = text.strip(), None, None, None
    if "://" in rest or rest.partition("/")[0] in _HOSTS:
        named, rest, revision, file = _of_address(rest)
    elif rest.partition(":")[0] in _PREFIXES and "/" in rest:
        prefix, _, rest = rest.partition(":")
        named = _PREFIXES[prefix]
    if hub is not None and named is not None and hub != named:
        raise InvalidRequest(f"{text!r} is on {named}, and {hub} was asked for")
    repo, _, quantization = rest.partition(":")
    organisation, slash, name = repo.partition("/")
    if not slash:
        raise InvalidRequest(_no_repository(rest))
    if not (_is_part(organisation) and _is_part(name)) or (":" in rest and not quantization):
        raise InvalidRequest(
            f"{text!r} is not the name of a repository",
            hint="write ORG/NAME, like Qwen/Qwen3-8B-GGUF, or ORG/NAME:Q4_K_M for one quantisation",
        )
    if quantization and not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", quantization):
        raise InvalidRequest(f"{quantization!r} is not the name of a quantisation")
    return Asked(repo, hub or named or HUGGING_FACE, quantization or None, revision, file)


def _no_repository(name: str) -> str:
    if _SHORT.fullmatch(name):
        return (
            f"{name!r} has no ORG/; it may be a name of Ollama's library, which is no hub for pull:"
            f" either `ollama pull {name}` and add ~/.ollama/models to models_dirs, where Modelyard"
            f" finds it, or pull a repository, like `modelyard pull ORG/{name.partition(':')[0]}`"
        )
    return f"{name!r} is not the name of a repository: write ORG/NAME, like Qwen/Qwen3-8B-GGUF"


def _of_address(text: str) -> tuple[str, str, str | None, str | None]:
    """Hub, repository, revision and file of the address of a page."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        hub = _HOSTS.get(parts.hostname or "")
    except ValueError:
        hub = None
    if hub is None or parts.scheme not in ("http", "https", "hf"):
        raise InvalidRequest(
            f"{text!r} is not on a hub that is known",
            hint="write ORG/NAME; another address of the hub is set with downloads.endpoint",
        )
    steps = [unquote(step) for step in parts.path.split("/") if step]
    if steps[:1] == ["models"] and hub == MODELSCOPE:
        steps = steps[1:]
    repo, kind, more = "/".join(steps[:2]), steps[2:3], steps[3:]
    if kind in (["tree"], ["resolve"], ["blob"]) and more:
        file = "/".join(more[1:]) if kind != ["tree"] else ""
        return hub, repo, more[0], file or None
    return hub, repo, None, None


def _is_part(text: str) -> bool:
    return _PART.fullmatch(text) is not None and ".." not in text and "--" not in text
