"""Requests as they should not be, or hardly ever are, and the answer that each must get.

Laws of this file:
- A case is bytes for one connection, the statuses of all final answers in their order, and why.
- `open` says that the connection must take a further request after them; otherwise the server
  must close it by itself.
- The model is called `m`, and it is not the only one. 200 from an inference route says that its
  engine has had the request; every other status says that it has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LISTING = b"GET /v1/models HTTP/1.1\r\n" + HOST
HIDDEN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + LENGTH + b"\r\n" + BODY
"""A request that somebody tries to hide in another one."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    data: bytes
    answers: tuple[int, ...]
    """Statuses of the final answers; none says that the connection is closed without one."""
    why: str
    open: bool = False


def chat(*lines: bytes, body: bytes = BODY, length: bool = True) -> bytes:
    """A chat request with these header lines, which end with CRLF."""
    framing = b"Content-Length: %d\r\n" % len(body) if length else b""
    return CHAT + HOST + b"".join(lines) + framing + b"\r\n" + body


def said(body: bytes) -> bytes:
    return chat(JSON, body=body)


def chunked(body: bytes, *lines: bytes) -> bytes:
    return CHAT + HOST + b"".join(lines) + CHUNKED + b"\r\n" + body


def at(path: bytes, *lines: bytes) -> bytes:
    """The same chat under another target."""
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"".join(lines) + LENGTH + b"\r\n" + BODY


def get(path: bytes, *lines: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"".join(lines) + b"\r\n"


def cases() -> Iterator[Case]:
    """The whole corpus."""
    yield from framing()
    yield from chunks()
    yield from lines()
    yield from hosts_and_targets()
    yield from versions_and_methods()
    yield from sizes()
    yield from expectations_and_upgrades()
    yield from pipelines()
    yield from bodies()


def framing() -> Iterator[Case]:
    """How long the body is: the stuff of smuggling."""
    yield Case("plain", chat(), (200,), "what all others are odd against", open=True)
    yield Case(
        "cl-te",
        CHAT + HOST + LENGTH + CHUNKED + b"\r\n" + b"0\r\n\r\n" + HIDDEN,
        (400,),
        "Content-Length and Transfer-Encoding: RFC 9112 6.1, smuggling",
    )
    yield Case(
        "te-cl",
        CHAT + HOST + CHUNKED + b"Content-Length: 4\r\n\r\n" + CHUNKS + HIDDEN,
        (400,),
        "the same in the other order",
    )
    yield Case(
        "te-te",
        CHAT + HOST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
        (400,),
        "two codings: one server obeys the first, another the last",
    )
    yield Case(
        "te-twice",
        CHAT + HOST + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
        (400,),
        "chunked may be applied once",
    )
    yield Case(
        "te-list",
        CHAT + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
        (501,),
        "a coding that is not undone here",
    )
    yield Case(
        "te-identity",
        CHAT + HOST + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + BODY,
        (400,),
        "identity is no transfer coding since RFC 7230",
    )
    yield Case(
        "te-xchunked",
        CHAT + HOST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
        (501,),
        "nearly chunked is not chunked",
    )
    yield Case(
        "te-chunked-with-tab",
        CHAT + HOST + b"Transfer-Encoding:\tchunked\r\n\r\n" + CHUNKS,
        (200,),
        "a tab is white space like another (RFC 9110 5.5)",
        open=True,
    )
    yield Case(
        "te-capitals",
        CHAT + HOST + b"tRANSFER-eNCODING: CHUNKED\r\n\r\n" + CHUNKS,
        (200,),
        "names and codings have no case",
        open=True,
    )
    yield Case(
        "te-vertical-tab",
        CHAT + HOST + b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH + b"\r\n" + BODY,
        (400,),
        "other control characters are no white space",
    )
    yield Case(
        "te-of-http-1.0",
        b"POST /v1/chat/completions HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n" + CHUNKS,
        (400,),
        "HTTP/1.0 knows no chunks: RFC 9112 6.1 takes it for faulty",
    )
    yield Case(
        "cl-twice-same",
        CHAT + HOST + LENGTH + LENGTH + b"\r\n" + BODY,
        (400,),
        "may be refused, and a proxy that merges them otherwise is not our risk",
    )
    yield Case(
        "cl-twice-other",
        CHAT + HOST + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY,
        (400,),
        "RFC 9112 6.3: unrecoverable",
    )
    yield Case(
        "cl-list",
        CHAT + HOST + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
        (400,),
        "a list is no number",
    )
    for name, value in {
        "plus": b"+63",
        "minus": b"-1",
        "hex": b"0x3f",
        "float": b"63.0",
        "empty": b"",
        "words": b"long",
        "spaces-inside": b"6 3",
        "overflow": b"18446744073709551679",
        "underscore": b"6_3",
        "huge": b"9" * 400,
    }.items():
        yield Case(
            f"cl-{name}",
            CHAT + HOST + b"Content-Length: " + value + b"\r\n\r\n" + BODY,
            (400,),
            "a length is decimal digits and fits",
        )
    yield Case(
        "cl-too-large",
        CHAT + HOST + b"Content-Length: 99999999999\r\n\r\n",
        (413,),
        "refused before it comes",
    )
    yield Case(
        "no-length",
        CHAT + HOST + b"\r\n",
        (400,),
        "a POST without a body asks for nothing",
        open=True,
    )


def chunks() -> Iterator[Case]:
    """The inside of a chunked body."""
    size = b"%x" % len(BODY)
    yield Case("chunks", chunked(CHUNKS), (200,), "the plain form", open=True)
    yield Case(
        "chunk-extension",
        chunked(size + b";name=value\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (200,),
        "extensions are ignored (RFC 9112 7.1.1)",
        open=True,
    )
    yield Case(
        "chunk-extension-endless",
        chunked(size + b";" + b"x" * 200_000),
        (400,),
        "an extension costs work and brings nothing (CVE-2024-22019)",
    )
    yield Case(
        "chunk-size-plus",
        chunked(b"+" + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "hexadecimal digits alone",
    )
    yield Case(
        "chunk-size-0x",
        chunked(b"0x" + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "hexadecimal digits alone",
    )
    yield Case(
        "chunk-size-minus",
        chunked(b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "hexadecimal digits alone",
    )
    yield Case(
        "chunk-size-empty",
        chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "a size has a digit",
    )
    yield Case(
        "chunk-size-overflow",
        chunked(b"1000000000000000f\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "more than 64 bits wrap around in careless parsers",
    )
    yield Case(
        "chunk-size-space",
        chunked(size + b" \r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "some proxies stop at the space, some do not",
    )
    yield Case(
        "chunk-size-bare-lf",
        chunked(size + b"\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "lines of chunks end with CRLF",
    )
    yield Case(
        "chunk-short-of-its-size",
        chunked(b"1\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "after a chunk comes CRLF, not more data",
    )
    yield Case(
        "chunk-extension-bare-lf",
        chunked(size + b";a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (400,),
        "a line end inside an extension (smuggling of 2025)",
    )
    yield Case(
        "trailer",
        chunked(size + b"\r\n" + BODY + b"\r\n0\r\nX-Sum: 1\r\n\r\n"),
        (200,),
        "trailers are read and dropped",
        open=True,
    )
    yield Case(
        "trailer-of-framing",
        chunked(size + b"\r\n" + BODY + b"\r\n0\r\nHost: evil.example\r\nExpect: x\r\n\r\n"),
        (200,),
        "a trailer changes nothing that was decided by the head",
        open=True,
    )
    yield Case(
        "trailer-endless",
        chunked(size + b"\r\n" + BODY + b"\r\n0\r\n" + b"X-Sum: 1\r\n" * 30_000),
        (400,),
        "trailers are bounded",
    )


def lines() -> Iterator[Case]:
    """Header lines."""
    for name, line in {
        "obs-fold": b"X-A: b\r\n c\r\n",
        "obs-fold-first": b" X-A: b\r\n",
        "space-before-colon": b"X-A : b\r\n",
        "space-before-colon-of-te": b"Transfer-Encoding : chunked\r\n",
        "tab-before-colon": b"X-A\t: b\r\n",
        "no-colon": b"X-A\r\n",
        "no-name": b": b\r\n",
        "nul-in-name": b"X-\x00A: b\r\n",
        "nul-in-value": b"X-A: b\x00c\r\n",
        "bare-cr-in-value": b"X-A: b\rX-B: c\r\n",
        "cr-cr-lf": b"X-A: b\r\r\n",
        "bare-lf": b"X-A: b\nX-B: c\r\n",
        "control-in-value": b"X-A: \x01\r\n",
        "delete-in-value": b"X-A: \x7f\r\n",
        "non-ascii-name": b"X-\xe4: b\r\n",
        "bracket-in-name": b"X(A): b\r\n",
    }.items():
        yield Case(
            f"line-{name}", chat(line), (400,), "RFC 9112 5 and RFC 9110 5.5 leave no other reading"
        )
    yield Case(
        "line-latin-1",
        chat(b"X-A: \xe4\xf6\r\n"),
        (200,),
        "old text in values is allowed (RFC 9110 5.5)",
        open=True,
    )
    yield Case(
        "line-empty-value", chat(b"X-A:\r\n"), (200,), "an empty value is a value", open=True
    )
    yield Case(
        "connection-names-headers",
        chat(b"Connection: keep-alive, X-Secret\r\n", b"X-Secret: 1\r\n"),
        (200,),
        "what Connection names is for this connection alone",
        open=True,
    )
    yield Case(
        "connection-takes-framing",
        chat(b"Connection: keep-alive, Content-Length, Host\r\n"),
        (200,),
        "framing and Host cannot be taken away by naming them",
        open=True,
    )
    yield Case(
        "line-ends-bare-lf",
        chat().replace(b"\r\n", b"\n"),
        (400,),
        "lines end with CRLF: what ends with LF ends elsewhere for others",
    )


def hosts_and_targets() -> Iterator[Case]:
    """Whom a request is for, and what it asks."""
    yield Case(
        "host-missing", CHAT + LENGTH + b"\r\n" + BODY, (400,), "HTTP/1.1 names its host (3.2)"
    )
    yield Case("host-twice", chat(HOST), (400,), "two hosts are none (RFC 9112 3.2)")
    yield Case("host-twice-other", chat(b"Host: evil.example\r\n"), (400,), "two hosts are none")
    for name, value in {
        "userinfo": b"localhost@evil.example",
        "path": b"localhost/evil",
        "list": b"localhost, evil.example",
        "port-words": b"localhost:80evil",
        "space": b"localhost evil",
        "empty": b"",
        "bracket": b"[::1]evil",
    }.items():
        yield Case(
            f"host-{name}",
            chat().replace(HOST, b"Host: " + value + b"\r\n"),
            (400,),
            "a host and perhaps a port, nothing else",
        )
    yield Case(
        "host-foreign",
        chat(CLOSE).replace(HOST, b"Host: evil.example\r\n"),
        (403,),
        "DNS rebinding: a name that is not ours",
    )
    yield Case(
        "absolute-form",
        at(b"http://localhost:1/v1/chat/completions"),
        (200,),
        "every server takes the absolute form (RFC 9112 3.2.2)",
        open=True,
    )
    yield Case(
        "absolute-form-foreign",
        at(b"http://evil.example/v1/chat/completions", CLOSE),
        (403,),
        "the target's host counts, not the Host header",
    )
    yield Case(
        "absolute-form-userinfo",
        at(b"http://localhost@evil.example/v1/chat/completions"),
        (400,),
        "no user names in targets",
    )
    yield Case(
        "absolute-form-other-scheme",
        at(b"ftp://localhost/v1/chat/completions"),
        (400,),
        "http and https alone",
    )
    yield Case(
        "authority-form", get(b"localhost:80"), (400,), "that form is CONNECT's (RFC 9112 3.2.3)"
    )
    yield Case("asterisk-form", get(b"*"), (400,), "that form is of OPTIONS (RFC 9112 3.2.4)")
    yield Case("target-relative", at(b"v1/chat/completions"), (400,), "a path begins with a slash")
    yield Case("target-space", at(b"/v1/chat completions"), (400,), "no spaces in a target")
    yield Case("target-nul", at(b"/v1/chat/completions\x00"), (400,), "no NUL in a target")
    yield Case("target-non-ascii", at(b"/v1/ch\xe4t/completions"), (400,), "a target is ASCII")
    for name, path in {
        "encoded-slash": b"/v1/chat%2Fcompletions",
        "encoded-letter": b"/v1/%63hat/completions",
        "encoded-twice": b"/v1/chat%252Fcompletions",
        "double-slashes": b"//v1//chat/completions",
        "trailing-slash": b"/v1/chat/completions/",
        "dots": b"/v1/../chat/completions",
        "dot": b"/v1/./chat/completions",
        "encoded-dots": b"/v1/%2e%2e/v1/chat/completions",
        "backslash": b"/v1\\chat\\completions",
        "encoded-nul": b"/v1/chat/completions%00",
        "semicolon": b"/v1/chat/completions;a=b",
        "capitals": b"/V1/Chat/Completions",
        "bad-escape": b"/v1/chat/completions%zz",
    }.items():
        yield Case(f"path-{name}", at(path, CLOSE), (404,), "a route has one spelling")
    yield Case(
        "path-query",
        at(b"/v1/chat/completions?api-version=1&x=/../../sleep"),
        (200,),
        "a query is no path",
        open=True,
    )
    yield Case("path-fragment", at(b"/v1/chat/completions#top"), (400,), "a target has no fragment")
    for name, path in {
        "sleep": b"/sleep?level=2",
        "wake": b"/wake_up",
        "collective-rpc": b"/collective_rpc",
        "under-v1": b"/v1/sleep",
        "dots": b"/v1/chat/completions/../../../sleep",
        "encoded-dots": b"/v1/%2e%2e/sleep",
        "encoded": b"/%73leep",
        "double-slash": b"//sleep",
        "backslash-dots": b"/v1\\..\\sleep",
        "reset": b"/reset_prefix_cache",
        "lora": b"/v1/load_lora_adapter",
        "slots": b"/slots/0?action=save",
        "shutdown": b"/shutdown",
    }.items():
        yield Case(
            f"control-{name}",
            at(path, CLOSE),
            (404,),
            "engines' control routes are reached by no spelling",
        )


def versions_and_methods() -> Iterator[Case]:
    yield Case("garbage", b"\x00\x01\x02\x03\r\n\r\n", (400,), "no HTTP at all")
    yield Case(
        "tls-hello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
        (400,),
        "TLS to a port without it",
    )
    yield Case("http-0.9", b"GET /v1/models\r\n\r\n", (505,), "an HTTP without heads")
    yield Case(
        "http-2-preface",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9,
        (400,),
        "HTTP/2 without negotiation",
    )
    yield Case("version-2.0", get(b"/v1/models").replace(b"1.1", b"2.0"), (505,), "not spoken here")
    yield Case("version-9.9", get(b"/v1/models").replace(b"1.1", b"9.9"), (400,), "no such HTTP")
    yield Case("version-words", b"GET / HTTPS/1.1\r\n" + HOST + b"\r\n", (400,), "no such protocol")
    yield Case(
        "http-1.0",
        chat().replace(b"HTTP/1.1", b"HTTP/1.0"),
        (200,),
        "an old client gets its answer, and the end of the connection",
    )
    yield Case(
        "http-1.0-keep-alive",
        chat(b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
        (200,),
        "HTTP/1.0 connections are closed, whatever they ask",
    )
    yield Case(
        "leading-empty-lines", b"\r\n\r\n" + chat(), (200,), "RFC 9112 2.2 says SHOULD", open=True
    )
    yield Case("method-unknown", get(b"/v1/models", method=b"FROB"), (400,), "no such method")
    yield Case("method-small", get(b"/v1/models", method=b"get"), (400,), "methods have case")
    yield Case("trace", get(b"/v1/models", method=b"TRACE"), (405,), "it would show what it got")
    yield Case("connect", get(b"localhost:22", method=b"CONNECT"), (405,), "no tunnels to anywhere")
    yield Case(
        "get-inference",
        get(b"/v1/chat/completions", CLOSE),
        (405,),
        "inference is a POST",
    )
    yield Case(
        "put-inference",
        chat(CLOSE).replace(b"POST", b"PUT"),
        (405,),
        "inference is a POST",
    )


def sizes() -> Iterator[Case]:
    """Heads that are too large."""
    yield Case(
        "target-8-kib",
        get(b"/v1/models?" + b"x" * 8000, CLOSE),
        (200,),
        "RFC 9112 3 wants at least 8000 octets",
    )
    yield Case("target-long", get(b"/" + b"x" * 9000), (414,), "and no more than 8 KiB")
    yield Case("target-endless", b"GET /" + b"x" * 500_000, (414,), "also if it never ends")
    yield Case("lines-100", chat(b"X-A: b\r\n" * 97), (200,), "a hundred lines", open=True)
    yield Case("lines-many", chat(b"X-A: b\r\n" * 100), (431,), "and no more")
    yield Case("lines-endless", CHAT + HOST + b"X-A: b\r\n" * 60_000, (431,), "nor without an end")
    yield Case("line-60-kib", chat(b"X-A: " + b"b" * 60_000 + b"\r\n"), (200,), "below", open=True)
    yield Case("line-long", chat(b"X-A: " + b"b" * 70_000 + b"\r\n"), (431,), "above 64 KiB")
    yield Case("line-endless", CHAT + HOST + b"X-A: " + b"b" * 900_000, (431,), "without an end")
    yield Case("name-endless", CHAT + HOST + b"X" * 900_000, (431,), "a name without an end")


def expectations_and_upgrades() -> Iterator[Case]:
    expect = b"Expect: 100-continue\r\n"
    yield Case("expect", chat(expect), (200,), "100 Continue, then the answer", open=True)
    yield Case("expect-capitals", chat(b"Expect: 100-Continue\r\n"), (200,), "no case", open=True)
    yield Case("expect-else", chat(b"Expect: magic\r\n"), (417,), "RFC 9110 10.1.1")
    yield Case(
        "expect-of-http-1.0",
        chat(expect).replace(b"HTTP/1.1", b"HTTP/1.0"),
        (200,),
        "an expectation of HTTP/1.0 is ignored",
    )
    yield Case(
        "expect-too-large",
        CHAT + HOST + expect + b"Content-Length: 99999999999\r\n\r\n",
        (413,),
        "told before the body is sent",
    )
    yield Case(
        "upgrade-h2c",
        chat(
            b"Connection: Upgrade, HTTP2-Settings\r\n",
            b"Upgrade: h2c\r\n",
            b"HTTP2-Settings: x\r\n",
        ),
        (200,),
        "an upgrade may be ignored; Java's client asks for one with every request",
        open=True,
    )
    yield Case(
        "upgrade-with-close",
        chat(b"Connection: close, Upgrade\r\n", b"Upgrade: h2c\r\n"),
        (200,),
        "the other wish counts",
    )
    yield Case(
        "upgrade-websocket-post",
        chat(b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n") * 2,
        (200, 200),
        "a POST cannot become a WebSocket",
        open=True,
    )
    yield Case(
        "upgrade-get",
        get(b"/v1/models", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n"),
        (200,),
        "no WebSocket is here",
        open=True,
    )


def pipelines() -> Iterator[Case]:
    """Several requests in one go."""
    yield Case("two", chat() + chat(), (200, 200), "in order", open=True)
    yield Case(
        "mixed",
        chat() + LISTING + b"\r\n" + chat(),
        (200, 200, 200),
        "inference and not, in order",
        open=True,
    )
    yield Case(
        "garbage-after", chat() + b"\x00\x01 garbage\r\n\r\n", (200, 400), "first the answer"
    )
    yield Case(
        "after-an-error",
        chat() + b"BAD\r\n\r\n" + HIDDEN,
        (200, 400),
        "nothing after an error is a request",
    )
    yield Case(
        "after-close", chat(CLOSE) + HIDDEN, (200,), "nothing after the last request is read"
    )
    yield Case(
        "error-of-ours-between",
        said(b'{"model": "nobody"}') + chat(),
        (404, 200),
        "a wrong request is no reason to close",
        open=True,
    )
    yield Case(
        "listing-then-bad-head",
        LISTING + b"\r\n" + chat(b"X-A : b\r\n"),
        (200, 400),
        "in order, whoever answers",
    )
    yield Case(
        "body-longer-than-said",
        chat() + b"tail",
        (200, 400),
        "what is left over is no request",
    )
    yield Case("twenty", chat() * 20, (200,) * 20, "many, in order", open=True)


def bodies() -> Iterator[Case]:
    """What is inside."""
    wrong = {
        "not-json": b"{not json",
        "cut": BODY[:-5],
        "two-values": BODY + BODY,
        "array": b"[1, 2]",
        "number": b"1",
        "null": b"null",
        "no-model": b'{"messages": []}',
        "model-number": b'{"model": 7}',
        "model-null": b'{"model": null}',
        "model-list": b'{"model": ["m"]}',
        "model-empty": b'{"model": ""}',
        "stream-words": b'{"model": "m", "stream": "yes"}',
        "utf-16": BODY.decode().encode("utf-16"),
        "utf-8-bom": b"\xef\xbb\xbf" + BODY,
        "utf-8-broken": BODY.replace(b'"m"', b'"m\xff"'),
        "utf-8-broken-elsewhere": BODY.replace(b"hi", b"\xff\xfe"),
        "surrogate": b'{"model": "\\ud800"}',
        "nan": BODY.replace(b'"hi"', b"NaN"),
        "comment": BODY.replace(b"{", b"/* */ {", 1),
        "single-quotes": BODY.replace(b'"', b"'"),
        "control-in-string": BODY.replace(b"hi", b"h\ni"),
        "deep-arrays": b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep-objects": b'{"model": "m", "x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        "deep-open": b"[" * 1_000_000,
    }
    for name, body in wrong.items():
        yield Case(f"json-{name}", said(body), (400,), "told what is wrong with it", open=True)
    yield Case(
        "json-model-twice",
        said(b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}], "model": "m"}'),
        (200,),
        "the last one counts, as for Python's and llama.cpp's parsers",
        open=True,
    )
    yield Case(
        "json-escaped-key",
        said(BODY.replace(b'"model"', b'"\\u006dodel"')),
        (200,),
        "an escaped key is the same key",
        open=True,
    )
    yield Case(
        "json-huge-number",
        said(BODY.replace(b'"hi"}', b'"hi", "n": ' + b"9" * 1000 + b"}")),
        (200,),
        "numbers that nobody here needs are not read",
        open=True,
    )
    yield Case(
        "json-model-with-newline",
        said(b'{"model": "m\\r\\nX-Evil: 1"}'),
        (404,),
        "a name is quoted where it is shown",
        open=True,
    )
    yield Case(
        "type-text", chat(b"Content-Type: text/plain\r\n"), (200,), "curl -d says less", open=True
    )
    yield Case(
        "type-gzip",
        chat(b"Content-Encoding: gzip\r\n"),
        (415,),
        "bodies come as they are",
    )
