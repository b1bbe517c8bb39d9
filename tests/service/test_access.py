"""Token, TLS and addresses: who is let in, and what a client reveals."""

from __future__ import annotations

import socket
import ssl
import time
import warnings

import pytest

from tests.service.conftest import TOKEN, make_certificate
from tests.service.faulty import faulty
from tests.service.running import read_all, running
from veritrain.cli import main
from veritrain.errors import UsageError
from veritrain.net.guard import Rates, client_key
from veritrain.net.listener import require_protection
from veritrain.service.service_limits import ServiceLimits
from veritrain.transcript.download import read_token
from veritrain.transcript.stores import open_store


@pytest.fixture(scope="module")
def private(home, certificate):
    """Shows the run by TLS, to those who have the token."""
    words = [str(part) for part in certificate]
    limits = {"handshake_seconds": 0.5, "requests_per_second": 0}
    with running(home / "run", token=TOKEN, certificate=words, limits=limits) as one:
        yield one


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_the_token_opens(private, contents):
    status, fields, body = private.get("/header", bearer(TOKEN))
    assert (status, body) == (200, contents["header"])
    assert fields["cache-control"].startswith("private, ")
    assert private.get("/header", {"Authorization": f"bearer  {TOKEN}"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, bearer(""), bearer(TOKEN[:-1]), bearer(TOKEN + "x"), bearer(TOKEN.upper()),
        bearer("x" * 5000), bearer("\xff"),
        {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN},
        {"X-Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/header", "/files", "/openapi.json", "/nothing"])
def test_nothing_else_does(private, headers, path):
    status, fields, body = private.get(path, headers)
    assert status == 401
    assert fields["www-authenticate"].startswith("Bearer")
    assert b"valid bearer token" in body


def test_two_tokens_are_none(private):
    request = f"GET /header HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n" * 2
    assert b" 400 " in private.raw((request[: len(request) // 2] + "Host: x\r\n\r\n").encode())
    line = f"Authorization: Bearer {TOKEN}\r\n"
    got = private.raw(
        f"GET /header HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}{line}\r\n".encode()
    )
    assert b" 401 " in got


def test_the_description_names_the_scheme(private):
    body = private.get("/openapi.json", bearer(TOKEN))[2]
    assert b'"securitySchemes":{"bearer":{"type":"http","scheme":"bearer"}}' in body


def test_old_versions_of_tls_are_refused(private):
    context = ssl.create_default_context(cafile=private.ca)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        pytest.raises((ssl.SSLError, OSError)),
        socket.create_connection(("127.0.0.1", private.port)) as plain,
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_handshake_that_never_ends(private):
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", private.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01")
        assert read_all(connection) == b""
    assert time.monotonic() - start < 5


def test_a_client_with_token_and_authority_reads(private, contents, monkeypatch, certificate):
    monkeypatch.setenv("VERITRAIN_CA", str(certificate[0]))
    monkeypatch.setenv("VERITRAIN_TOKEN", TOKEN)
    assert open_store(private.url).read("header", 10_000) == contents["header"]
    monkeypatch.setenv("VERITRAIN_TOKEN", "another")
    with pytest.raises(UsageError, match="VERITRAIN_TOKEN") as caught:
        open_store(private.url).list()
    assert "another" not in str(caught.value).replace("another token", "")


def test_unknown_certificates_are_refused(private, monkeypatch, tmp_path):
    monkeypatch.setenv("VERITRAIN_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="certificate is not one to trust; name the authority"):
        open_store(private.url).list()
    monkeypatch.setenv("VERITRAIN_CA", str(make_certificate(tmp_path)[0]))
    with pytest.raises(UsageError, match="certificate is not one to trust"):
        open_store(private.url).list()
    monkeypatch.setenv("VERITRAIN_CA", str(tmp_path / "key.pem"))
    with pytest.raises(UsageError, match="not a readable PEM file with certificates"):
        open_store(private.url)


def test_a_certificate_of_another_host_is_refused(private, monkeypatch, certificate):
    monkeypatch.setenv("VERITRAIN_CA", str(certificate[0]))
    with pytest.raises(UsageError, match="certificate is not one to trust"):
        open_store(f"https://127.0.0.1:{private.port}").list()


def test_a_token_does_not_go_out_unencrypted(monkeypatch):
    monkeypatch.setenv("VERITRAIN_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="would go over the network unencrypted"):
        open_store("http://192.0.2.1/run")
    with faulty({"header": b"x"}) as server:
        open_store(server.url).read("header", 1)
        assert server.requests[0].field("authorization") == f"Bearer {TOKEN}"
        monkeypatch.delenv("VERITRAIN_TOKEN")
        open_store(server.url).read("header", 1)
        assert server.requests[1].field("authorization") is None


@pytest.mark.parametrize("token", ["ab cd", "é", "a\r\nX: y", "x" * 5000, "=x"])
def test_a_token_that_is_none_is_refused_and_not_shown(monkeypatch, token):
    monkeypatch.setenv("VERITRAIN_TOKEN", token)
    with pytest.raises(UsageError, match="VERITRAIN_TOKEN: not a bearer token") as caught:
        open_store("http://localhost/")
    assert token not in str(caught.value)


def test_token_files(tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(TOKEN + "\n")
    assert read_token(file) == TOKEN
    for text in ("", "short", "a token with spaces in it", "x" * 9000, "é" * 30):
        file.write_text(text)
        with pytest.raises(UsageError, match="token") as caught:
            read_token(file)
        assert not text or text not in str(caught.value).removeprefix(str(file))
    with pytest.raises(UsageError, match="expected a plain file, got a folder"):
        read_token(tmp_path)


# the address to listen at


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_other_machines_need_a_token_or_tls(host):
    with pytest.raises(UsageError, match="other machines: .* --certificate and --certificate-key,"):
        require_protection(host, token=None, certificate=None, public=False)
    require_protection(host, token=TOKEN, certificate=None, public=False)
    require_protection(host, token=None, certificate=None, public=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host):
    require_protection(host, token=None, certificate=None, public=False)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--host", "::"], "can be reached from other machines"),
        (["--certificate", "chain.pem"], "belong together"),
        (
            ["--certificate", "chain.pem", "--certificate-key", "nothing.pem"],
            "nothing.pem: cannot be read: No such file or directory",
        ),
        (
            ["--certificate", "key.pem", "--certificate-key", "chain.pem"],
            "expected readable PEM files",
        ),
        (
            ["--certificate", "chain.pem", "--certificate-key", "open.pem"],
            "open.pem: holds a secret, and others on this machine may use it",
        ),
        (["--token-file", "nothing"], "cannot be read"),
        (["--host", "192.0.2.1", "--public"], "cannot listen at 192.0.2.1"),
        (["--host", "no-such-host.invalid", "--public"], "cannot listen at"),
        (["--port", "65536"], "--port"),
    ],
)
def test_bad_usage_of_the_command(home, certificate, monkeypatch, capfd, words, problem):
    monkeypatch.chdir(certificate[0].parent)
    opened = certificate[0].parent / "open.pem"
    opened.write_bytes(certificate[1].read_bytes())
    opened.chmod(0o640)
    assert main(["serve", str(home / "run"), "--port", "0", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_run_is_not_served(tmp_path, capfd):
    assert main(["serve", str(tmp_path)]) == 2
    assert "not a run that can be shown: it has no header" in capfd.readouterr().err


# counting


def test_a_bucket_fills_again():
    now = 0.0
    rates = Rates(ServiceLimits(requests_per_second=2, burst=3), lambda: now)
    assert [rates.admit("a") for _ in range(5)] == [True, True, True, False, False]
    assert rates.admit("b")
    now = 1.0
    assert [rates.admit("a") for _ in range(3)] == [True, True, False]
    now = 100.0
    assert [rates.admit("a") for _ in range(4)] == [True, True, True, False]


def test_no_more_clients_are_remembered_than_allowed():
    rates = Rates(ServiceLimits(clients=10))
    for number in range(100):
        rates.admit(str(number))
    assert len(rates._buckets) == 10


def test_clients_of_one_network_are_one():
    assert client_key("192.0.2.1") == "192.0.2.1"
    assert client_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert client_key("2001:db8:0:1::1") != client_key("2001:db8::1")
    assert client_key("") == "unknown"
