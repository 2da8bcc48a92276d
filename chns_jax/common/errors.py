"""Mistakes of the user: one sentence on standard error, and exit status 2."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes of no letter
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main(sys.argv[1:])
        finally:
            if sys.stdout:
                sys.stdout.flush()  # what cannot be written is known here
    except (Exception, KeyboardInterrupt) as error:
        # XLA may be compiling in a thread, which crashes where the interpreter ends; and threads
        # that write to a full disk say so with tracebacks.
        leave(error)


def leave(error: BaseException, *, patience: float = 0.0) -> None:
    """Say what ended the program, and end it after `patience` seconds without waiting for threads,
    or for hosts that may wait for this one."""
    status = report(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # which said so before, or nobody reads
            if stream:
                stream.flush()
    time.sleep(patience)
    os._exit(status)


def report(error: BaseException) -> int:
    """Say what ended the program, one sentence or else a traceback; returns its exit status."""
    if isinstance(error, KeyboardInterrupt):
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        print(f"stopped by {number.name}", file=sys.stderr)
        return 128 + number
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return 128 + signal.SIGPIPE
    sentence = _sentence(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    print(f"error: {_one_line(sentence)}", file=sys.stderr)
    return 2


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _nobody_reads() -> bool:
    """Whether the output or the errors go to a pipe that its reader has closed."""
    waiting = select.poll()
    for descriptor in (1, 2):
        waiting.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _one_line(sentence: str) -> str:
    """Names of files may hold newlines, what moves a terminal's cursor, and bytes of no letter."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in sentence
    )


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f" at {error.filename}" if error.filename else ""
        return f"no space is left{where}: free some and run the same command again"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} is a file, or below one, and no folder: give another name"
    if isinstance(error, OSError) and error.filename:
        advice = ": give another name, or the right to it" if error.errno == errno.EACCES else ""
        return f"{error.filename} cannot be used: {error.strerror}{advice}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "there is not enough memory: give smaller sizes, or fewer things at a time"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's
        return "a path begins with ~, of which there is no home folder here: write it out"
    # tensorstore, under orbax, has exceptions of its own
    if not isinstance(error, OSError) and "No space left" in str(error):
        return "no space is left for a checkpoint: free some and run the same command again"
    return None
