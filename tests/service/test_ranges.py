"""Conditional and partial requests against RFC 9110's own examples and a slow second reading."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from veritrain.net.ranges import Selection, select

TAG = '"tag"'


def get(value: str, size: int, *others: tuple[str, str], method: str = "GET") -> Selection:
    fields = [(b"range", value.encode("latin-1"))]
    fields += [(name.encode(), text.encode("latin-1")) for name, text in others]
    return select(method, fields, TAG, size)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-499", (0, 500)),  # the examples of section 14.1.2, of 10,000 bytes
        ("bytes=500-999", (500, 1000)),
        ("bytes=-500", (9500, 10000)),
        ("bytes=9500-", (9500, 10000)),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99999999999999999999999", (0, 10000)),
        ("bytes=-99999999999999999999999", (0, 10000)),
        ("BYTES=9999-", (9999, 10000)),
        ("bytes= ,1-2 ,", (1, 3)),
        ("bytes=00000000000000000000000001-2", (1, 3)),
    ],
)
def test_a_part(value, expected):
    selection = get(value, 10000)
    assert (selection.status, selection.start, selection.stop) == (206, *expected)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=10000-",
        "bytes=99999-100000",
        "bytes=-0",
        f"bytes={9 * 10**30}-",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_bytes_that_are_not_there(value):
    assert get(value, 10000).status == 416


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-1,5-6", "bytes=5-4", "bytes=", "bytes", "", "bytes=-", "bytes=a-b", "items=0-1",
        "bytes=0-1;", "bytes=+1-2", "bytes=1--2", "bytes=٣-٤".encode().decode("latin-1"),
        "bytes=1-2x",
    ],
)  # fmt: skip
def test_what_is_ignored(value):
    assert get(value, 10000) == Selection(status=200, stop=10000)


def test_an_empty_file_has_no_part():
    assert get("bytes=0-", 0).status == 416
    assert get("bytes=-5", 0) == Selection(status=200, stop=0)
    assert get("bytes=-0", 0).status == 416


def test_head_requests_have_no_range():
    assert get("bytes=0-1", 10, method="HEAD") == Selection(status=200, stop=10)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (TAG, 206),
        ('W/"tag"', 200),
        ('"other"', 200),
        ("Sat, 21 Nov 2026 16:00:00 GMT", 200),
        ("*", 200),
    ],
)
def test_if_range_compares_strongly(value, status):
    assert get("bytes=0-1", 10, ("if-range", value)).status == status


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("if-none-match", TAG, 304),
        ("if-none-match", "*", 304),
        ("if-none-match", f'"other", {TAG}', 304),
        ("if-none-match", f"W/{TAG}", 304),
        ("if-none-match", '"other"', 206),
        ("if-none-match", "tag", 206),
        ("if-match", TAG, 206),
        ("if-match", "*", 206),
        ("if-match", '"other"', 412),
        ("if-match", f"W/{TAG}", 412),
        ("if-match", "", 412),
    ],
)
def test_preconditions_come_first(name, value, status):
    assert get("bytes=0-1", 10, (name, value)).status == status
    if status == 206:
        assert get("bytes=0-1", 10, (name, value), method="HEAD").status == 200


def test_if_match_comes_before_if_none_match():
    assert get("bytes=0-1", 10, ("if-none-match", TAG), ("if-match", '"other"')).status == 412


def test_a_range_that_is_repeated_is_several():
    assert get("bytes=0-1", 10, ("range", "bytes=4-5")).status == 200


def second_reading(value: str, size: int) -> tuple[int, list[int]]:
    """Which bytes of a file are sent, by looking at each of them."""
    every = list(range(size))
    match = re.fullmatch(r"bytes=(?P<first>[0-9]*)-(?P<last>[0-9]*)", value, re.ASCII)
    if match is None or match["first"] == match["last"] == "":
        return 200, every
    if match["first"] == "":
        wanted = every[-int(match["last"]) :] if int(match["last"]) else []
        return (
            (200, every) if size == 0 and int(match["last"]) else (206 if wanted else 416, wanted)
        )
    if match["last"] and int(match["last"]) < int(match["first"]):
        return 200, every
    last = int(match["last"]) if match["last"] else size
    wanted = [place for place in every if int(match["first"]) <= place <= last]
    return (206 if wanted else 416), wanted


numbers = st.one_of(st.integers(0, 30), st.integers(0, 10**30)).map(str) | st.just("")


@given(st.builds("bytes={}-{}".format, numbers, numbers), st.integers(0, 20))
@example("bytes=-1", 0)
@example("bytes=0-0", 1)
def test_ranges_are_those_of_a_second_reading(value, size):
    selection = get(value, size)
    status, wanted = second_reading(value, size)
    assert selection.status == status
    if status in (200, 206):
        assert list(range(selection.start, selection.stop)) == wanted


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"range", b"if-range", b"if-match", b"if-none-match", b"x"]),
            st.binary(max_size=40) | st.sampled_from([TAG.encode(), b"bytes=1-2", b"*", b"W/"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["GET", "HEAD"]),
    st.integers(0, 2**60),
)
def test_whatever_a_client_sends_gets_bytes_that_are_there(fields, method, size):
    selection = select(method, fields, TAG, size)
    assert selection.status in (200, 206, 304, 412, 416)
    assert 0 <= selection.start <= selection.stop <= size
    if selection.status == 206:
        assert method == "GET"
        assert selection.start < selection.stop
