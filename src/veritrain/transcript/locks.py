"""One writer at a time for a run folder of this machine.

The lock is flock(2) on the folder itself, so that no file is added to the run. The system releases
it when the process ends, however it ends. Readers need none. File systems without locks (some
network ones) go without: there the caller sees to it that a run has one writer.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from weakref import WeakSet

from veritrain.errors import UsageError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EINVAL)  # by flock(2)


class FolderLock:
    """The exclusive right to write into a folder, until `release` or the end of the object."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            UsageError: someone else has it.
            OSError: the folder cannot be opened.
        """
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        _held.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UsageError(
                f"{folder} is being written by another process or recorder; "
                "wait for it, or close it, before you resume the run"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.release()
                raise

    def release(self) -> None:
        """Let others write; may be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.release()


_held: WeakSet[FolderLock] = WeakSet()


def _release_in_child() -> None:
    """A forked worker shares the lock and would keep it when its parent is killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
