"""Mistakes of the user: one sentence on standard error, and exit status 2."""

from __future__ import annotations

import errno
import sys
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
    except UserError as error:
        sys.exit(_say(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.filename is None and error.errno not in NO_SPACE:
            raise
        where = f" at {error.filename}" if error.filename else ""
        if error.errno in NO_SPACE:
            sys.exit(_say(f"no space is left{where}: free some and run the same command again"))
        sys.exit(_say(f"{error.filename} cannot be used: {error.strerror}"))
    except Exception as error:  # tensorstore, under orbax, has exceptions of its own
        if "No space left" not in str(error):
            raise
        sys.exit(
            _say("no space is left for a checkpoint: free some and run the same command again")
        )


def _say(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
