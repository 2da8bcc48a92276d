"""A config -> the jitted training step: the one place where it is put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from chns_jax.common.errors import UserError
from chns_jax.config import Config
from chns_jax.devices.sharding import by_rows, held, padded_rows, put, replicate, replicated
from chns_jax.encoders import make_encoder
from chns_jax.runs.state import TrainState
from chns_jax.training.optimizer import make_optimizer
from chns_jax.training.step import classes_of, init, train_step


class Build(NamedTuple):
    """What training does on a mesh; functions are compiled when they are first called."""

    init: Callable[[], TrainState]  # the state before the first step
    shapes: Callable[[], TrainState]  # and what it is made of
    update: Callable[..., tuple[TrainState, dict[str, Any]]]  # `train_step` of a batch as `put` has
    held: np.ndarray  # rows of a batch that this process reads
    put: Callable[[Any], Any]  # these rows, and padding, on the devices


def build(config: Config, speakers: int, mesh: Mesh) -> Build:
    """The first state and the training step of a corpus of so many training speakers.

    The step overwrites the state that it is given. Raises UserError when there are more devices
    than rows, so that a process holds none, or fewer classes than the loss needs.
    """
    rows = 2 * config.sampler.speakers
    on_devices = held(mesh, padded_rows(mesh, rows, config.training.micro_batch))
    read = on_devices[on_devices < rows]
    if not len(read):
        raise UserError(
            f"the {rows} rows of a batch are too few for {mesh.size} devices of "
            f"{jax.process_count()} hosts: raise sampler.speakers, or use fewer hosts"
        )
    if config.loss.top_k >= classes_of(config, speakers):
        raise UserError(
            f"loss.top_k {config.loss.top_k} must lie below the number of classes, of which "
            f"{speakers} training speakers have {classes_of(config, speakers)}"
        )
    encoder = make_encoder(
        config.encoder, dtype=config.training.compute, remat=config.training.remat
    )
    tx = make_optimizer(config.optimizer, config.training.steps)
    first = partial(init, config, encoder, tx, speakers)
    whole, rows_split = replicated(mesh), by_rows(mesh)
    update = partial(
        train_step, config=config, encoder=encoder, tx=tx, speakers=speakers,
        mesh=mesh if mesh.size > 1 else None,
    )  # fmt: skip
    return Build(
        shapes=lambda: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(first),
        ),
        init=lambda: replicate(mesh, first()),
        update=jax.jit(
            update,
            in_shardings=(whole, rows_split, whole),
            out_shardings=(whole, whole),
            donate_argnums=0,
            static_argnums=3,
        ),
        held=read,
        put=partial(put, mesh, count=len(on_devices)),
    )
