"""A trained run, loaded: what the commands that use an encoder begin with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from chns_jax import config as configs
from chns_jax.checkpoint import restore_variables
from chns_jax.config import Config
from chns_jax.embedding import Encode, make_encode
from chns_jax.encoders import make_encoder
from chns_jax.errors import UserError
from chns_jax.sharding import make_mesh, replicated
from chns_jax.step import sha256


class Model(NamedTuple):
    config: Config
    step: int  # updates that made it
    variables: dict[str, Any]
    encode: Encode


def load(run: Path | str, checkpoint: str = "last") -> Model:
    """The model of a run folder. `checkpoint` is "last", "best" (lowest EER) or a step number.

    Raises UserError when the folder is no run, or holds no such checkpoint.
    """
    run = Path(run).expanduser()
    config = read_config(run)
    mesh, encoder = make_mesh(), make_encoder(config.encoder)
    saved = restore_variables(run, checkpoint, replicated(mesh))
    return Model(config, saved.step, saved.variables, make_encode(config, encoder, mesh))


def read_config(run: Path) -> Config:
    """The config of a run folder. Raises UserError when it is none."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: it holds no config.yaml")
    return configs.load(["--config", str(run / "config.yaml")])


def digest(model: Model) -> str:
    """Which checkpoint this is: of all that its embeddings depend on."""
    config = [dataclasses.asdict(part) for part in (model.config.features, model.config.encoder)]
    about = [config, model.step, sha256(model.variables)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
