"""A refresh beside training: the clusters of the next round are made while this one goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any

import jax
import numpy as np

from chns_jax.embedding import Encode
from chns_jax.sampling.clusters import Table


@dataclass(frozen=True)
class Refresh:
    """A table that a thread is making."""

    variables: dict[str, Any]  # of the encoder that it is made with, on the host
    table: Future[Table]
    closed: Event

    def close(self) -> None:
        """End the thread soon, whether or not the table is made."""
        self.closed.set()
        wait([self.table])


def begin(
    make: Callable[[Encode, dict[str, Any]], Table], encode: Encode, variables: dict[str, Any]
) -> Refresh:
    """Start make(encode, variables) in a thread, with a copy of the variables.

    `encode` must use one device: programs over several that two threads start may wait for each
    other for ever.
    """
    copied = jax.tree.map(np.array, variables)  # the state is donated to the next step
    closed = Event()

    def embed(*arguments):
        if closed.is_set():
            raise CancelledError
        return encode.embed(*arguments)

    thread = ThreadPoolExecutor(1)
    table = thread.submit(make, dataclasses.replace(encode, embed=embed), jax.device_put(copied))
    thread.shutdown(wait=False)  # it ends with the table
    return Refresh(copied, table, closed)
