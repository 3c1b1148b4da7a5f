"""Web pages of others: who may, and what browsers are told."""

from __future__ import annotations

import pytest

from modelyard.http.cors import Cors

PAGE = b"https://chat.example.com"
ASKS = {b"access-control-request-method": b"POST"}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"https://chat.example.com", True),
        (b"HTTPS://chat.example.com", True),
        (b"http://chat.example.com", False),
        (b"https://chat.example.com:8443", False),
        (b"https://chat.example.com.evil.org", False),
        (b"https://evil.org#https://chat.example.com", False),
        (b"null", False),
        (b"", False),
        (b"\xff\r\n", False),
    ],
)
def test_only_the_very_origin_that_was_named_may(origin: bytes, allowed: bool) -> None:
    cors = Cors(["https://chat.example.com"])

    assert cors.allows(origin) is allowed
    assert bool(cors.headers(origin)) is allowed
    assert (cors.preflight(origin, ASKS) is not None) is allowed


def test_a_preflight_grants_what_clients_of_openai_and_anthropic_send() -> None:
    wanted = (
        b"authorization, content-type,X-Stainless-OS, x-stainless-retry-count, OpenAI-Beta, "
        b"anthropic-version,anthropic-dangerous-direct-browser-access, x-api-key, cookie, x-evil"
    )
    answer = Cors([PAGE.decode()]).preflight(
        PAGE, {**ASKS, b"access-control-request-headers": wanted}
    )
    assert answer is not None
    told = dict(answer)

    assert told[b"access-control-allow-origin"] == PAGE
    assert b"POST" in told[b"access-control-allow-methods"].split(b", ")
    assert told[b"access-control-allow-headers"] == (
        b"authorization, content-type, x-stainless-os, x-stainless-retry-count, openai-beta, "
        b"anthropic-version, anthropic-dangerous-direct-browser-access, x-api-key"
    )
    assert b"access-control-allow-credentials" not in told


def test_no_header_that_is_asked_for_can_break_out_of_the_answer() -> None:
    wanted = b"x-stainless-a\r\nset-cookie: a=b, openai-\x00, anthropic-x y, " + b"accept," * 5000
    answer = dict(
        Cors(["*"]).preflight(PAGE, {**ASKS, b"access-control-request-headers": wanted}) or []
    )

    granted = answer[b"access-control-allow-headers"].split(b", ")
    assert set(granted) == {b"accept"}
    assert len(granted) < 100


def test_an_options_request_that_asks_for_no_method_is_no_preflight() -> None:
    assert Cors(["*"]).preflight(PAGE, {}) is None


def test_a_page_of_the_outer_world_may_ask_to_reach_into_a_private_network() -> None:
    asked = {**ASKS, b"access-control-request-private-network": b"true"}

    told = dict(Cors([PAGE.decode()]).preflight(PAGE, asked) or [])
    assert told[b"access-control-allow-private-network"] == b"true"


def test_pages_may_read_the_limits_and_the_request_id() -> None:
    shown = dict(Cors([PAGE.decode()]).headers(PAGE))[b"access-control-expose-headers"].split(b", ")

    assert {b"x-request-id", b"retry-after", b"x-ratelimit-remaining-tokens"} <= set(shown)


def test_without_origins_nobody_may() -> None:
    assert not Cors([])
    assert not Cors([]).allows(PAGE)
