"""The command that talks to a model: one question, or a conversation.

Laws of this file:
- The answer, and nothing else, goes to stdout; it is written as it comes.
- Ctrl-C in a conversation stops the answer and nothing more; elsewhere it ends the command.
- What did not get an answer is no part of the conversation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli import exits, virtuals
from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json, Model, Url
from modelyard.cli.output import is_terminal, note, print_json
from modelyard.cli.words import clean

if TYPE_CHECKING:
    from modelyard.client import Answer, Client

PROMPT = ">>> "
HELP = "/bye or Ctrl-D ends, /clear forgets the conversation, Ctrl-C stops an answer"


class WrongKind(BadUsage):
    """`run` talks; this model does something else."""

    code = "wrong_task"


def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; - reads it from stdin. Without it: a conversation."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="System message.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", min=0, metavar="NUMBER", help="How much to vary."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="NUMBER", help="Longest answer, in tokens."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask a model something, or have a conversation with it. It is started if need be.

    Examples: modelyard run qwen "Why is the sky blue?"; cat notes.txt | modelyard run qwen
    """
    from modelyard.client import Client

    question = _question(prompt)
    if question is None and as_json:
        raise BadUsage("--json needs a PROMPT", hint='write `modelyard run MODEL "..." --json`')
    with Client(url) as client:
        partner, address = _talking(client, model), client.url
    talk = Talk(address, partner, system, temperature, max_tokens)
    if question is None:
        converse(talk)
    elif as_json:
        print_json(talk.ask_whole(question))
    else:
        talk.ask(question, _write)
        print()


class NobodyThere(BadUsage):
    """A virtual model, of whose targets none is there."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True)
class Partner:
    """Whom a conversation is with."""

    name: str
    """A model, a variant, or a virtual model."""
    models: frozenset[str]
    """Ids of the models that may answer."""
    tasks: frozenset[str]


class Talk:
    """A conversation with one model of the server at `url`."""

    def __init__(
        self,
        url: str,
        partner: Partner,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if system is not None and "chat" not in partner.tasks:
            raise BadUsage(
                f"model {partner.name!r} continues texts and knows no system message",
                hint="leave --system out",
            )
        self.model = partner.name
        self._url = url
        self._partner = partner
        self._chats = "chat" in partner.tasks
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._params = {"temperature": temperature, "max_tokens": max_tokens}

    def forget(self) -> None:
        """Begin anew, with the system message alone."""
        self._messages = list(self._start)

    def ask(self, question: str, write: Callable[[str], None]) -> Answer:
        """Write the answer as it comes. Interrupted, the question counts as never asked."""
        from modelyard.client import Client

        asked = {"role": "user", "content": question}
        parts = []
        # A client for each question: one that was interrupted is not used again.
        with Client(self._url) as client, while_loading(client, self._partner) as loaded:
            if self._chats:
                answer = client.chat(self.model, [*self._messages, asked], **self._params)
            else:
                answer = client.complete(self.model, question, **self._params)
            with closing(answer):
                for text in answer:
                    loaded()
                    parts.append(text)
                    write(text)
        self._messages += [asked, {"role": "assistant", "content": "".join(parts)}]
        return answer

    def ask_whole(self, question: str) -> dict[str, Any]:
        """The answer and what it took, in one piece."""
        parts: list[str] = []
        began = time.monotonic()
        answer = self.ask(question, parts.append)
        return {
            "model": self.model,
            "text": "".join(parts),
            "finish_reason": answer.finish_reason,
            "usage": answer.usage,
            "seconds": round(time.monotonic() - began, 3),
        }


def converse(talk: Talk) -> None:
    """Questions from the terminal until /bye or the end of the input."""
    with_line_editing()
    note(f"Talking to {talk.model}: {HELP}.")
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note(f"\n({HELP})")
            continue
        if line == "/bye":
            return
        if line == "/clear":
            talk.forget()
            note("(forgotten)")
        elif line.startswith("/"):
            note(f"({HELP})")
        elif line:
            _exchange(talk, line)


def _exchange(talk: Talk, line: str) -> None:
    """One question and its answer. An error ends neither the conversation nor the command."""
    from modelyard.core.errors import ModelyardError

    try:
        talk.ask(line, _write)
    except KeyboardInterrupt:
        note("\n(stopped)")
    except ModelyardError as error:
        print()
        exits.tell(error)
    else:
        print()


@contextmanager
def while_loading(client: Client, partner: Partner) -> Iterator[Callable[[], None]]:
    """Show on stderr how whoever may answer loads, until the yielded function is first called."""
    from modelyard.cli.progress import Listener, Progress, describe
    from modelyard.core.views import Event, ModelView

    with Progress() as progress:

        def hear(event: Event) -> None:
            view = event.data
            if not isinstance(view, ModelView) or view.id not in partner.models:
                return
            if view.state != "ready" and (view.state != "stopped" or view.waiting_for):
                progress.show(describe(view))

        is_ready = virtuals.found(client, partner.name).state == "ready"
        listener = None if is_ready else Listener(client.url, hear)
        try:
            yield progress.close
        finally:
            if listener is not None:
                listener.close()


def with_line_editing() -> None:
    """Have `input` edit lines and remember them, where the platform can."""
    import importlib
    import importlib.util

    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")


def _talking(client: Client, model: str) -> Partner:
    """The model, which must be one that `run` can talk to."""
    from modelyard.core.views import VirtualView

    view = virtuals.found(client, model)
    if isinstance(view, VirtualView):
        name, models = view.id, view.models
        if not models:
            raise NobodyThere(
                f"the virtual model {name!r} stands for {', '.join(view.unknown)}, "
                f"and there is no such model",
                hint="`modelyard list` shows the models that there are",
            )
    else:
        name, models = model if model in view.variants else view.id, [view.id]
    if {"chat", "completion"} & set(view.tasks):
        return Partner(name, frozenset(models), frozenset(view.tasks))
    route = "/v1/embeddings" if "embedding" in view.tasks else "/v1/rerank"
    tasks = ", ".join(view.tasks) or "nothing that all its targets share"
    raise WrongKind(
        f"model {view.id!r} is for {tasks} and does not talk",
        hint=f"POST to {client.url}{route}; `modelyard list` shows the models that chat",
    )


def _question(prompt: str | None) -> str | None:
    """The prompt, or what is piped in; None for a conversation."""
    if prompt is not None and prompt != "-":
        # An argument that is not UTF-8 comes with surrogates, which JSON cannot hold.
        return prompt.encode("utf-8", "replace").decode()
    if prompt is None and sys.stdin.isatty():
        return None
    text = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not text:
        raise BadUsage("there is nothing to ask: stdin is empty", hint="give a PROMPT")
    return text


def _write(text: str) -> None:
    sys.stdout.write(clean(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()
