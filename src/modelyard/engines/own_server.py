"""The command line of an engine process of our own (`modelyard.servers`).

Laws of this file:
- It is what `servers.command_line` reads; neither is changed without the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from modelyard.core.specs import Endpoint, ModelSpec, OptionValue


def own_server(
    python: str,
    module: str,
    spec: ModelSpec,
    endpoint: Endpoint,
    duty: Sequence[str],
    settings: Mapping[str, OptionValue],
    template: OptionValue = None,
) -> tuple[str, ...]:
    """Serve `spec` at `endpoint` with `settings`.

    `duty` are the server's own arguments that say what for; `template` is the file of a chat
    template, None for the model's own.
    """
    return (
        python,
        # Not the working folder's modules: a model's folder may hold a json.py.
        "-P",
        "-m",
        module,
        f"--model={spec.source}",
        *(f"--alias={name}" for name in (spec.id, *spec.aliases)),
        f"--host={endpoint.host}",
        f"--port={endpoint.port}",
        *duty,
        "--exit-with-stdin",
        *([f"--chat-template-file={template}"] if template is not None else []),
        *(f"--set={name}={json.dumps(value)}" for name, value in sorted(settings.items())),
    )
