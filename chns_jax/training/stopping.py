"""SIGTERM and Ctrl-C, caught between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the first SIGTERM or SIGINT; a second one acts as usual."""
    caught: list[int] = []

    def catch(number, frame):
        caught.append(number)
        signal.signal(number, usual[number])

    usual = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
