"""The section `keys`: how it is read and written back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config import Config, describe, load
from modelyard.config.edit import with_key
from modelyard.config.keyring import KeyWanted
from modelyard.config.keys import (
    MOST_PER_TIME,
    format_moment,
    format_rate,
    parse_moment,
    parse_rate,
    view_of,
)
from modelyard.core.errors import ConfigError
from modelyard.core.keys import Key, Scope, digest_of
from modelyard.core.quota import Quota, Rate

Loader = Callable[..., Config]
Problems = Callable[..., Sequence[str]]

DIGEST = digest_of("a key")
OTHER = digest_of("another key")
FULL = f"""\
keys:
  ann:
    digest: {DIGEST}
    scopes: [admin, inference]
    models: [tiny, "qwen*"]
    hosts: [10.0.0.0/8, "fe80::/10", 192.168.1.9]
    expires: 2027-01-31
    priority: 5
    limits: {{requests: 60/min, tokens: 100k/min, concurrency: 4}}
"""


def test_every_key_reaches_its_field(load_text: Loader) -> None:
    expected = Key(
        "ann",
        DIGEST,
        frozenset({Scope.ADMIN, Scope.INFERENCE}),
        ("tiny", "qwen*"),
        (ip_network("10.0.0.0/8"), ip_network("fe80::/10"), ip_network("192.168.1.9")),
        1801353600.0,
        5,
        Quota(Rate(60, 60), Rate(100_000, 60), 4),
    )

    assert load_text(FULL).keys == (expected,)


def test_a_digest_alone_opens_inference_of_all_models_from_everywhere_without_limits(
    load_text: Loader,
) -> None:
    assert load_text(f"keys: {{ann: {{digest: {DIGEST}}}}}").keys == (Key("ann", DIGEST),)


def test_what_is_described_loads_as_the_same_keys(load_text: Loader, tmp_path: Path) -> None:
    config = load_text(FULL + f"  bob: {{digest: {OTHER}}}\n")
    described = describe(config)["keys"]

    assert described["ann"]["hosts"] == ["10.0.0.0/8", "fe80::/10", "192.168.1.9"]
    assert described["ann"]["limits"] == {
        "requests": "60/min", "tokens": "100k/min", "concurrency": 4,
    }  # fmt: skip
    assert load(None, env={}, overrides={"keys": described}).keys == config.keys


def test_a_key_s_digest_may_come_from_a_variable(load_text: Loader) -> None:
    text = "keys: {ann: {digest: '${env:ANN}', limits: {requests: '${env:RATE}'}}}"
    config = load_text(text, env={"ANN": DIGEST, "RATE": "5/s"})

    assert config.keys == (Key("ann", DIGEST, quota=Quota(Rate(5, 1))),)
    assert describe(config)["keys"]["ann"]["digest"] == "${env:ANN}"


def test_the_key_that_commands_show_is_no_setting() -> None:
    assert load(None, env={"MODELYARD_API_KEY": "my-ann-secret"}).keys == ()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{}", "keys.ann.digest: is missing; give it a value"),
        ("{digest: 7}", "keys.ann.digest: is not a digest; `modelyard keys add` makes keys"),
        ("{digest: my-ann-secret}", "keys.ann.digest: holds a key, not its digest; make a new one"),
        ("{digest: sha256:abc}", "keys.ann.digest: is not a digest"),
        ("{digest: D, scopes: [admn]}", "keys.ann.scopes[0]: 'admn' is not a scope; did you mean"),
        ("{digest: D, scopes: admin}", "keys.ann.scopes: must be a list, not 'admin'; write ['adm"),
        ("{digest: D, models: ['']}", "keys.ann.models[0]: must not be empty"),
        ("{digest: D, hosts: [10.0.0.1/8]}", "has bits outside its range; write 10.0.0.0/8"),
        ("{digest: D, hosts: [box.lan]}", "keys.ann.hosts[0]: 'box.lan' is not an address; write"),
        ("{digest: D, hosts: [7]}", "keys.ann.hosts[0]: 7 is not an address; write an address"),
        ("{digest: D, expires: soon}", "keys.ann.expires: 'soon' is not a date; write it like 2"),
        ("{digest: D, expires: 2027-02-30}", "keys.ann.expires: '2027-02-30' is not a date"),
        ("{digest: D, expires: 5}", "keys.ann.expires: 5 is not a date"),
        ("{digest: D, priority: high}", "keys.ann.priority: must be a whole number, not 'high'"),
        ("{digest: D, limits: {requests: 60}}", "keys.ann.limits.requests: 60 is not so much per"),
        ("{digest: D, limits: {tokens: 1k/week}}", "keys.ann.limits.tokens: 'week' is not a time;"),
        ("{digest: D, limits: {tokens: 0/s}}", "keys.ann.limits.tokens: '0/s' is not between 1 an"),
        ("{digest: D, limits: {concurrency: 0}}", "keys.ann.limits.concurrency: 0 is not between"),
        ("{digest: D, limits: {rpm: 5}}", "keys.ann.limits.rpm: there is no such key; the keys he"),
        ("{digest: D, secret: x}", "keys.ann.secret: there is no such key; the keys here are dige"),
        (f"{{digest: D}}, '{'a' * 65}': {{digest: {OTHER}}}", f'keys.{"a" * 65}: '),
        (f"{{digest: D}}, 'a b': {{digest: {OTHER}}}", "keys[\"a b\"]: 'a b' is not a name for a"),
        ("{digest: D}, bob: {digest: D}", "keys.bob.digest: is the digest of the key ann, too; ea"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_with_advice(
    problems_of: Problems, entry: str, problem: str
) -> None:
    (told,) = problems_of("keys: {ann: " + entry.replace("digest: D", f"digest: {DIGEST}") + "}")

    assert problem in told
    assert "my-ann-secret" not in told


def test_one_wrong_key_hides_no_other_problem(problems_of: Problems) -> None:
    told = problems_of(f"keys: {{a: {{digest: 1}}, b: {{digest: {DIGEST}, scopes: [x]}}}}\nx: 1")

    assert len(told) == 3


# ------------------------------------------------------------------------- who may reach the server


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "box.lan"])
def test_an_admin_key_stands_for_insecure(
    load_text: Loader, problems_of: Problems, host: str
) -> None:
    server = f"server: {{host: '{host}'}}\n"
    keys = f"keys: {{ann: {{digest: {DIGEST}, scopes: [SCOPE]}}}}"

    assert load_text(server + keys.replace("SCOPE", "admin")).server.host == host
    for scope in ("inference", "read"):
        (problem,) = problems_of(server + keys.replace("SCOPE", scope))
        assert "no key with the scope admin protects the server" in problem


def test_any_page_may_only_where_a_key_protects_the_admin_api(
    load_text: Loader, problems_of: Problems
) -> None:
    server = "server: {cors_origins: ['*']}\n"
    (problem,) = problems_of(server)
    keys = f"keys: {{ann: {{digest: {DIGEST}, scopes: [admin]}}}}"

    assert "would let every web page that anybody here visits" in problem
    assert load_text(server + keys).server.cors_origins == ("*",)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.com:443", "https://chat.example.com"),
        ("http://box.lan:3000", "http://box.lan:3000"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_origins_are_read_as_browsers_write_them(
    load_text: Loader, written: str, read: str
) -> None:
    assert load_text(f"server: {{cors_origins: ['{written}']}}").server.cors_origins == (read,)


@pytest.mark.parametrize(
    "origin",
    ["chat.example.com", "https://a/b", "https://a/", "ftp://a", "https://u@a", "https://a:x",
     "https://a?b", "null", "https://", "https://ä.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(problems_of: Problems, origin: str) -> None:
    (problem,) = problems_of(f"server: {{cors_origins: ['{origin}']}}")

    assert "origin; write it like https://chat.example.com" in problem


# -------------------------------------------------------------------------------- rates and moments


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/min", Rate(60, 60)),
        ("100k/min", Rate(100_000, 60)),
        ("1.5M/day", Rate(1_500_000, 86_400)),
        ("10 / s", Rate(10, 1)),
        ("5/second", Rate(5, 1)),
        ("7K/hour", Rate(7000, 3600)),
        ("1/d", Rate(1, 86_400)),
    ],
)
def test_rates_are_read_as_people_write_them(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@given(st.integers(1, MOST_PER_TIME), st.sampled_from([1, 60, 3600, 86_400]))
def test_what_is_written_of_a_rate_reads_as_the_same(amount: int, per_s: int) -> None:
    assert parse_rate(format_rate(Rate(amount, per_s))) == Rate(amount, per_s)


@given(st.integers(-(10**9), 4 * 10**9))
def test_what_is_written_of_a_moment_reads_as_the_same(at: int) -> None:
    assert parse_moment(format_moment(float(at))) == at


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_nonsense_is_refused_and_never_breaks_anything(value: object) -> None:
    told = []
    for parse in (parse_rate, parse_moment):
        try:
            told.append(str(parse(value)))
        except ValueError as refused:
            told.append(str(refused))

    assert all(len(text) < 1000 and text.isprintable() for text in told)


def test_a_view_tells_everything_but_the_digest(load_text: Loader) -> None:
    (key,) = load_text(FULL).keys
    view = view_of(key, 0.0)

    assert (view.expires, view.has_expired) == ("2027-01-31", False)
    assert view_of(key, 1801353600.0).has_expired
    assert (view.requests, view.tokens, view.concurrency) == ("60/min", "100k/min", 4)
    assert DIGEST not in str(view)
    assert DIGEST not in repr(key)


# ---------------------------------------------------------------------------- writing into the file

COMMENTED = """\
# Ours.
server: {port: 1}   # one
keys:  # who may
  # the first
  ann: {digest: D}   # Ann
  bob:
    digest: E
    limits:
      requests: 5/s   # slow

# The end.
""".replace("D}", f"{DIGEST}}}").replace("E\n", f"{OTHER}\n")
ENTRY = KeyWanted(digest_of("third"), models=["m"], requests="1/s").entry()


def edited(text: str, name: str, entry: dict[str, object] | None) -> str:
    return with_key(text.encode(), "/etc/m.yaml", name, entry).decode()  # type: ignore[arg-type]


def test_a_key_is_added_behind_the_others_and_no_other_byte_changes() -> None:
    new = (
        f'  eve:\n    digest: "{digest_of("third")}"\n    scopes: ["inference"]\n'
        '    models: ["m"]\n    limits:\n      requests: "1/s"\n'
    )

    assert edited(COMMENTED, "eve", dict(ENTRY)) == COMMENTED.replace("\n\n#", f"\n{new}\n#")


def test_taking_a_key_out_gives_the_file_that_was_there_before() -> None:
    assert edited(edited(COMMENTED, "eve", dict(ENTRY)), "eve", None) == COMMENTED
    assert edited(COMMENTED, "nobody", None) == COMMENTED
    assert "bob" not in edited(COMMENTED, "bob", None)
    assert "# the first" in edited(COMMENTED, "ann", None)


@pytest.mark.parametrize(
    "text",
    ["", "# empty", "keys:\n", "keys: {}\n", "keys: {}  # none\nserver: {port: 1}\n",
     "models: {}\n", '{"keys": {}}', "server:\n    port: 1\n", "\ufeffkeys:\r\n"],
)  # fmt: skip
def test_the_first_key_fits_into_any_file_and_can_be_taken_out_again(text: str) -> None:
    added = edited(text, "eve", dict(ENTRY))
    content = added.encode()
    config = load(Path("m.yaml"), env={}, content=content)
    without = load(Path("m.yaml"), env={}, content=edited(added, "eve", None).encode())

    assert [(key.name, key.models) for key in config.keys] == [("eve", ("m",))]
    assert without.keys == ()


def test_a_file_that_cannot_be_edited_says_what_to_write_by_hand() -> None:
    text = f"a: &all {{ann: {{digest: {DIGEST}}}}}\nkeys: *all\n"

    with pytest.raises(ConfigError, match="cannot be edited where it says keys"):
        edited(text, "eve", dict(ENTRY))
    with pytest.raises(ConfigError, match="keys: must hold keys and values"):
        edited("keys: [a]\n", "eve", dict(ENTRY))
