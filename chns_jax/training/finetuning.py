"""A run that begins with what another has learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.common.console import say
from chns_jax.common.errors import UserError
from chns_jax.config import OPTIONS, Config, differences, read_run
from chns_jax.embedding.model import restore
from chns_jax.runs.folder import RunFolder, training_speakers
from chns_jax.runs.published import find_model
from chns_jax.runs.state import TrainState


def start_from(config: Config, state: TrainState, speakers: str) -> TrainState:
    """`state`, a first one, with the encoder of a checkpoint of training.start_from.

    Where both learn classes, as many centres each, and of the same training speakers (a digest of
    whom is `speakers`), those are taken as well, with their bias; classes of other speeds come
    last, and are left behind if `state` has none. Raises UserError when that run holds no
    checkpoint, or has other features or another encoder.
    """
    run = _parent(config)
    _check_config(run, config)
    theirs = restore(run, config.training.start_checkpoint, state.step.sharding)
    mine = state.variables
    encoder = {
        "encoder": theirs.variables["params"]["encoder"],
        "batch_stats": theirs.variables["batch_stats"],
    }
    _check_shapes(run, encoder, {**mine["params"], **mine})
    params = {**mine["params"], "encoder": encoder["encoder"]}
    of_loss, theirs_of_loss = (tree["params"].get("loss", {}) for tree in (mine, theirs.variables))
    if "weight" in of_loss:
        learnt, count = theirs_of_loss.get("weight", ()), len(of_loss["weight"])
        known = (
            theirs.speakers == speakers
            and len(learnt) >= count
            and read_run(run).loss.sub_centres == config.loss.sub_centres
        )
        if known:
            params["loss"] = of_loss | {"weight": learnt[:count]}
            if "bias" in of_loss and "bias" in theirs_of_loss:
                params["loss"]["bias"] = theirs_of_loss["bias"]
        say(f"starting from {run} {'with' if known else 'without'} its classes")
    variables = {"params": params, "batch_stats": encoder["batch_stats"]}
    average = None if state.average is None else jax.tree.map(jnp.copy, variables)
    return replace(state, variables=variables, average=average)


def check_unheard(config: Config, validating: np.ndarray) -> None:
    """Raises UserError when training.start_from was trained on speakers who are to validate.

    `validating` (n,) are their names, by which they are known again. Says so when nobody knows who
    that run was trained on.
    """
    run = _parent(config)
    steps = [int(path.name) for path in RunFolder(run).checkpoints.glob("[0-9]*")]
    heard = training_speakers(run, read_run(run), max(steps, default=0))
    if heard is None:
        say(f"who {run} was trained on is not known: see that nobody of them validates")
        return
    leaked = validating[np.isin(validating, heard)]
    if len(leaked):
        raise UserError(
            f"training.start_from {run} was trained on {len(leaked)} of the {len(validating)} "
            f"speakers who are to validate, {leaked[0]} first: validate on others, by data.trials "
            "or by the training.seed and data.held_out of that run"
        )


def _parent(config: Config) -> Path:
    """The folder of training.start_from, a run or a published model."""
    assert config.training.start_from is not None
    return Path(find_model(config.training.start_from)).expanduser()


def _check_config(run: Path, config: Config) -> None:
    """Raises UserError where keys that make an embedding are not those of `run`."""
    unused = set(OPTIONS.values()) - {OPTIONS[config.encoder.kind]}
    for key in differences(config, read_run(run)):
        part, *inner = key.split(".")
        if part in ("features", "encoder") and inner[0] not in unused:
            raise UserError(
                f"training.start_from {run} was trained with another {key}: give features.* and "
                "encoder.* as its config.yaml has them"
            )


def _check_shapes(run: Path, theirs: dict, mine: dict) -> None:
    """Raises UserError where an array of `theirs` has no counterpart of its shape in `mine`."""
    shapes = dict(jax.tree.leaves_with_path({key: mine[key] for key in theirs}))
    found = dict(jax.tree.leaves_with_path(theirs))
    for path in [*found, *shapes]:
        if path not in found or path not in shapes or found[path].shape != shapes[path].shape:
            name = "/".join(key.key for key in path)
            raise UserError(
                f"training.start_from {run} has another encoder than its config.yaml says, which "
                f"differs in {name}: give another run"
            )
