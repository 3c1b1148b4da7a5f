"""What can go wrong between a client and a server, each with what to do about it."""

from __future__ import annotations

from modelyard.core.errors import ModelyardError


class ServerNotRunning(ModelyardError):
    """Nothing listens where the server should be."""

    code = "server_not_running"
    retryable = True

    def __init__(self, url: str) -> None:
        super().__init__(
            f"no Modelyard server answers at {url}",
            hint="start one with `modelyard serve`, or name another with --url or MODELYARD_URL",
        )


class ServerNotTrusted(ModelyardError):
    """The server's certificate proves nothing to us, or ours nothing to it."""

    code = "server_not_trusted"

    def __init__(self, url: str, detail: str) -> None:
        super().__init__(
            f"the server at {url} cannot be trusted: {detail}",
            hint="name the file of its authority in MODELYARD_CA, and use the name that its "
            "certificate is for",
        )


class ServerSilent(ModelyardError):
    """The server took the connection and did not answer in time."""

    code = "server_silent"
    retryable = True

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(
            f"the server at {url} did not answer within {timeout_s:g} s",
            hint="it may be overloaded; look at its log",
        )


class ConnectionLost(ModelyardError):
    """The connection ended before the answer did."""

    code = "connection_lost"
    retryable = True

    def __init__(self, url: str, detail: str) -> None:
        super().__init__(
            f"the connection to {url} ended before the answer did: {detail}",
            hint="was the server stopped? `modelyard info` tells",
        )


class NotModelyard(ModelyardError):
    """Something else answers at the address, or another version of Modelyard."""

    code = "not_modelyard"

    def __init__(self, url: str, detail: str) -> None:
        super().__init__(
            f"what answers at {url} does not speak like this version of Modelyard: {detail}",
            hint="check the address; use the same version for server and client",
        )


class ApiError(ModelyardError):
    """The server refused. `message` is its own, which says what to do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
