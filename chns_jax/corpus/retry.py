"""Faults of reading that pass, as of a server that is busy: tried again, and then the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from chns_jax.common.errors import UserError

PAUSES = 0.1, 0.4, 1.5, 5.0, 10.0, 20.0  # seconds, each before another attempt
# What the system says of a path that it will say again; all else may pass.
LASTING = FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError

Result = TypeVar("Result")


class ReadError(UserError):
    """Speech that cannot be read, which may pass: what was done before it is right."""


def retried(read: Callable[[], Result], path: str) -> Result:
    """What `read` returns, called again after each of `PAUSES` while it raises an OSError that is
    not of `LASTING`. When that is raised for the last time, raises ReadError, which names `path`.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except LASTING:
            raise
        except OSError as error:
            pause = next(pauses, None)
            if pause is None:
                raise ReadError(
                    f"{path} cannot be read, nor could it for {sum(PAUSES):.0f} seconds "
                    f"({error.strerror or error}): when it can, the same command goes on"
                ) from error
        time.sleep(pause)
