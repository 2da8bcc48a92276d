"""Files that one process at a time holds. Where a file system knows no locks, everyone may."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LOOK = 0.05  # seconds, longer than `is_held` takes


def hold(file: IO, *, wait: bool = False) -> bool:
    """Hold an open file until it is closed; False where another process does, for whose end this
    one will `wait` if asked to."""
    if _lock(file, wait=wait):
        return True
    time.sleep(LOOK)  # another may only have looked
    return _lock(file)


def is_held(path: Path) -> bool:
    """Whether another process holds a file; False where there is none."""
    try:
        if path.is_file():
            with open(path) as file:
                return not _lock(file, shared=True)  # which keeps nobody else from looking
    except OSError:
        pass
    return False


def _lock(file: IO, *, shared: bool = False, wait: bool = False) -> bool:
    """False where another process holds the file in a way that excludes this one."""
    if fcntl is None:
        return True
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        pass
    return True
