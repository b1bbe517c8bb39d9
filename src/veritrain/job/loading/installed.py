"""What is installed: Python itself, Veritrain, and the packages in Python's own site folders.

The folders are those that this interpreter was started with. A folder's name says nothing, since
the person who ships a job names its folders; and an editable install is the folder that it points
to.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import site
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from veritrain import __version__
from veritrain.encoding import Value, digest_value


def _folders() -> Iterator[str]:
    yield str(Path(__file__).parents[2])
    for key in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield sysconfig.get_path(key)
    yield sysconfig.get_config_var("DESTSHARED") or sysconfig.get_path("platstdlib")
    yield from site.getsitepackages()
    if site.ENABLE_USER_SITE:
        yield site.getusersitepackages()


_FOLDERS = tuple(
    {
        os.path.join(spelled, "")
        for folder in _folders()
        for spelled in (os.path.abspath(folder), os.path.realpath(folder))
    }
)


def is_installed(file: str | os.PathLike[str]) -> bool:
    """Does a file belong to Python, to Veritrain or to an installed package?

    Links within the site folders count as what they are in them. The last part of a path is not
    followed: Python takes the bytecode of a link from beside the link.
    """
    return _is_within(os.path.abspath(file))


def is_of(file: str, package: str) -> bool:
    """Does a file lie in the installed package of this name?"""
    spelled = os.path.abspath(file)
    return spelled.startswith(tuple(os.path.join(folder, package, "") for folder in _FOLDERS))


@functools.lru_cache(maxsize=1 << 16)
def _is_within(spelled: str) -> bool:
    if spelled.startswith(_FOLDERS):
        return True
    folder, name = os.path.split(spelled)
    return os.path.join(os.path.realpath(folder), name).startswith(_FOLDERS)


def version(name: str) -> str:
    """The version of Python, of Veritrain as it runs, or of an installed distribution.

    Raises:
        importlib.metadata.PackageNotFoundError: there is none of that name.
    """
    if name == "python":
        return platform.python_version()
    return __version__ if name == "veritrain" else importlib.metadata.version(name)


def found(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of these distributions, and modules without one, that are installed."""
    record: dict[str, str] = {}
    modules: list[str] = []
    for name in names:
        try:
            record[name] = version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            modules += [name] if name.isidentifier() else []  # to look for one with dots imports
    other = versions(modules) if modules else {}
    return record | {name: other[name] for name in modules if name in other}


def versions(names: Iterable[str]) -> dict[str, str]:
    """The distributions that the given top-level modules are of, with their versions.

    A module in a site folder that no distribution claims has no version: the digest of its files
    stands for it, under the module's name. Modules that are not installed are left out.
    """
    record: dict[str, str] = {}
    owners = importlib.metadata.packages_distributions()
    for name in sorted(set(names)):
        for owner in owners.get(name, ()):
            record[owner] = version(owner)
        if name not in owners:
            files = _files(name)
            if files:
                record[name] = f"files {digest_value('package', files).hex()}"
    return record


def _files(name: str) -> dict[str, Value]:
    """Digests of the files of an installed top-level module, by their place in it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return {}
    if spec is None or spec.origin is None or not is_installed(spec.origin):
        return {}
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        return {origin.name: _digest(origin)} if origin.is_file() else {}
    files = sorted(file for file in origin.parent.rglob("*") if file.is_file())
    return {
        file.relative_to(origin.parent).as_posix(): _digest(file)
        for file in files
        if "__pycache__" not in file.parts
    }


def _digest(file: Path) -> str:
    return digest_value("package", file.read_bytes()).hex()
