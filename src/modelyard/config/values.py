"""What loading a configuration gives: frozen values, all checked, all with their defaults.

Laws of this file:
- The defaults written here are the only ones; the schema and the documents take them from here.
- Times are seconds, memory is MiB or bytes, and the names say which.
- Paths are absolute: `~` and relative paths have been resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from modelyard.config.assignment import Assignment
from modelyard.core.keys import Key
from modelyard.core.policy import Policy
from modelyard.core.shaping import VirtualModel
from modelyard.core.specs import Limits, ModelSpec, RemoteUpstream, Task

ENGINE_NAMES = ("llamacpp", "vllm", "transformers", "command", "remote")
"""Engines that a model can name. `app/engines.py` gives each of them an adapter."""

SLEEP_PRESETS = ("vllm", "sglang", "lmdeploy")
"""Engines whose sleep calls are known, so that a model needs to name only them.
`engines.sleeping` knows the calls."""

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "sglang": ("chat", "completion"),
    "lmdeploy": ("chat", "completion"),
    "tensorrt-llm": ("chat", "completion"),
    "llama-server": ("chat", "completion"),
    "mlx": ("chat", "completion"),
    "ollama": ("chat", "completion"),
    "tei": ("embedding",),
    "infinity": ("embedding",),
    "whisper.cpp": ("transcription",),
    "kokoro": ("speech",),
    "stable-diffusion.cpp": ("image",),
})  # fmt: skip
"""Programs that `engine: command` knows how to start, and what they serve unless `tasks` says
otherwise. `engines.presets` knows the rest."""

OPAQUE_PRESETS = frozenset({"ollama", "whisper.cpp", "kokoro", "stable-diffusion.cpp"})
"""Those whose files are of kinds that the catalog cannot read."""

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value: `("models", "qwen", "tasks", 0)`."""


def default_state_dir() -> Path:
    """The folder of this user where logs and other state are kept on this platform."""
    import platformdirs  # costs an import that most users of this module do not need

    return platformdirs.user_state_path("modelyard", appauthor=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the server proves itself with; PEM files."""

    certificate: Path
    key: Path | None = None
    """None if the certificate's file holds the key, too."""
    client_ca: Path | None = None
    """Authorities, of whom every client must have a certificate."""


@dataclass(frozen=True, slots=True)
class Server:
    """The listener and how patient it is."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 lets the system choose a free one."""
    list_aliases: bool = False
    """Whether aliases are listed as models of their own."""
    ollama_port: int | None = None
    """Second port, on which clients that look for Ollama find it; None opens none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the `Host` header that are answered besides loopback names and `host`."""
    tls: Tls | None = None
    """None speaks plain HTTP."""
    insecure: bool = False
    """Allow a `host` that other machines can reach although nothing asks who they are."""
    max_body_bytes: int = 32 * 1024 * 1024
    heartbeat_after_s: float = 5.0
    """A streaming client that waits this long for its model gets its headers and a heartbeat."""
    heartbeat_every_s: float = 5.0
    heartbeats: bool = True
    """Whether waiting clients hear heartbeats, unless their key says otherwise."""
    no_heartbeats_for: tuple[str, ...] = ()
    """Patterns of `User-Agent` whose clients hear none."""
    header_timeout_s: float = 15.0
    """Longest time from the first byte of a request to the end of its head."""
    body_timeout_s: float = 30.0
    """Longest silence of a client that is sending its request."""
    send_timeout_s: float = 60.0
    """How long a client may take nothing of its answer; found out after twice that at most."""
    keep_alive_s: float = 75.0
    """How long an idle connection of a client is kept open."""
    websocket_idle_s: float = 600.0
    """How long a WebSocket is kept open on which neither end says anything."""
    shutdown_timeout_s: float = 30.0
    """Longest wait for requests in flight when the server is asked to end."""
    state_dir: Path = field(default_factory=default_state_dir)
    cors_origins: tuple[str, ...] = ()
    """Web pages of others that may use the server, by their origin; `*` is any."""


@dataclass(frozen=True, slots=True)
class Devices:
    """How much memory models may hold together."""

    reserve_mib: int = 512
    """Left free on every device that has no budget."""
    budget_mib: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Most that models may hold on a device, by device name; it replaces total less reserve."""
    sample_every_s: float | None = 2.0
    """How often devices are read; None reads them once, at the start."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Where engines' programs lie."""

    llama_server: str | None = None
    """Path of llama.cpp's server, `builtin` for the one in Modelyard, None for automatic: the
    `llama-server` on the PATH if there is one, else the built-in."""
    vllm: str | None = None
    """Path of a `vllm` program, of a Python, or of an environment's folder, or the name of a conda
    or virtual environment; None for automatic: VLLM_BIN, the PATH, our own environment."""


@dataclass(frozen=True, slots=True)
class Downloads:
    """Where models are fetched from, and to."""

    dir: Path | None = None
    """Models folder that downloads go to; None for automatic: the first of `models_dirs` that is no
    other program's store, else `models` in the state folder."""
    parallel: int = 2
    """Downloads that run at a time."""
    offline: bool = False
    """Never ask a hub; what is here has to do."""
    endpoint: str | None = None
    """Address of Hugging Face's hub or a mirror; None is HF_ENDPOINT, else the hub itself."""
    token: str | None = field(default=None, repr=False)
    """None is HF_TOKEN, else what `hf auth login` has kept."""
    modelscope_endpoint: str | None = None
    modelscope_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """Somebody else's endpoint whose models are served under a prefix."""

    name: str
    upstream: RemoteUpstream = field(default_factory=lambda: RemoteUpstream(""))
    """Where it is; the names of its models are not in it."""
    models: Mapping[str, str] | None = None
    """What its models are called there, by the name that stands behind the prefix; None for those
    that it lists."""
    prefix: str = ""
    """Empty for none; a `/` stands between it and the model's name."""
    tasks: frozenset[Task] = frozenset()
    """What its models do; empty for what the list or their names tell."""
    refresh_s: float | None = 3600.0
    """Time between two questions for its models; None asks once."""


@dataclass(frozen=True, slots=True)
class Captures:
    """What is kept of requests and answers for those who run the server."""

    last: int = 0
    """So many requests; 0 keeps none."""
    max_body_bytes: int = 64 * 1024
    """Bytes of each request and of each answer."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a run of Modelyard has been told."""

    server: Server = field(default_factory=Server)
    models_dirs: tuple[Path, ...] = ()
    devices: Devices = field(default_factory=Devices)
    scheduling: Policy = field(default_factory=Policy)
    engines: Engines = field(default_factory=Engines)
    downloads: Downloads = field(default_factory=Downloads)
    keys: tuple[Key, ...] = ()
    """Who may use the server; none asks nobody who they are."""
    captures: Captures = field(default_factory=Captures)
    models: tuple[ModelSpec, ...] = ()
    remotes: tuple[RemoteEndpoint, ...] = ()
    virtuals: tuple[VirtualModel, ...] = ()
    limits: Limits = field(default_factory=Limits)
    """Limits of models that the config does not name (found in `models_dirs`): `defaults`."""
    path: Path | None = None
    """The file this was read from, if any."""
    assigned: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """What `modelyard assign` has written, by model; it is in `models` already."""
    written: Mapping[KeyPath, str] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, compare=False
    )
    """Values that hold `${env:...}`, as they were written: what may be shown of them."""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """What a person should know of how this came about: variables of other tools, obeyed or not."""
