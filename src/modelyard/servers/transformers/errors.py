"""What can go wrong in this server, in the words of those who have to act.

Laws of this file:
- `Refused` is for the client of a request; `Unusable` for the person who set the model up.
"""

from __future__ import annotations


class Unusable(Exception):
    """The same command can only fail again: a wrong folder, option or kind of model."""


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
