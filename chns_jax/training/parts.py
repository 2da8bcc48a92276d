"""What a run is put together from, so that a rehearsal can time it or put others in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from chns_jax.config import Config
from chns_jax.embedding.clustering import make_table
from chns_jax.embedding.embedder import Embedder
from chns_jax.runs import checkpoint
from chns_jax.training.build import Build, build
from chns_jax.training.refresh import MakeTable
from chns_jax.training.validate import validate


class Parts(NamedTuple):
    """The parts that take time, as training calls them, and what it says of a run that was stopped
    after a step."""

    build: Callable[[Config, int, Mesh], Build] = build
    embedder: Callable[[Config, Mesh], Embedder] = Embedder
    make_table: MakeTable = make_table
    validate: Callable[..., dict[str, dict[str, Any]]] = validate
    save: Callable[..., None] = checkpoint.save
    stopped: str = "which is saved: the same command goes on"


PARTS = Parts()
