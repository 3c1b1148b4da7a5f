"""The pure part of remote models: circuits, weights, names, addresses, configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config import Config, load
from modelyard.config.publish import describe
from modelyard.core.circuit import TRANSITIONS, Choice, Circuit, Gate, News, Thresholds
from modelyard.core.errors import ConfigError
from modelyard.core.specs import RemoteModel
from modelyard.engines.remote import Remote
from modelyard.engines.rename import with_name

THRESHOLDS = Thresholds(failures=2, open_s=5.0, open_max_s=15.0)


def circuit(gate: Gate) -> Circuit:
    """A circuit that came to `gate` by its own rules, at time 0."""
    made = Circuit(THRESHOLDS)
    if gate is not Gate.CLOSED:
        made.failed(0.0, "down")
        made.failed(0.0, "down")
    if gate is Gate.HALF_OPEN:
        made.probed(0.0, "")
    return made


def tell(what: Circuit, news: News) -> None:
    """Enough of the news that it counts."""
    match news:
        case News.ANSWERED:
            what.answered(1.0)
        case News.FAILED:
            what.failed(1.0, "down")
            what.failed(1.0, "down")
        case News.PROBE_ANSWERED:
            what.probed(1.0, "")
        case News.PROBE_FAILED:
            what.probed(1.0, "down")


@pytest.mark.parametrize("news", News)
@pytest.mark.parametrize("gate", Gate)
def test_a_circuit_follows_its_table_and_nothing_else(gate: Gate, news: News) -> None:
    made = circuit(gate)
    assert made.gate is gate

    tell(made, news)

    assert made.gate is TRANSITIONS.get((gate, news), gate)


def test_one_failure_fewer_than_the_threshold_opens_nothing() -> None:
    made = Circuit(THRESHOLDS)
    for at in range(10):
        made.failed(at, "down")
        made.answered(at)

    assert made.gate is Gate.CLOSED


def test_pauses_double_up_to_their_bound_and_shrink_once_it_works() -> None:
    made = circuit(Gate.OPEN)
    pauses = [made.probe_at]
    for _ in range(3):
        now = made.probe_at
        made.probed(now, "still down")
        pauses.append(made.probe_at - now)
    made.probed(100.0, "")
    made.answered(100.0)
    tell(made, News.FAILED)

    assert pauses == [5.0, 10.0, 15.0, 15.0]
    assert made.probe_at == 1.0 + 5.0


def test_a_half_open_circuit_admits_one_trial_at_a_time() -> None:
    made = circuit(Gate.HALF_OPEN)
    assert made.admits(1.0)
    made.chosen(1.0)

    assert not made.admits(2.0)
    assert made.admits(60.0)  # a trial whose client has left is not waited for for ever


def test_requests_are_shared_by_weight_and_evenly() -> None:
    choice = Choice((3, 1, 0), [Circuit(THRESHOLDS) for _ in range(3)])

    asked = [choice.next(0.0) for _ in range(400)]

    assert Counter(asked) == {0: 300, 1: 100}
    assert asked[:4].count(1) == 1


def test_who_is_open_or_tried_is_passed_over_and_weight_0_comes_last() -> None:
    circuits = [circuit(Gate.OPEN), Circuit(THRESHOLDS), Circuit(THRESHOLDS)]
    choice = Choice((5, 1, 0), circuits)

    assert choice.next(0.0) == 1
    assert choice.next(0.0, tried=[1]) == 2
    assert choice.next(0.0, tried=[1, 2]) is None
    assert not choice.is_dark


def test_who_asked_for_a_pause_is_asked_last_and_not_never() -> None:
    circuits = [Circuit(THRESHOLDS), Circuit(THRESHOLDS)]
    choice = Choice((1, 1), circuits)
    circuits[0].rest(0.0, 20.0)

    assert [choice.next(1.0) for _ in range(3)] == [1, 1, 1]
    assert choice.next(1.0, tried=[1]) == 0
    assert {choice.next(21.0), choice.next(21.0)} == {0, 1}


# ------------------------------------------------------------------------------------------- names

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text() | st.just("model"), JSON), st.text(), st.integers(0, 3))
def test_only_the_model_changes_whatever_else_a_request_holds(
    body: dict[str, object], name: str, spaces: int
) -> None:
    body["model"] = "asked for"
    text = msgspec.json.format(msgspec.json.encode(body), indent=spaces)
    marked = with_name(text, "Q")

    assert msgspec.json.decode(with_name(text, name)) == {**body, "model": name}
    assert msgspec.json.decode(marked) == {**body, "model": "Q"}
    assert len(marked) == len(text) - len("asked for") + 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b' {"n" : 1.50,"model"\n:"a", "x":[ 1,{"model":"a"}]} ', None),
        (b'{"m\\u006fdel":"a","t":"\\u00e4 \\" model"}', None),
        (b'{"model":"a","model":"b"}', b'{"model":"up"}'),
        (b'{"a":1,"model":"b","a":1}', b'{"a":1,"model":"up"}'),
        (b'{"model":"up"}', b'{"model":"up"}'),
        (b"[1]", b"[1]"),
        (b'{"model":', b'{"model":'),
        (b"\xff", b"\xff"),
    ],
)
def test_not_a_byte_of_the_rest_changes(body: bytes, expected: bytes | None) -> None:
    if expected is None:
        at = body.index(b'"a"')
        expected = body[:at] + b'"up"' + body[at + 3 :]

    assert with_name(body, "up") == expected


SOUND = bytes(range(256)) * 40 + b'\r\n--other\r\nname="model"\r\n\r\n'


def form(*parts: tuple[str, bytes], boundary: str = "xYz") -> bytes:
    """A form as RFC 7578 has it."""
    shown = (
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (boundary.encode(), head.encode(), value)
        for head, value in parts
    )
    return b"".join(shown) + b"--%b--\r\n" % boundary.encode()


@pytest.mark.parametrize("field", ['name="model"', "name=model", 'a="b"; name="model"; x="y"'])
def test_in_a_form_only_the_model_changes(field: str) -> None:
    def asked(name: bytes) -> bytes:
        recording = ('name="file"; filename="model"\r\nContent-Type: audio/wav', SOUND)
        return form(recording, (field, name), ('name="model_x"', b"a"), (field, name))

    assert with_name(asked(b"whisper-1"), "up") == asked(b"up")
    assert with_name(asked(b""), "up") == asked(b"up")


@pytest.mark.parametrize("cut", [1, 3, 5, 40, 60, 75, -1, -9])
def test_a_form_that_is_cut_off_is_left_to_the_upstream(cut: int) -> None:
    whole = form(('name="model"', b"whisper-1"))[:cut]

    assert with_name(whole, "up") in (whole, form(('name="model"', b"up"))[:cut])


# --------------------------------------------------------------------------------------- the config


def configured(tmp_path: Path, keys: str, **env: str) -> Config:
    path = tmp_path / "modelyard.yaml"
    path.write_text("models:\n  m:\n    engine: remote\n    tasks: [chat]\n" + keys)
    return load(path, env=env)


@pytest.mark.parametrize(
    ("url", "host", "chat"),
    [
        ("https://api.example.com/v1", b"host: api.example.com\r\n", "/v1/chat/completions"),
        ("https://api.example.com", b"host: api.example.com\r\n", "/v1/chat/completions"),
        ("http://box:8080/v1/", b"host: box:8080\r\n", "/v1/chat/completions"),
        ("https://x.ai/a/openai?v=2", b"host: x.ai\r\n", "/a/openai/chat/completions?v=2"),
        ("http://[::1]:99/v1", b"host: [::1]:99\r\n", "/v1/chat/completions"),
    ],
)
def test_an_address_is_a_base_to_which_routes_are_appended(
    tmp_path: Path, url: str, host: bytes, chat: str
) -> None:
    spec = configured(tmp_path, f"    upstreams: [{{url: '{url}'}}]\n").models[0]
    (target,) = Remote().targets(spec)

    assert target.headers == host
    assert target.quirks.path("/v1/chat/completions") == chat
    assert target.is_tls is url.startswith("https")


@pytest.mark.parametrize(
    ("header", "line"),
    [("authorization", b"authorization: Bearer s3cret"), ("api-key", b"api-key: s3cret")],
)
def test_a_key_is_in_its_upstreams_header_and_nowhere_that_people_look(
    tmp_path: Path, header: str, line: bytes
) -> None:
    keys = f"    upstreams: [{{url: 'http://a', key: '${{env:K}}', key_header: {header}}}]\n"
    config = configured(tmp_path, keys, K="s3cret")
    (target,) = Remote().targets(config.models[0])

    assert line in target.headers.split(b"\r\n")
    assert "s3cret" not in repr((config, target))
    assert "s3cret" not in str(describe(config))


def test_another_key_is_another_revision_so_that_a_reload_uses_it(tmp_path: Path) -> None:
    keys = "    upstreams: [{url: 'http://a', key: '${env:K}'}]\n"
    first, second = (configured(tmp_path, keys, K=key).models[0] for key in ("one", "two"))

    assert not first.runs_like(second)
    assert first.runs_like(configured(tmp_path, keys, K="one").models[0])


def test_what_is_shown_of_a_configuration_can_be_read_again(tmp_path: Path) -> None:
    keys = "    upstreams: [{url: 'http://a', model: x, weight: 2}]\n    circuit: {open: 9s}\n"
    config = configured(tmp_path, keys)
    shown = describe(config)["models"]["m"]
    again = configured(
        tmp_path,
        f"    upstreams: {shown['upstreams']}\n    circuit: {shown['circuit']}\n".replace(
            "None", "null"
        ),
    )

    assert again.models[0].remote == config.models[0].remote != RemoteModel()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", "upstreams: is missing; the engine remote needs it"),
        ("    upstreams: [{url: ftp://x}]", "upstreams[0].url: must begin with https://"),
        ("    upstreams: [{url: 'https://'}]", "upstreams[0].url: names no host"),
        ("    upstreams: [{url: 'http://u:s3cret@h'}]", "must not hold a user or a password"),
        ("    upstreams: [{url: 'http://h/v1/rerank'}]", "leave out /rerank"),
        ("    upstreams: [{url: 'http://h:99999'}]", "upstreams[0].url: is no address"),
        ("    upstreams: [{url: 'http://h', key: 's3cret x'}]", "upstreams[0].key: holds spaces"),
        ("    upstreams: [{url: 'http://h', key_header: host}]", "a header that Modelyard writes"),
        ("    upstreams: [{url: 'http://h', weight: 0}]", "is 0 for every upstream"),
        ("    upstreams: [{url: 'http://h', dialect: anthropics}]", "did you mean anthropic?"),
        ("    upstreams: [{url: 'http://h', kee: x}]", "upstreams[0].kee: there is no such key"),
        ("    upstreams: [{url: 'http://h'}]\n    memory: 1GiB", "memory: means nothing for the"),
        ("    upstreams: [{url: 'http://h'}]\n    source: x", "source: means nothing for the"),
        (
            "    upstreams: [{url: 'http://h'}]\n    circuit: {open: 2m}",
            "circuit.open: is longer than open_max",
        ),
    ],
)
def test_what_is_wrong_is_said_without_repeating_a_secret(
    tmp_path: Path, keys: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(tmp_path, keys)

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_upstreams_of_another_engine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "modelyard.yaml"
    path.write_text("models: {m: {source: x.gguf, upstreams: [{url: 'http://h'}]}}")

    with pytest.raises(ConfigError, match="belongs to engine: remote"):
        load(path, env={})
