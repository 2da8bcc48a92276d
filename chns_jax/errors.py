"""Mistakes of the user: one sentence on standard error, and exit status 2."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Callable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; a `UserError` is printed and exits with status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))


def report(error: BaseException) -> int:
    """Say what ended the program, one sentence or else a traceback; returns its exit status."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    sentence = _sentence(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    print(f"error: {sentence}", file=sys.stderr)
    return 2


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
