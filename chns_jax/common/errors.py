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
from functools import partial
from threading import Lock, Timer
from types import FrameType
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_SHOWN = 80  # characters of what was given that a sentence repeats
AGAIN_AFTER = 0.05  # seconds after which a signal that was lost, or came too soon, is sent again
_first_to_leave = Lock()


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


def shortened(words: str) -> str:
    """A name or a value as a sentence repeats it: on one line, and no more than its beginning."""
    words = " ".join(words.split()) or "''"
    return words if len(words) <= LONGEST_SHOWN else f"{words[:LONGEST_SHOWN]}..."


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; a `UserError` is printed and exits with status 2.

    SIGTERM raises KeyboardInterrupt as SIGINT does, so that what is done is kept; both wait for
    what is being imported.
    """
    # Where whoever started this closed a stream, no file may take its place.
    sys.stdin = sys.stdin or open(os.devnull)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
        sys.stdout.write = _lose
    sys.stderr = sys.stderr or open(os.devnull, "w")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as by nohup
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = partial(_send_again, sys.unraisablehook)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes of no letter
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()  # what cannot be written is known here
    except (Exception, KeyboardInterrupt) as error:
        # XLA may be compiling in a thread, which crashes where the interpreter ends; and threads
        # that write to a full disk say so with tracebacks.
        leave(error)


def _lose(text: str) -> int:
    raise UserError("standard output is closed, and the answer lost: leave >&- out")


def leave(error: BaseException, *, patience: float = 0.0) -> None:
    """Say what ended the program, and end it after `patience` seconds without waiting for threads,
    or for hosts that may wait for this one. A second thread to call this ends it and says nothing
    more."""
    status = report(error) if _first_to_leave.acquire(blocking=False) else _ending(error)[0]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # which said so before, or nobody reads
            if stream:
                stream.flush()
    time.sleep(patience)
    os._exit(status)


def report(error: BaseException) -> int:
    """Say what ended the program, one sentence or else a traceback; returns its exit status."""
    status, said = _ending(error)
    if said:
        with suppress(OSError):  # where nothing can be said, the status says it
            print(said, file=sys.stderr)
    return status


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit status, and what there is to say."""
    if isinstance(error, KeyboardInterrupt):
        number = _number(error)
        return 128 + number, f"stopped by {number.name}"
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return 128 + signal.SIGPIPE, ""
    sentence = _sentence(error)
    if sentence is None:
        return 1, "".join(traceback.format_exception(error)).rstrip()
    return 2, f"error: {_one_line(sentence)}"


def _number(error: KeyboardInterrupt) -> signal.Signals:
    return signal.Signals(error.args[0] if error.args else signal.SIGINT)


def _send_again(hook: Callable[[Any], Any], ignored: Any) -> None:
    """Where Python discards an error, as of JAX's callback when memory is collected, it may be that
    of a signal, which must end the program all the same."""
    if not isinstance(ignored.exc_value, KeyboardInterrupt):
        hook(ignored)
        return
    _signal_again(_number(ignored.exc_value))


def _signal_again(number: int) -> None:
    again = Timer(AGAIN_AFTER, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):  # half of a module, such as jaxlib, may crash
        _signal_again(number)
    else:
        raise KeyboardInterrupt(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _nobody_reads() -> bool:
    """Whether the output or the errors go to a pipe that its reader has closed."""
    waiting = select.poll()
    for descriptor in (1, 2):
        waiting.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _is_nowhere() -> bool:
    """Whether the folder that the program was started in has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


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
    if isinstance(error, FileNotFoundError) and _is_nowhere():
        return "the folder that this was started in is gone: change to one that is there"
    if "Too many open files" in str(error):  # tensorstore says so too
        return "too many files are open: raise the limit (ulimit -n) and run the same command again"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} is a file, or below one, and no folder: give another name"
    if isinstance(error, OSError) and error.filename:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        advice = ": give another name, or the right to it" if denied else ""
        return f"{error.filename} cannot be used: {error.strerror}{advice}"
    # tensorstore, under orbax, has exceptions of its own, and says RESOURCE_EXHAUSTED of disks too
    if not isinstance(error, OSError) and "No space left" in str(error):
        return "no space is left for a checkpoint: free some and run the same command again"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "there is not enough memory: give smaller sizes, or fewer things at a time"
    if isinstance(error, ValueError) and "for environment '" in str(error):  # JAX's
        return f"{error}: correct it, or leave it out"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's
        return "a path begins with ~, of which there is no home folder here: write it out"
    return None
