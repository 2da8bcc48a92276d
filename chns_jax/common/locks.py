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
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        time.sleep(LOOK)  # another may only have looked
        return _try(file, fcntl.LOCK_EX)
    except OSError:
        pass
    return True


def is_held(path: Path) -> bool:
    """Whether another process holds a file; False where there is none."""
    if fcntl is None or not path.is_file():
        return False
    try:
        with open(path) as file:
            return not _try(file, fcntl.LOCK_SH)  # which keeps nobody else from looking
    except OSError:
        return False


def _try(file: IO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
