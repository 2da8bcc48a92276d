"""The clusters of the next round: made when they are needed, or beside training before that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import jax
import numpy as np

from chns_jax.sampling.clusters import SpeakerClusters

Clustered = tuple[SpeakerClusters, np.ndarray]  # and the voiceprints (n, d) that were clustered
MakeTable = Callable[..., Clustered]  # of (variables, round=..., stopped=...)


class Refresh:
    """Makes each round's table with `make`; one that was begun before, with `make_beside`.

    The latter must use one device, as programs over several that two threads start may wait for
    each other for ever, and must end soon after its event `stopped` is set.
    """

    def __init__(self, make: MakeTable, make_beside: MakeTable):
        self._make, self._make_beside = make, make_beside
        self._begun: Future[Clustered] | None = None
        self._stopped = Event()
        self.variables: dict[str, Any] | None = None  # on the host, of a table that was begun

    def begin(self, variables: dict[str, Any], round: int) -> None:
        """Start the table in a thread, with a copy of the variables, unless it was begun."""
        if self._begun is not None:
            return
        self.variables = jax.tree.map(np.array, variables)  # the state is donated to the next step
        thread = ThreadPoolExecutor(1)
        self._begun = thread.submit(
            self._make_beside,
            jax.device_put(self.variables),
            round=round,
            stopped=self._stopped,
        )
        thread.shutdown(wait=False)  # it ends with the table

    def table(self, variables: dict[str, Any], round: int) -> Clustered:
        """The table that was begun, or else one made with these variables."""
        if self._begun is None:
            return self._make(variables, round=round)
        table = self._begun.result()
        self._begun = self.variables = None
        return table

    def close(self) -> None:
        """End the thread soon, whether or not its table is made."""
        self._stopped.set()
        if self._begun is not None:
            wait([self._begun])
