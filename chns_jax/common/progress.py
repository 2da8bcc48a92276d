"""How far work has come that may take long: a bar at a terminal, and a line now and then elsewhere,
as in the log of a job."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from chns_jax.common.console import is_silent, load_tqdm, say

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 30.0  # and before the first


class Lines(Generic[Item]):
    """What is used here of tqdm's interface, in lines on standard error."""

    def __init__(self, items: Iterable[Item], what: str, unit: str, total: int | None, done: int):
        self._items, self._what, self._unit, self._total = items, what, unit, total
        self._done = self._before = done
        self._note = ""
        self._began = self._said = time.monotonic()

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            say(self._line(now - self._began))

    def set_postfix_str(self, note: str, refresh: bool = False) -> None:
        self._note = f", {note}"

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            yield item
            self.update()

    def __enter__(self) -> Lines[Item]:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _line(self, seconds: float) -> str:
        if self._total is None:
            return f"{self._what}: {self._done:,} {self._unit}s{self._note}"
        left = seconds * (self._total - self._done) / max(1, self._done - self._before)
        return (
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s{self._note}, "
            f"{load_tqdm().format_interval(left)} left"
        )


Bar: TypeAlias = "tqdm | Lines"


def progress_bar(
    items: Iterable[Item] = (),
    *,
    what: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
) -> tqdm[Item] | Lines[Item]:
    """The items, each of which is one of `total` units when the next is asked for; or, without
    them, what is told by its `update(n)` that n more are done.

    `done` of them were done before. Where `say` is silent, so is this.
    """
    if not sys.stderr.isatty():
        return Lines(items, what, unit, total, done)
    return load_tqdm()(
        items, desc=what, unit=unit, total=total, initial=done, disable=is_silent(), leave=False,
        dynamic_ncols=True,
    )  # fmt: skip
