"""The client itself: one method for each thing that can be asked of a server.

Laws of this file:
- Whatever goes wrong is a `ModelyardError` that says what to do; httpx stays inside.
- The admin API answers within `timeout_s`. Inference waits as long as the server lets it: the
  server knows how long a model may take to start, and says so when it takes longer.

Sources: the admin API is described at `/docs` of a running server; chat, completions and
embeddings are OpenAI's, rerank is Jina's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from modelyard.client.address import certificates, credentials, find_url, is_loopback
from modelyard.client.errors import NotModelyard
from modelyard.client.streams import Answer, Events, Stream
from modelyard.client.wire import Embeddings, Ranked, Ranking, decoded, refusal, translated
from modelyard.config.assignment import AssignmentView, Reloaded, Wanted
from modelyard.config.keyring import KeyChange, KeyView, KeyWanted
from modelyard.config.plans import Ask, PlanView
from modelyard.config.pulling import PullView, PullWanted, Removal
from modelyard.core.specs import OptionValue
from modelyard.core.views import (
    DeviceView,
    Info,
    LineView,
    LogView,
    ModelView,
    ModesView,
    RequestsView,
    RequestView,
    WaitingView,
)

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, str]
"""One message of a conversation: `role` and `content`."""

T = TypeVar("T")


class Client:
    """A connection to one server. Close it, or use it in a `with` block."""

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout_s: float = 10.0
    ) -> None:
        """`url` None looks for the server as `find_url` does. Raises InvalidRequest for a bad one.

        `key` is shown to a server that asks for one; None is that of the variable
        MODELYARD_API_KEY.

        `timeout_s` bounds connecting, and every answer of the admin API.
        """
        import httpx  # costs more than many a command that needs no server

        self.url = find_url(url)
        self.timeout_s = timeout_s
        self._patient = httpx.Timeout(timeout_s, read=None)
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            headers=credentials(key),
            # A proxy for the outer world does not reach a server on this machine.
            trust_env=not is_loopback(self.url),
            verify=certificates(self.url),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An interrupt may have hit httpx's pool while it held its lock: closing could wait for it
        # for ever, and the connections go with the client anyway.
        if error is None or isinstance(error, Exception):
            self.close()

    def close(self) -> None:
        self._http.close()

    # ------------------------------------------------------------------------------- admin API

    def info(self) -> Info:
        """The server itself."""
        return self._get("/api/info", Info)

    def devices(self) -> list[DeviceView]:
        return self._get("/api/devices", list[DeviceView])

    def waiting(self) -> list[WaitingView]:
        """Every request that waits for a model."""
        return self._get("/api/waiting", list[WaitingView])

    def models(self) -> list[ModelView]:
        """All models, in order of their ids."""
        return sorted(self._get("/api/models", list[ModelView]), key=lambda model: model.id)

    def model(self, model: str) -> ModelView:
        """One model by its id or an alias. Raises ApiError with `model_not_found`."""
        return self._get(_path(model), ModelView)

    def start(self, model: str) -> ModelView:
        """Have the model running; returns at once."""
        return self._post(_path(model, "start"), ModelView)

    def stop(self, model: str) -> ModelView:
        """Have the model stopped once its requests are done; returns at once."""
        return self._post(_path(model, "stop"), ModelView)

    def restart(self, model: str) -> ModelView:
        """Have the model's engine replaced by a fresh one; returns at once."""
        return self._post(_path(model, "restart"), ModelView)

    def sleep(self, model: str, level: int = 2) -> ModelView:
        """Have the model's engine give its memory back once its requests are done; returns at once.

        At level 1 it keeps the weights in host memory, at level 2 it drops them; 3 stops it.
        Raises ApiError with `invalid_request` if the engine has no such level.
        """
        return self._post(_path(model, f"sleep?level={level}"), ModelView)

    def wake(self, model: str) -> ModelView:
        """Have a sleeping model awake, or a stopped one running; returns at once."""
        return self._post(_path(model, "wake"), ModelView)

    def reload(self) -> Reloaded:
        """Have the server read its configuration file anew.

        Raises ApiError with `invalid_config` and all problems if the file is wrong.
        """
        return self._post("/api/reload", Reloaded)

    def modes(self) -> ModesView:
        """The mode that holds, and whom each virtual model stands for."""
        return self._get("/api/modes", ModesView)

    def switch_mode(self, mode: str) -> ModesView:
        """Have another mode hold; empty for none. Raises ApiError for one that is not there."""
        return self._send("PUT", "/api/modes", ModesView, {"mode": mode})

    def assignment(self, model: str) -> AssignmentView:
        """The devices and options that were assigned to the model by command."""
        return self._get(_path(model, "assignment"), AssignmentView)

    def assign(self, model: str, wanted: Wanted) -> AssignmentView:
        """Add to what is assigned to the model, in the server's configuration file.

        Raises ApiError with `invalid_request` for what its engine cannot do, and with
        `invalid_config` and all problems if the file would be wrong or cannot be written.
        """
        return self._send("PUT", _path(model, "assignment"), AssignmentView, asdict(wanted))

    def clear_assignment(self, model: str) -> AssignmentView:
        """Take back all that is assigned to the model."""
        return self._send("DELETE", _path(model, "assignment"), AssignmentView)

    def pull(self, wanted: PullWanted) -> PullView:
        """Have the server fetch a model from a hub; returns at once. News have topic `pulls`.

        Raises ApiError with `invalid_request` for what names no repository, and with `forbidden`
        for a folder that is none of the server's.
        """
        return self._send("POST", "/api/pulls", PullView, asdict(wanted))

    def pulls(self) -> list[PullView]:
        """Downloads that wait or run, and the last ones that ended."""
        return self._get("/api/pulls", list[PullView])

    def cancel_pull(self, pull: str) -> PullView:
        """End a download by its id; what was fetched is kept for the next attempt."""
        return self._send("DELETE", f"/api/pulls/{quote(pull)}", PullView)

    def remove_files(self, model: str, *, force: bool = False, dry_run: bool = False) -> Removal:
        """Remove a model's files from the server's models folders, or say what that would mean.

        Raises ApiError with `forbidden` for a model that runs, or whose files lie elsewhere, and
        with `invalid_request` for a declared model without `force`.
        """
        query = f"files?force={str(force).lower()}&dry_run={str(dry_run).lower()}"
        return self._send("DELETE", _path(model, query), Removal)

    def plan(self, model: str, ask: Ask | None = None) -> PlanView:
        """Whether the model fits on the server's devices or on named cards, and how to run it.

        Raises ApiError with `model_not_found`, or `invalid_request` for a card that nobody knows.
        """
        asked = {"model": model, **asdict(ask or Ask())}
        return self._send("POST", "/api/plan", PlanView, asked)

    def keys(self) -> list[KeyView]:
        """Every key that the server lets in."""
        return self._get("/api/keys", list[KeyView])

    def add_key(self, name: str, wanted: KeyWanted) -> KeyChange:
        """Have the server let in a key. Raises ApiError with `invalid_request` for a name that is
        taken, and with `invalid_config` for a key that cannot be."""
        return self._send("PUT", f"/api/keys/{quote(name, safe='')}", KeyChange, asdict(wanted))

    def remove_key(self, name: str) -> KeyChange:
        """Have the server let in a key no more. Raises ApiError with `not_found`."""
        return self._send("DELETE", f"/api/keys/{quote(name, safe='')}", KeyChange)

    def requests(self, last: int = 100) -> RequestsView:
        """Requests under way, and the newest that are over."""
        return self._get("/api/requests", RequestsView, {"last": last})

    def cancel(self, request: str) -> list[RequestView]:
        """End a request that is under way. Raises ApiError with `not_found`."""
        return self._send("DELETE", f"/api/requests/{quote(request)}", list[RequestView])

    def logs(self, model: str, lines: int = 100) -> LogView:
        """The newest lines of the model's running or last engine."""
        return self._get(_path(model, "logs"), LogView, {"lines": lines})

    def follow_logs(self, model: str, lines: int = 100) -> Iterator[LineView]:
        """The newest lines and all later ones, until the server ends."""
        stream = self._stream("GET", _path(model, "logs/follow"), params={"lines": lines})
        for event in Events(self.url, stream):
            if isinstance(event.data, LineView):
                yield event.data

    def events(self, topics: Sequence[str] = ()) -> Events:
        """Live news on `topics` (all, if empty); `models` begins with every model as it is."""
        stream = self._stream("GET", "/api/events", params={"topics": ",".join(topics)})
        return Events(self.url, stream)

    # ------------------------------------------------------------------------------- inference

    def chat(self, model: str, messages: Sequence[Message], **params: OptionValue) -> Answer:
        """The next message of a conversation. `params` are OpenAI's; those that are None are left
        out. Blocks until the answer begins, however long the model takes to start."""
        return self._answer(
            "/v1/chat/completions", {"model": model, "messages": messages, **params}
        )

    def complete(self, model: str, prompt: str, **params: OptionValue) -> Answer:
        """The continuation of a text, by a model that does not chat."""
        return self._answer("/v1/completions", {"model": model, "prompt": prompt, **params})

    def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text."""
        body = {"model": model, "input": list(texts)}
        answer = self._post("/v1/embeddings", Embeddings, body)
        return [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]

    def rerank(self, model: str, query: str, documents: Sequence[str]) -> list[Ranked]:
        """The documents' places, the most relevant first."""
        body = {"model": model, "query": query, "documents": list(documents)}
        results = self._post("/v1/rerank", Ranking, body).results
        if any(not 0 <= ranked.index < len(documents) for ranked in results):
            raise NotModelyard(self.url, "a ranked document that was never sent")
        return sorted(results, key=lambda ranked: -ranked.relevance_score)

    # ---------------------------------------------------------------------------------- inside

    def _get(self, path: str, kind: type[T], params: Mapping[str, int] | None = None) -> T:
        with translated(self.url, self.timeout_s):
            response = self._http.get(path, params=params)
        return self._value(response, kind)

    def _post(self, path: str, kind: type[T], body: Mapping[str, object] | None = None) -> T:
        """POST an order to the admin API, or (with a body) a request for a model."""
        with translated(self.url, self.timeout_s):
            if body is None:
                response = self._http.post(path)
            else:
                response = self._http.post(path, json=body, timeout=self._patient)
        return self._value(response, kind)

    def _send(
        self, method: str, path: str, kind: type[T], body: Mapping[str, object] | None = None
    ) -> T:
        """An order that changes what the server keeps; writing may take it as long as it does."""
        with translated(self.url):
            response = self._http.request(method, path, json=body, timeout=self._patient)
        return self._value(response, kind)

    def _value(self, response: httpx.Response, kind: type[T]) -> T:
        if not response.is_success:
            raise refusal(self.url, response)
        return decoded(self.url, response.content, kind)

    def _answer(self, path: str, body: dict[str, Any]) -> Answer:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        wanted = {name: value for name, value in body.items() if value is not None}
        return Answer(self.url, self._stream("POST", path, json=wanted))

    def _stream(self, method: str, path: str, **content: Any) -> Stream:
        request = self._http.build_request(method, path, timeout=self._patient, **content)
        with translated(self.url, self.timeout_s):
            response = self._http.send(request, stream=True)
            if not response.is_success:
                response.read()
                raise refusal(self.url, response)
        return Stream(self.url, response)


def _path(model: str, what: str = "") -> str:
    return f"/api/models/{quote(model)}{'/' if what else ''}{what}"
