"""The run over HTTP: the same bytes, correct fields, and nothing beside it. The server is a real
one."""

from __future__ import annotations

import http.client
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

IMMUTABLE = "public, max-age=31536000, immutable"
TRAVERSALS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/leaves/../header",
    "/leaves/%2e%2e/header",
    "/leaves/..%2fheader",
    "/leaves//000000000002",
    "//header",
    "/./header",
    "/header/",
    "/header%00",
    "/leaves/000000000002%0a",
    "/leaves/%EF%BC%90" + "0" * 11,
    "/checkpoints/000000000002.manifest/..",
    "/checkpoints/000000000002.safetensors%00.manifest",
    "/checkpoints/../leaves/000000000002.manifest",
    "/checkpoints/..%2f..%2fjob.py%3f.manifest",
    "/trainer.key",
    "/../trainer.key",
    "/signatures",
    "/",
    "/docs",
    "/redoc",
    "/leaves/000000000003",
    "/rounding/000000000002",
    "file:///etc/passwd",
    "/" + "a" * 8000,
]


def error_of(body):
    error = json.loads(body)["error"]
    assert error.keys() == {"kind", "message"}
    return error["kind"]


def test_every_file_is_bit_equal(service, contents):
    for path, data in contents.items():
        status, fields, body = service.get(f"/{path}")
        assert (status, body) == (200, data)
        assert fields["content-length"] == str(len(data))
        assert fields["cache-control"] == IMMUTABLE
        assert fields["content-type"] == "application/octet-stream"
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["accept-ranges"] == "bytes"
        assert fields["etag"].startswith('"')
        assert not {"server", "last-modified", "x-powered-by"} & fields.keys()


def test_head_is_get_without_a_body(service, contents):
    for path in ("header", "checkpoints/000000000002.safetensors", "files"):
        _, got, _ = service.get(f"/{path}")
        status, fields, body = service.get(f"/{path}", method="HEAD")
        assert (status, body) == (200, b"")
        assert {**fields, "date": ""} == {**got, "date": ""}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_of_any_file(service, contents, data):
    path = data.draw(st.sampled_from(sorted(contents)))
    size = len(contents[path])
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size + 5))
    status, fields, body = service.get(f"/{path}", {"Range": f"bytes={first}-{last}"})
    stop = min(last + 1, size)
    assert (status, body) == (206, contents[path][first:stop])
    assert fields["content-range"] == f"bytes {first}-{stop - 1}/{size}"
    assert fields["content-length"] == str(stop - first)


def test_conditions(service, contents):
    tag = service.get("/header")[1]["etag"]
    status, fields, body = service.get("/header", {"If-None-Match": tag})
    assert (status, body, fields["etag"]) == (304, b"", tag)
    assert fields["cache-control"] == IMMUTABLE
    assert service.get("/header", {"Range": "bytes=0-1", "If-Range": tag})[0] == 206
    assert (
        service.get("/header", {"Range": "bytes=0-1", "If-Range": '"x"'})[2] == contents["header"]
    )
    status, fields, body = service.get("/header", {"Range": "bytes=100000-"})
    assert (status, error_of(body)) == (416, "range")
    assert fields["content-range"] == f"bytes */{len(contents['header'])}"
    assert error_of(service.get("/header", {"If-Match": '"x"'})[2]) == "changed"


def test_a_large_file_is_streamed(large):
    service, path, data = large
    status, fields, body = service.get(path)
    assert (status, body == data, fields["content-length"]) == (200, True, str(len(data)))
    assert service.get(path, {"Range": "bytes=5-"})[2] == data[5:]
    assert service.get(path, {"Range": "bytes=-300000"})[2] == data[-300000:]
    assert service.get(path, method="HEAD")[1]["content-length"] == str(len(data))


def test_the_list_of_files(service, contents):
    expected = [{"path": path, "bytes": len(data)} for path, data in sorted(contents.items())]
    status, fields, body = service.get("/files")
    listing = json.loads(body)
    assert (status, fields["cache-control"]) == (200, "no-cache")
    assert listing == {"head": 12, "files": expected, "next": None}
    assert service.get("/files", {"If-None-Match": fields["etag"]})[0] == 304
    page = json.loads(service.get("/files?limit=4&after=leaves/000000000002")[2])
    first = expected.index(
        {"path": "leaves/000000000002", "bytes": len(contents["leaves/000000000002"])}
    )
    assert page["files"] == expected[first + 1 : first + 5]
    assert page["next"] == page["files"][-1]["path"]
    assert service.get("/files?head=4")[1]["cache-control"] == IMMUTABLE
    assert service.get("/files?head=5")[0] == 404


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "head=-1",
        "head=1e3",
        f"head={10**30}",
        "after=" + "x" * 101,
    ],
)
def test_queries_that_are_malformed(service, query):
    status, _, body = service.get(f"/files?{query}")
    assert (status, error_of(body)) == (400, "malformed")
    assert b"x" * 101 not in body


@pytest.mark.parametrize("target", TRAVERSALS)
def test_no_path_leaves_the_run(service, contents, target):
    """Sent as it is: clients tidy paths up."""
    got = service.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = got.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200"):  # another spelling of a file that is shown
        assert body in contents.values()
    else:
        assert head.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
        assert error_of(body) in ("missing", "malformed")


_characters = st.sampled_from(
    [*string.ascii_lowercase[:8], *"/.%-_~?#&=:@0289", "%2e", "%2f", "..", "header", "leaves"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_characters, max_size=12).map("".join))
def test_any_target_gets_a_file_or_a_constant_error(service, contents, target):
    got = service.raw(f"GET /{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = got.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200"):
        assert body in contents.values() or json.loads(body)["files"]
    else:
        assert error_of(body) in ("missing", "malformed")


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]
)
def test_nothing_can_be_changed(service, method):
    status, fields, body = service.get("/header", method=method)
    assert status == 405
    assert error_of(body) == "method"
    assert set(fields["allow"].split(", ")) == {"GET", "HEAD"}


def test_requests_share_a_connection(service, contents):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    for path, data in contents.items():
        connection.request("GET", f"/{path}")
        assert connection.getresponse().read() == data
    connection.close()


def test_pipelined_requests_are_answered_in_order(service, contents):
    paths = sorted(contents)[:8]
    data = b"".join(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)
    got = service.raw(data + b"GET /header HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    places = [got.index(contents[path]) for path in paths]
    assert places == sorted(places)


def test_the_description(service):
    status, _, body = service.get("/openapi.json")
    schema = json.loads(body)
    assert status == 200
    assert set(schema["paths"]) == {
        "/header", "/leaves/{step}", "/signatures/{step}", "/rounding/{step}",
        "/checkpoints/{step}.manifest", "/checkpoints/{step}.safetensors", "/files",
        "/sources", "/records",
    }  # fmt: skip
    names = [
        operation["operationId"] for path in schema["paths"].values() for operation in path.values()
    ]
    assert len(names) == len(set(names)) == 18


def test_each_request_is_a_line_in_the_log(service):
    service.get("/header?private", {"Range": "bytes=0-3"})
    service.get("/leaves/%1b[31m%0aGET")
    lines = service.log()[-2:]
    assert lines[0] == "127.0.0.1 GET /header [bytes=0-3] 206 4"
    assert lines[1].startswith("127.0.0.1 GET /leaves/%1b[31m%0aGET 404 ")
