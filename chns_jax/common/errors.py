"""Mistakes of the user: one sentence on standard error, and exit status 2."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; a `UserError` is printed and exits with status 2.

    SIGTERM raises KeyboardInterrupt as SIGINT does, so that what is done is kept.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        # XLA may be compiling in a thread, which crashes where the interpreter ends; and threads
        # that write to a full disk say so with tracebacks.
        leave(error)


def leave(error: BaseException, *, patience: float = 0.0) -> None:
    """Say what ended the program, and end it after `patience` seconds without waiting for threads,
    or for hosts that may wait for this one."""
    status = report(error)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(patience)
    os._exit(status)


def report(error: BaseException) -> int:
    """Say what ended the program, one sentence or else a traceback; returns its exit status."""
    if isinstance(error, KeyboardInterrupt):
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        print(f"stopped by {number.name}", file=sys.stderr)
        return 128 + number
    sentence = _sentence(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f" at {error.filename}" if error.filename else ""
        return f"no space is left{where}: free some and run the same command again"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}"
    # tensorstore, under orbax, has exceptions of its own
    if not isinstance(error, OSError) and "No space left" in str(error):
        return "no space is left for a checkpoint: free some and run the same command again"
    return None
