"""Who may what: keys, scopes, places, dates, models, and who is asked nothing."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.errors import Forbidden, ModelNotFound, RateLimited, Unauthorized
from modelyard.core.keys import KEY_TEXT, Key, Scope, digest_of, key_text
from modelyard.core.quota import NS, Balance, Quota, Rate
from modelyard.http.access import ANYONE, Access
from modelyard.http.errors import headers_of, status_of
from modelyard.http.limits import limit_lines
from modelyard.http.record import Record

SECRETS = {"ann": bytes(range(32)), "a-b-c": bytes([255] * 32), "root": bytes(range(1, 33))}
TEXTS = {name: key_text(name, secret) for name, secret in SECRETS.items()}
INFERENCE = frozenset({Scope.INFERENCE})


def key(name: str, **parts: object) -> Key:
    known = Key(name, digest_of(TEXTS[name]))
    return dataclasses.replace(known, **parts)  # type: ignore[arg-type]  # checked by fields


def shown(name: str) -> bytes:
    return f"Bearer {TEXTS[name]}".encode()


def access(*keys: Key, is_loopback: bool = True, now: float = 0.0) -> Access:
    return Access(keys, is_loopback=is_loopback, clock=lambda: now)


def refusal(
    access: Access, method: str, path: str, credential: bytes = b"", host: str = "127.0.0.1"
) -> int:
    """The status that a visitor gets; 200 for being let in."""
    try:
        access.visitor(method, path, credential, host)
    except (Unauthorized, Forbidden) as error:
        return status_of(error)
    return 200


# ---------------------------------------------------------------------------------------- the keys


def test_without_keys_anyone_may_do_anything_and_nothing_is_kept_of_them() -> None:
    open_to_all = access()
    caller = open_to_all.caller(b"Bearer whatever", "192.168.1.9")
    held = caller.enter(1.0, 10**9)
    caller.leave(held, Record("r", 0.0, "/v1", prompt_tokens=5), 2.0)

    assert caller is ANYONE
    assert caller.may_use("any")
    assert (caller.name, caller.priority, caller.balances(2.0)) == ("", 0, [])
    assert (caller.requests, caller.tokens, caller.last_used) == (0, 0, None)
    assert refusal(open_to_all, "DELETE", "/api/keys/x") == 200


@pytest.mark.parametrize("name", ["ann", "a-b-c"])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {} ", "{}"])
def test_a_key_is_known_in_every_form_that_clients_send_it_in(name: str, form: str) -> None:
    keys = access(key("ann"), key("a-b-c"))

    assert keys.caller(form.format(TEXTS[name]).encode(), "").name == name


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "Bearer ",
        "Bearer",
        "my-ann-",
        "my-ann",
        "sk-whatever",
        TEXTS["ann"][:-1],
        TEXTS["ann"] + "x",
        TEXTS["ann"][:-1] + "_",
        TEXTS["ann"].replace("my-ann", "my-root"),
        TEXTS["ann"].replace("my-", "MY-"),
        f"Basic {TEXTS['ann']}",
        digest_of(TEXTS["ann"]),
        "my-ann-" + "a" * 43,
        "my-" + "\xff" * 200,
        "x" * 100_000,
    ],
)
def test_what_is_no_key_opens_nothing(credential: str) -> None:
    keys = access(key("ann"), key("root", scopes=frozenset(Scope)))

    with pytest.raises(Unauthorized) as refused:
        keys.caller(credential.encode("latin-1"), "127.0.0.1")
    assert refusal(keys, "GET", "/api/models", credential.encode("latin-1")) == 401
    assert status_of(refused.value) == 401
    assert (b"www-authenticate", b"Bearer") in headers_of(refused.value)
    assert len(credential) < 8 or credential not in str(refused.value)


@given(st.binary(max_size=200), st.text(max_size=40))
def test_whatever_is_shown_it_is_refused_and_breaks_nothing(shown: bytes, host: str) -> None:
    keys = access(key("ann", hosts=(ip_network("10.0.0.0/8"),)))
    right = TEXTS["ann"].encode()

    for credential in (shown, b"Bearer " + shown, b"my-ann-" + shown, right + shown + b"."):
        with pytest.raises(Unauthorized):
            keys.caller(credential, host)
    with pytest.raises(Forbidden):
        keys.caller(right, host)


def test_a_key_that_has_expired_is_refused_from_that_moment_on() -> None:
    ann = key("ann", expires_at=1000.0)

    assert access(ann, now=999.9).caller(shown("ann"), "").name == "ann"
    with pytest.raises(Unauthorized, match="'ann' has expired"):
        access(ann, now=1000.0).caller(shown("ann"), "")


@pytest.mark.parametrize(
    ("host", "enters"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("fe80::1%eth0", True),
        ("fd00::1", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_a_key_is_good_only_where_it_may_be_used_from(host: str, enters: bool) -> None:
    keys = access(key("ann", hosts=(ip_network("10.0.0.0/8"), ip_network("fe80::/10"))))

    for _ in range(2):  # the second time from memory
        if enters:
            assert keys.caller(shown("ann"), host).name == "ann"
        else:
            with pytest.raises(Forbidden, match="may not be used from"):
                keys.caller(shown("ann"), host)


def test_a_model_is_allowed_by_its_id_or_by_a_pattern() -> None:
    caller = access(key("ann", models=("qwen*", "org/one"))).caller(shown("ann"), "")

    asked = ["qwen3-8b", "qwen", "org/one", "org/one-more", "Qwen3", "gpt-4o", "xqwen"]
    expected = [True, True, True, False, False, False, False]
    assert [caller.may_use(model) for model in asked] == expected
    assert [caller.may_use(model) for model in asked] == expected  # from memory


def test_a_refused_model_looks_as_if_it_was_not_there() -> None:
    known = ModelNotFound("qwen-smal", ["qwen-small"])
    bound = access(key("ann", models=("llama",))).caller(shown("ann"), "")
    free = access(key("ann")).caller(shown("ann"), "")

    assert str(bound.unknown("secret")) == str(ModelNotFound("secret"))
    assert str(bound.unknown("qwen-smal", known)) == str(ModelNotFound("qwen-smal"))
    assert free.unknown("qwen-smal", known) is known


# --------------------------------------------------------------------------------------- the scopes


def test_each_scope_opens_its_own_routes_and_no_others() -> None:
    routes = [
        ("GET", "/v1/models"),
        ("GET", "/api/tags"),
        ("GET", "/api/models"),
        ("POST", "/api/plan"),
        ("GET", "/api/captures"),
        ("GET", "/api/captures/req-1"),
        ("POST", "/api/models/m/start"),
        ("DELETE", "/api/requests/req-1"),
        ("OPTIONS", "/api/models"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
    ]

    def opened(*scopes: Scope) -> list[int]:
        keys = access(key("ann", scopes=frozenset(scopes)), key("root", scopes=frozenset(Scope)))
        return [refusal(keys, *route, shown("ann")) for route in routes]

    assert opened(Scope.INFERENCE) == [200, 200, 403, 403, 403, 403, 403, 403, 403, 403, 403]
    assert opened(Scope.READ) == [200, 200, 200, 200, 403, 403, 403, 403, 403, 200, 200]
    assert opened(Scope.ADMIN) == [200] * len(routes)


def test_models_are_asked_with_the_scope_inference_alone() -> None:
    keys = access(key("root", scopes=frozenset({Scope.ADMIN})), key("ann"))

    assert keys.caller(shown("ann"), "").name == "ann"
    with pytest.raises(Forbidden, match="'root' has no scope 'inference'"):
        keys.caller(shown("root"), "")


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/api/health", "/docs", "/"])
def test_health_stays_open(path: str) -> None:
    keys = access(key("root", scopes=frozenset(Scope)), is_loopback=False)

    assert refusal(keys, "GET", path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/models", "//api/models", "/api/../health", "/health/../api/models", "/api/health/",
        "/API/models", "/api/models%2f", "/v1/models/../../api/models", "/v1/", "",
    ],
)  # fmt: skip
def test_no_other_spelling_of_a_path_is_open(path: str) -> None:
    keys = access(key("root", scopes=frozenset(Scope)), is_loopback=False)

    assert refusal(keys, "GET", path) == 401


def test_the_admin_api_stays_open_on_this_machine_while_no_key_is_for_it() -> None:
    ann, root = key("ann"), key("root", scopes=frozenset({Scope.ADMIN}))
    reader = key("root", scopes=frozenset({Scope.READ}))

    assert refusal(access(ann), "POST", "/api/models/m/stop") == 200
    assert refusal(access(ann), "GET", "/v1/models") == 401
    assert refusal(access(ann, is_loopback=False), "GET", "/api/models") == 401
    assert refusal(access(ann, is_loopback=False), "GET", "/api/models", shown("ann")) == 403
    assert refusal(access(ann, root), "GET", "/api/models") == 401
    assert refusal(access(ann, reader), "POST", "/api/models/m/stop") == 401


# --------------------------------------------------------------------------------------- the limits


def test_a_refusal_tells_clients_how_much_there_is_and_when_to_come_again() -> None:
    quota = Quota(Rate(2, 60), Rate(100_000, 60))
    caller = access(key("ann", quota=quota)).caller(shown("ann"), "")
    caller.enter(5.0, 0)
    caller.enter(5.0, 0)

    with pytest.raises(RateLimited, match="'ann' may use 2 requests in 60 s") as refused:
        caller.enter(5.0, 0)
    assert status_of(refused.value) == 429
    assert {(b"x-should-retry", b"true"), (b"retry-after", b"30")} < set(headers_of(refused.value))
    assert limit_lines(caller.balances(5.0)).decode().splitlines() == [
        "x-ratelimit-limit-requests: 2",
        "x-ratelimit-remaining-requests: 0",
        "x-ratelimit-reset-requests: 1m0s",
        "x-ratelimit-limit-tokens: 100000",
        f"x-ratelimit-remaining-tokens: {100_000 - 2 * 257}",
        "x-ratelimit-reset-tokens: 0ms",
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0ms"), (0.1201, "121ms"), (1.0, "1s"), (59.2, "1m0s"), (360, "6m0s"),
     (86399.5, "24h0m0s")],
)  # fmt: skip
def test_spans_are_told_as_openai_tells_them_and_never_too_short(seconds: float, told: str) -> None:
    lines = limit_lines([Balance("tokens", 5, 1, int(seconds * NS))]).decode()

    assert lines.endswith(f"\r\nx-ratelimit-reset-tokens: {told}\r\n")


def test_the_limit_of_requests_at_once_counts_those_that_have_not_left() -> None:
    caller = access(key("ann", quota=Quota(concurrency=1))).caller(shown("ann"), "")
    held = caller.enter(0.0, 0)
    with pytest.raises(RateLimited, match="1 requests at once"):
        caller.enter(1.0, 0)
    caller.leave(held, Record("r", 100.0, "/v1", prompt_tokens=3, total_s=2.0), 2.0)

    assert caller.enter(2.0, 0) == 0
    assert (caller.running, caller.requests, caller.tokens, caller.last_used) == (1, 2, 3, 102.0)


def test_a_reload_keeps_what_keys_have_used_and_takes_over_what_has_changed() -> None:
    quota = Quota(Rate(2, 60))
    keys = access(key("ann", quota=quota), key("root"))
    caller = keys.caller(shown("ann"), "")
    caller.enter(0.0, 0)
    keys.update([key("ann", quota=quota, models=("m",), priority=7)])
    again = keys.caller(shown("ann"), "")

    assert again is caller
    assert (again.priority, again.may_use("m"), again.may_use("other")) == (7, True, False)
    assert [one.left for one in again.balances(0.0)] == [1]
    with pytest.raises(Unauthorized):
        keys.caller(shown("root"), "")


def test_a_key_made_anew_under_an_old_name_begins_afresh() -> None:
    keys = access(key("ann", quota=Quota(Rate(1, 60))))
    keys.caller(shown("ann"), "").enter(0.0, 0)
    other = key_text("ann", bytes(32))
    keys.update([Key("ann", digest_of(other), quota=Quota(Rate(1, 60)))])

    assert keys.caller(other.encode(), "").enter(0.0, 0) == 0
    with pytest.raises(Unauthorized):
        keys.caller(shown("ann"), "")


def test_a_key_is_recognised_wherever_it_stands() -> None:
    text = f"x{TEXTS['a-b-c']} and {TEXTS['ann']}, my-dog".encode()

    assert [found[0].decode() for found in KEY_TEXT.finditer(text)] == [
        TEXTS["a-b-c"],
        TEXTS["ann"],
    ]
    assert len(TEXTS["ann"]) == len("my-ann-") + 43
