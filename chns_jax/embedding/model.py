"""A trained run, loaded: what the commands that use an encoder begin with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from chns_jax.config import Config, check_unedited, read_run
from chns_jax.devices.sharding import make_mesh, replicated
from chns_jax.embedding.embedder import Embedder
from chns_jax.runs.checkpoint import restore_variables
from chns_jax.runs.state import sha256


class Model(NamedTuple):
    config: Config
    step: int  # updates that made it
    variables: dict[str, Any]
    embedder: Embedder


def load(run: Path | str, checkpoint: str = "last") -> Model:
    """The model of a run folder. `checkpoint`: as of `restore_variables`.

    Raises UserError when the folder is no run, or holds no such checkpoint.
    """
    run = Path(run).expanduser()
    config = read_run(run)
    mesh = make_mesh()
    saved = restore_variables(run, checkpoint, replicated(mesh))
    check_unedited(config, saved.config, run, ("features", "encoder"))
    return Model(config, saved.step, saved.variables, Embedder(config, mesh))


def checkpoint_digest(model: Model) -> str:
    """Which checkpoint this is: of all that its embeddings depend on."""
    config = [dataclasses.asdict(part) for part in (model.config.features, model.config.encoder)]
    about = [config, model.step, sha256(model.variables)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
