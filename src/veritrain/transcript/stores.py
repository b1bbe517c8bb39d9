"""Which kind of store a location names: a folder, an HTTP address, or a URL of fsspec's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from veritrain.errors import UsageError
from veritrain.transcript.store import LocalStore, RemoteStore, Store, is_http


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at a local path, an HTTP address or any URL that fsspec knows.

    Nothing is read or made yet.

    Raises:
        UsageError: no driver for this kind of URL, or an HTTP address that cannot be used.
    """
    text = os.fspath(url)
    if is_http(text):
        from veritrain.transcript.http_store import HttpStore  # a local run does not need it

        return HttpStore(text)
    if "://" not in text and "::" not in text:
        return LocalStore(Path(text))
    import fsspec.core  # takes a while; a local run does not need it

    try:
        # The drivers are foreign code, with errors of their own for bad URLs.
        system, root = cast(tuple[Any, str], fsspec.core.url_to_fs(text))
    except Exception as error:
        raise UsageError(f"{text}: cannot be opened: {error}") from error
    if "file" in (system.protocol if isinstance(system.protocol, tuple) else ()):
        return LocalStore(Path(root))
    return RemoteStore(text, system, root.rstrip("/"))
