"""What goes wrong for the client of a request; for the person who set the model up there is
`lifeline.Unusable`."""

from __future__ import annotations


class Refused(Exception):
    """An answer that is an error, in OpenAI's shape (API reference, "Error codes")."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param

    @property
    def kind(self) -> str:
        """OpenAI's `type`: whose fault it is."""
        return "invalid_request_error" if self.status < 500 else "server_error"
