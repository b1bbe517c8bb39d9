"""The files that define a job, each read once: what is executed and digested are these bytes.

They are found from the files' text, not from what happens to be loaded, so that trainer and auditor
find the same ones: the job file, every module of the same folder that they import anywhere in them,
recursively, and the files that the job names in `sources` with the modules beside them that those
import. A module that is imported only under a name made at run time is not seen here.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from os import path as paths
from pathlib import Path
from types import CodeType

from veritrain.encoding import Digest, digest
from veritrain.errors import JobError


class Snapshot:
    """The source files of a job as they were when they were first read.

    Attributes:
        file: the Python file that defines the job, absolute.
        roots: the folders that its imports start from, first one first.
        files: what the commitment covers, absolute.
        nameable: files that a literal `sources=[...]` in their text names, and what those import:
            code that may run while it is not known yet what the job names.
        names: which of them are modules beside the job, by the name under which they are imported.
        foreign: top-level names that they import from elsewhere.
        imports: all dotted names that they import, of modules and of what is in them.
        reached: top-level names that their code has imported so far, computed ones among them.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.roots = _roots(file)
        self.files: set[Path] = {file}
        self.nameable: set[Path] = set()
        self.names: dict[str, Path] = {}
        self.foreign: set[str] = set()
        self.imports: set[str] = set()
        self.reached: set[str] = set()
        self._texts: dict[Path, bytes] = {}
        self._digests: dict[Path, Digest] = {}
        self._codes: dict[Path, CodeType] = {}
        self._literals: list[str] = []
        self._follow(_module_name(file, self.roots[-1]), file, self.roots, self.files)
        for literal in tuple(self._literals):
            with contextlib.suppress(JobError):  # what the job names indeed is looked at later
                named = self.named([literal], file.parent)
                self._take_in({one for one in named if one.suffix == ".py"}, self.nameable)

    def text(self, file: Path) -> bytes:
        """The bytes of a file, read when they are first asked for.

        Raises:
            JobError: it cannot be read.
        """
        if file not in self._texts:
            if not file.is_file():
                got = "something else" if file.exists() else "nothing of this name"
                raise JobError(f"sources: {file}: expected a file, got {got}")
            try:
                self._texts[file] = file.read_bytes()
            except OSError as error:
                raise JobError(f"sources: cannot read {file}: {error.strerror}") from error
        return self._texts[file]

    def size(self, file: Path) -> int:
        """How many bytes a file has: those that were read, where they are held.

        Raises:
            JobError: it cannot be read.
        """
        if file in self._texts:
            return len(self._texts[file])
        try:
            return file.stat().st_size
        except OSError as error:
            raise JobError(f"sources: cannot read {file}: {error.strerror}") from error

    def digest(self, file: Path) -> Digest:
        """The digest that commits to a file's bytes.

        Raises:
            JobError: it cannot be read.
        """
        if file not in self._digests:
            self._digests[file] = digest("source", self.text(file))
        return self._digests[file]

    def code(self, file: Path) -> CodeType:
        """A file's bytes, compiled. Bytecode on the disk is never used.

        Raises:
            SyntaxError: it is not Python.
        """
        if file not in self._codes:
            text = self.text(file)
            try:
                self._codes[file] = compile(text, str(file), "exec", dont_inherit=True)
            except SyntaxError as error:
                error.filename = error.filename or str(file)
                raise
            except (ValueError, RecursionError, MemoryError) as error:
                message = str(error) or "too deeply nested"
                raise SyntaxError(message, (str(file), None, None, None)) from error
        return self._codes[file]

    @staticmethod
    def named(sources: Iterable[str | PathLike[str]], folder: Path) -> set[Path]:
        """The files that a job names in `sources`; a folder stands for the Python files in it.

        Raises:
            JobError: a folder without Python files, or a name that no file can have.
        """
        found: set[Path] = set()
        for source in sources:
            try:
                path = (folder / source).resolve()
                files = set(_python_files(path)) if path.is_dir() else {path}
            except (OSError, ValueError) as error:
                shown = ascii(str(source))[:80]
                raise JobError(f"sources: {shown}: no file can have this name ({error})") from error
            if not files:
                raise JobError(f"sources: {path} is a folder without Python files; name its files")
            found |= files
        return found

    def add(self, files: Iterable[Path]) -> None:
        """Take files in, and what Python files among them import from beside them.

        Raises:
            JobError: a file cannot be read.
        """
        self._take_in(files, self.files)
        for file in files:
            self.digest(file)
            if file.suffix != ".py":  # data: its bytes are not needed again, and can be many
                self._texts.pop(file, None)

    def extended(self, sources: Sequence[str | PathLike[str]], folder: Path) -> Snapshot:
        """The same files, with the bytes that were read, and those that `sources` names.

        Raises:
            JobError: as `named` and `add`.
        """
        other = copy.copy(self)
        other.files, other.names = set(self.files), dict(self.names)
        other.foreign, other.imports = set(self.foreign), set(self.imports)
        other.add(other.named(sources, folder))
        return other

    def _take_in(self, files: Iterable[Path], into: set[Path]) -> None:
        for file in sorted(set(files) - into):
            into.add(file)
            if file.suffix != ".py":
                continue
            inside = [root for root in self.roots if file.is_relative_to(root)]
            roots = self.roots if inside else _roots(file)
            name = _module_name(file, (inside or roots)[-1])
            if inside:
                self.names.setdefault(name, file)
            folder = file.parent
            while folder not in roots and (folder / "__init__.py").is_file():
                self._take_in([folder / "__init__.py"], into)  # executed before the module
                folder = folder.parent
            self._follow(name, file, roots, into)

    def _follow(self, name: str, file: Path, roots: list[Path], into: set[Path]) -> None:
        """Take in the modules that `file` imports, and those that they import."""
        waiting, seen = [(name, file)], {file}
        while waiting:
            for found, path in self._direct_imports(*waiting.pop(), roots):
                if roots is self.roots and path != self.file:
                    self.names.setdefault(found, path)
                if path not in seen:
                    seen.add(path)
                    into.add(path)
                    waiting.append((found, path))

    def _direct_imports(
        self, name: str, file: Path, roots: list[Path]
    ) -> Iterator[tuple[str, Path]]:
        try:
            tree = ast.parse(self.text(file))
        except (SyntaxError, ValueError):
            return  # running the file reports it, with the line
        except (RecursionError, MemoryError) as error:  # Python may compile it all the same
            raise JobError(
                f"sources: {file}: is too deeply nested to be looked through for imports; split "
                "its longest expressions"
            ) from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._absolute(roots, alias.name.split("."))
            elif isinstance(node, ast.ImportFrom):
                parts = node.module.split(".") if node.module else []
                for alias in node.names:
                    if node.level == 0:
                        yield from self._absolute(roots, [*parts, alias.name])
                    elif node.level <= len(file.parents):
                        package = _package(name, file, node.level)
                        self.imports.add(".".join([*package, *parts, alias.name]))
                        folder = file.parents[node.level - 1]
                        yield from _walk(folder, package, [*parts, alias.name])
            elif isinstance(node, ast.keyword) and node.arg == "sources":
                self._literals += _literal_paths(node.value)

    def _absolute(self, roots: list[Path], parts: list[str]) -> Iterator[tuple[str, Path]]:
        """As `_walk`, from the first folder of the import path that has something of this name."""
        self.imports.add(".".join(parts))
        for root in roots:
            found = list(_walk(root, [], parts))
            if found:
                yield from found
                return
        self.foreign.add(parts[0])


def _walk(folder: Path, package: list[str], parts: list[str]) -> Iterator[tuple[str, Path]]:
    """Name and file of every module that importing `parts` from the package `package`, which lies
    in `folder`, would execute."""
    for part in parts:
        package = [*package, part]
        module, inner = folder / f"{part}.py", folder / part
        if paths.isfile(inner / "__init__.py"):  # False where no file can have this name
            yield ".".join(package), inner / "__init__.py"
        elif paths.isfile(module):
            yield ".".join(package), module
            return
        elif not paths.isdir(inner):
            return
        folder = inner


def _python_files(folder: Path) -> Iterator[Path]:
    """The Python files in a folder; neither hidden ones nor those of a virtual environment."""
    for inner, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name != "__pycache__"
            and not paths.exists(paths.join(inner, name, "pyvenv.cfg"))
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith("."):
                yield Path(inner, name).resolve()


def _literal_paths(value: ast.expr) -> list[str]:
    """The texts in a list that is written out."""
    items = value.elts if isinstance(value, ast.List | ast.Tuple) else []
    constants = [item.value for item in items if isinstance(item, ast.Constant)]
    return [constant for constant in constants if isinstance(constant, str)]


def _package(name: str, file: Path, level: int) -> list[str]:
    """The package that a relative import of this level starts from."""
    parts = name.split(".")
    up = level - 1 if file.name == "__init__.py" else level
    return parts[: max(0, len(parts) - up)]


def _roots(file: Path) -> list[Path]:
    """The folders that a file's absolute imports start from: its own, and the one that the package
    lies in which it is part of."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return [file.parent, folder]


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
