"""Ctrl-C before a command is ready to say so: imported before anything that takes time."""

import os
import signal
import sys
from itertools import pairwise

PACKAGE = __name__.partition(".")[0]


def is_command() -> bool:
    """Whether this is imported to run a command of the package, by chns-jax or by python -m, which
    calls itself -m while it looks for the module."""
    started = os.path.basename(sys.argv[0]) if sys.argv else ""
    if started != "-m":
        return started == "chns-jax"
    module = next((after for word, after in pairwise(sys.orig_argv) if word == "-m"), "")
    return module.partition(".")[0] == PACKAGE


# Until `errors.run` is there to say so, Ctrl-C ends a command, without a traceback of imports.
if is_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Where huge_pages.py has begun the command again, it has waited since then.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
