"""A trained run or a published model, loaded: what commands that use an encoder begin with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from chns_jax.common.errors import UserError, shortened
from chns_jax.config import (
    Config,
    Encoder,
    Features,
    Sampler,
    check_unedited,
    is_published,
    read_run,
)
from chns_jax.devices.sharding import make_mesh, replicated
from chns_jax.embedding.embedder import Embedder
from chns_jax.runs import published
from chns_jax.runs.state import Saved, sha256, without_loss


class Model(NamedTuple):
    config: Config
    step: int  # updates that made it
    variables: dict[str, Any]
    embedder: Embedder
    published: bool = False  # so that nobody knows whose speech it was trained on


def load(run: Path | str, checkpoint: str = "last", *, quick: bool = False) -> Model:
    """The model of a run folder, or a published one. `checkpoint`: as of `restore_variables`;
    `quick`: as of Embedder.

    Raises UserError when the folder is neither, or holds no such checkpoint.
    """
    run = Path(run).expanduser()
    config = read_run(run)
    mesh = make_mesh()
    saved = restore(run, checkpoint, replicated(mesh))
    published = is_published(run)
    if not published:  # which is looked at before its weights are
        check_unedited(config, saved.config, run, ("features", "encoder"))
    embedder = _embedder(config.features, config.encoder, config.sampler.speakers, mesh, quick)
    return Model(config, saved.step, saved.variables, embedder, published)


@lru_cache(maxsize=4)
def _embedder(
    features: Features, encoder: Encoder, speakers: int, mesh: Mesh, quick: bool
) -> Embedder:
    """One for all models that differ in nothing else, whose programs are then compiled once."""
    config = Config(features=features, encoder=encoder, sampler=Sampler(speakers=speakers))
    return Embedder(config, mesh, quick=quick)


def restore(run: Path, checkpoint: str, sharding: jax.sharding.Sharding) -> Saved:
    """The variables of a run's checkpoint, or of a published model, which has one alone. Raises
    UserError as `load` does."""
    if not is_published(run):
        from chns_jax.runs.checkpoint import restore_variables  # orbax takes a second to import

        return restore_variables(run, checkpoint, sharding)
    saved = published.read(run, read_run(run), sharding)
    if checkpoint not in ("last", "best", str(saved.step)):
        raise UserError(
            f"{run} holds no checkpoint {shortened(checkpoint)}: it is a published model, of step "
            f"{saved.step}"
        )
    return saved


def checkpoint_digest(model: Model) -> str:
    """Which checkpoint this is: of all that its embeddings depend on."""
    config = [dataclasses.asdict(part) for part in (model.config.features, model.config.encoder)]
    about = [config, model.step, sha256(without_loss(model.variables))]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
