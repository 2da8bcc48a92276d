"""A config -> the jitted training step: the one place where it is put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from chns_jax.config import Config
from chns_jax.devices.sharding import check_divides, replicated, split
from chns_jax.encoders import make_encoder
from chns_jax.runs.state import TrainState
from chns_jax.training.optimizer import make_optimizer
from chns_jax.training.step import init, train_step


class Build(NamedTuple):
    """Functions compiled for a mesh, when they are first called."""

    init: Callable[[], TrainState]  # the state before the first step
    update: Callable[..., tuple[TrainState, dict[str, Any]]]  # of (state, batch, rirs)


def build(config: Config, speakers: int, mesh: Mesh) -> Build:
    """The first state and the training step of a corpus of so many training speakers.

    The step takes rows split over the mesh, and overwrites the state that it is given. Raises
    UserError when the rows of a batch cannot be split.
    """
    check_divides(mesh, config.sampler.speakers, config.training.micro_batch)
    encoder = make_encoder(
        config.encoder, dtype=config.training.compute, remat=config.training.remat
    )
    tx = make_optimizer(config.optimizer, config.training.steps)
    whole, by_rows = replicated(mesh), split(mesh)
    update = partial(
        train_step, config=config, encoder=encoder, tx=tx, speakers=speakers,
        mesh=mesh if mesh.size > 1 else None,
    )  # fmt: skip
    return Build(
        init=jax.jit(partial(init, config, encoder, tx, speakers), out_shardings=whole),
        update=jax.jit(
            update,
            in_shardings=(whole, by_rows, whole),
            out_shardings=(whole, whole),
            donate_argnums=0,
        ),
    )
