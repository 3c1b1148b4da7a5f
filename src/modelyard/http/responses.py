"""What OpenAI offers for responses it has stored: here nothing is stored, and these routes say so.

Laws of this file:
- Every answer is an error with a reason, never an unknown route: clients tell people what it says.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from fastapi import APIRouter

from modelyard.core.errors import InvalidRequest, ModelyardError


class NotStored(ModelyardError):
    """Somebody asks for a response again."""

    code = "not_found"
    param = "response_id"
    hint = "Modelyard keeps no responses; clients keep what they need again"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"there is no response {response_id!r}")


def routes() -> APIRouter:
    """The routes beside `POST /v1/responses` and its `input_tokens`, which are inference."""
    router = APIRouter(prefix="/v1/responses", tags=["openai"])

    @router.post("/compact")
    async def compact() -> None:
        """Refused: no conversation is made shorter here."""
        raise InvalidRequest(
            "conversations are not compacted here",
            hint="have the model summarize it by an ordinary request",
        )

    @router.get("/{response_id}")
    @router.delete("/{response_id}")
    @router.post("/{response_id}/cancel")
    @router.get("/{response_id}/input_items")
    async def stored(response_id: str) -> None:
        """Not found, with the reason."""
        raise NotStored(response_id)

    return router
