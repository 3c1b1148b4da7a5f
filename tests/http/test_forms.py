"""The fields of a form that route it are found without taking the form apart."""

import os

import httpx
import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.http.forms import text_fields

WANTED = frozenset({"model", "stream"})


def form(**fields: object) -> tuple[bytes, bytes]:
    request = httpx.Request("POST", "http://h/", **fields)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"].encode()


def test_fields_are_found_before_and_after_a_file() -> None:
    sound = b'--x\r\nname="model"\r\n\r\n' + os.urandom(100_000)
    body, kind = form(data={"model": "whisper", "stream": "true"}, files={"file": ("a.wav", sound)})

    assert text_fields(body, kind, WANTED) == {"model": "whisper", "stream": "true"}


def test_what_is_not_wanted_is_left_alone() -> None:
    body, kind = form(data={"prompt": "hm"}, files={"file": b"x"})

    assert text_fields(body, kind, WANTED) == {}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"{}", b"application/json", "multipart/form-data with a boundary"),
        (b"{}", b"multipart/form-data", "multipart/form-data with a boundary"),
        (b"nothing", b"multipart/form-data; boundary=b", "has no part"),
        (b"--b\r\nx", b"multipart/form-data; boundary=b", "ends in the middle"),
        (b"--b\r\nx\r\n--b--", b"multipart/form-data; boundary=b", "has no head"),
        (b"--b\r\nx: y\r\n\r\nz\r\n--b--", b"multipart/form-data; boundary=b", "has no name"),
        (
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n' * 2 + b"--b--",
            b"multipart/form-data; boundary=b",
            "more than one field 'model'",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\na\r\n' * 200,
            b"multipart/form-data; boundary=b",
            "more than 100 parts",
        ),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        text_fields(body, kind, WANTED)
