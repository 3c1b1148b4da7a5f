"""https from the configuration: who is let in, who is believed, what is told of wrong files."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.conftest import Serve

from modelyard.client import Client
from modelyard.client.errors import ServerNotTrusted
from modelyard.config.values import Tls
from modelyard.core.errors import ConfigError, InvalidRequest
from modelyard.core.views import ModelView
from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

T = TypeVar("T")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path
    made: x509.Certificate
    secret: ec.EllipticCurvePrivateKey


def identity(folder: Path, name: str, by: Identity | None = None) -> Identity:
    """A certificate for 127.0.0.1 and localhost, self-made or by another one."""
    folder.mkdir(exist_ok=True)
    secret = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(by.made.subject if by else called)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(by.secret if by else secret, hashes.SHA256())
    )
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, form, plain))
    return Identity(certificate, key, made, secret)


@pytest.fixture
def authority(tmp_path: Path) -> Identity:
    return identity(tmp_path / "tls", "authority")


@pytest.fixture
def box(tmp_path: Path, authority: Identity) -> Identity:
    return identity(tmp_path / "tls", "box", authority)


async def test_requests_and_streams_are_answered_over_https(
    serve: Serve, authority: Identity, box: Identity
) -> None:
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    async with (
        serve(fake_model("m", "--tokens", "40"), tls=Tls(box.certificate, box.key)) as server,
        httpx.AsyncClient(base_url=server.url, verify=trust, timeout=60) as http,
    ):
        whole = await http.post("/v1/chat/completions", json=CHAT)
        stream = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        large = await http.post(
            "/v1/chat/completions",
            json={**CHAT, "messages": [{"role": "user", "content": "x" * 3_000_000}]},
        )
        listing = await http.get("/v1/models")

    assert server.url.startswith("https://")
    assert [a.status_code for a in (whole, stream, large, listing)] == [200] * 4
    assert stream.text.endswith("data: [DONE]\n\n")


async def test_plain_http_gets_nothing_where_tls_is_spoken(serve: Serve, box: Identity) -> None:
    async with (
        serve(tls=Tls(box.certificate, box.key)) as server,
        httpx.AsyncClient(timeout=60) as http,
    ):
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{server.port}/health")


async def test_old_versions_of_tls_are_refused(serve: Serve, box: Identity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    tls = Tls(box.certificate, box.key)
    async with serve(tls=tls) as server, httpx.AsyncClient(verify=old, timeout=60) as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"{server.url}/health")


async def test_only_clients_with_a_certificate_are_let_in_where_one_is_asked_for(
    serve: Serve, tmp_path: Path, authority: Identity, box: Identity
) -> None:
    known = identity(tmp_path / "tls", "known", authority)
    stranger = identity(tmp_path / "tls", "stranger")
    wanted = Tls(box.certificate, box.key, client_ca=authority.certificate)
    answers: list[int | str] = []
    async with serve(tls=wanted) as server:
        for shown in (known, stranger, None):
            trust = ssl.create_default_context(cafile=str(authority.certificate))
            if shown is not None:
                trust.load_cert_chain(shown.certificate, shown.key)
            async with httpx.AsyncClient(verify=trust, timeout=60) as http:
                try:
                    answers.append((await http.get(f"{server.url}/health")).status_code)
                except httpx.TransportError:
                    answers.append("cut")

    assert answers == [200, "cut", "cut"]


async def test_the_client_finds_and_trusts_the_server_of_its_own_user(
    serve: Serve, box: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_SERVER__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("MODELYARD_URL", raising=False)
    async with serve(fake_model("m"), tls=Tls(box.certificate, box.key)) as server:
        names = await _in_thread(lambda: [model.id for model in _models()])

    assert (server.url[:8], names) == ("https://", ["m"])


async def test_a_foreign_server_is_trusted_by_the_authority_that_is_named(
    serve: Serve,
    authority: Identity,
    box: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELYARD_SERVER__STATE_DIR", str(tmp_path / "elsewhere"))
    async with serve(fake_model("m"), tls=Tls(box.certificate, box.key)) as server:
        monkeypatch.setenv("MODELYARD_URL", server.url)
        with pytest.raises(ServerNotTrusted, match="MODELYARD_CA"):
            await _in_thread(_models)
        monkeypatch.setenv("MODELYARD_CA", str(authority.certificate))
        names = await _in_thread(lambda: [model.id for model in _models()])

    assert names == ["m"]


async def test_the_client_shows_its_own_certificate(
    serve: Serve,
    tmp_path: Path,
    authority: Identity,
    box: Identity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = identity(tmp_path / "tls", "mine", authority)
    both = tmp_path / "both.pem"
    both.write_bytes(mine.certificate.read_bytes() + mine.key.read_bytes())
    monkeypatch.setenv("MODELYARD_CA", str(authority.certificate))
    monkeypatch.setenv("MODELYARD_CLIENT_CERTIFICATE", str(both))
    wanted = Tls(box.certificate, box.key, client_ca=authority.certificate)
    async with serve(fake_model("m"), tls=wanted) as server:
        monkeypatch.setenv("MODELYARD_URL", server.url)
        names = await _in_thread(lambda: [model.id for model in _models()])

    assert names == ["m"]


def test_a_file_that_is_no_certificate_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing of the kind")
    monkeypatch.setenv("MODELYARD_CA", str(wrong))

    with pytest.raises(InvalidRequest, match=r"wrong\.pem cannot be used as a certificate"):
        Client("https://127.0.0.1:1")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("missing.pem", "box.key", None), r"server\.tls\.certificate: .*missing\.pem cannot be"),
        (("box.pem", "missing.key", None), r"server\.tls\.key: .*missing\.key cannot be read"),
        (("box.pem", "authority.key", None), "are no certificate with its private key"),
        (("box.pem", None, None), "are no certificate with its private key"),
        (("box.key", "box.key", None), "are no certificate with its private key"),
        (("box.pem", "box.key", "box.key"), r"server\.tls\.client_ca: .* holds no certificates"),
    ],
)
async def test_wrong_files_are_told_of_before_anything_is_served(
    serve: Serve, box: Identity, files: tuple[str | None, ...], words: str
) -> None:
    folder = box.certificate.parent
    paths = [None if name is None else folder / name for name in files]
    assert paths[0] is not None
    with pytest.raises(ConfigError, match=words):
        async with serve(tls=Tls(paths[0], paths[1], paths[2])):
            pass


async def test_a_client_that_never_finishes_its_handshake_holds_up_nobody(
    serve: Serve, authority: Identity, box: Identity
) -> None:
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    async with serve(tls=Tls(box.certificate, box.key)) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        async with httpx.AsyncClient(verify=trust, timeout=60) as http:
            answer = await http.get(f"{server.url}/health")
        for connection in silent:
            connection.close()

    assert answer.status_code == 200


def _models() -> list[ModelView]:
    with Client() as client:
        return client.models()


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)
