"""Checkpoints: the whole truth about a run at a step. The only file that imports orbax."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from chns_jax.common.errors import UserError
from chns_jax.devices import processes
from chns_jax.runs.folder import RunFolder
from chns_jax.runs.state import TrainState
from chns_jax.sampling.clusters import SpeakerClusters

NO_STEP = -1  # what hosts tell each other where there is no checkpoint

# orbax reports its own settings as warnings at every start.
logging.getLogger("absl").setLevel(logging.ERROR)


class Progress(NamedTuple):
    """What a run is at, besides the arrays of its state."""

    round: int  # refreshes made
    seconds: float  # of training so far
    speakers: str  # digest of the names of the training speakers, whom the table numbers
    data: str  # digest of the utterances and the trials


class Restored(NamedTuple):
    state: TrainState
    table: SpeakerClusters | None
    progress: Progress
    refresh: dict[str, Any] | None  # the variables of a refresh that was under way


class Saved(NamedTuple):
    step: int
    variables: dict[str, Any]
    speakers: str | None  # as of Progress; None where it was not trained here
    config: str  # as it was when this was saved, in YAML


def open_manager(folder: Path, keep: int = 1, *, read_only: bool = False) -> ocp.CheckpointManager:
    """The checkpoints in `folder`: the `keep` latest, and the one of lowest EER, are kept."""
    by_eer = BestN(
        get_metric_fn=lambda metrics: metrics["eer"],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), by_eer]),
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
    )
    # Only with handlers named beforehand does orbax tell the shapes of what was saved.
    handlers = {
        "variables": ocp.StandardCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(
        folder.resolve(), options=options, item_handlers=handlers if read_only else None
    )


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    table: SpeakerClusters | None,
    progress: Progress,
    config: str,
    eer: float | None,
    refresh: dict[str, Any] | None = None,
) -> None:
    """Start to save; the state may be donated as soon as this returns.

    The checkpoint appears under its final name only when it is complete. `refresh` are the
    variables of a refresh under way.
    """
    trees = {"table": table and dataclasses.asdict(table), "refresh": refresh}
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            variables=ocp.args.StandardSave(state.variables),
            optimizer=ocp.args.StandardSave(state.optimizer),
            about=ocp.args.JsonSave({**progress._asdict(), "config": config, "eer": eer}),
            **{name: ocp.args.StandardSave(tree) for name, tree in trees.items() if tree},
        ),
        metrics=None if eer is None else {"eer": eer},
    )


def restore(manager: ocp.CheckpointManager, like: TrainState) -> Restored | None:
    """The latest checkpoint, with the shapes and shardings of `like`; None when there is none.

    Several hosts take the one that host 0 sees. Raises UserError when it is damaged, or hosts do
    not see the same.
    """
    step = _latest_of_all(manager)
    if step is None:
        return None
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = {
        "variables": ocp.args.StandardRestore(shapes.variables),
        "optimizer": ocp.args.StandardRestore(shapes.optimizer),
        "about": ocp.args.JsonRestore(),
    }
    with _reading(manager, step):
        saved = manager.item_metadata(step)
        for name in ("table", "refresh"):
            if name in saved:
                args[name] = ocp.args.StandardRestore()
        items = manager.restore(step, args=ocp.args.Composite(**args))
    table = None
    if "table" in args:
        table = SpeakerClusters(
            *(np.asarray(items["table"][key]) for key in ("cluster", "centroids"))
        )
    refresh = items["refresh"] if "refresh" in args else None
    count = jax.device_put(np.int32(step), like.step.sharding)
    state = TrainState(count, items["variables"], items["optimizer"])
    progress = Progress(*(items["about"][key] for key in Progress._fields))
    return Restored(state, table, progress, refresh)


def latest_config(manager: ocp.CheckpointManager) -> str:
    """The config, in YAML, of the latest checkpoint; empty when there is none."""
    step = manager.latest_step()
    if step is None:
        return ""
    with _reading(manager, step):
        items = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        return items["about"]["config"]


def save_variables(manager: ocp.CheckpointManager, variables: dict[str, Any], config: str) -> None:
    """Save variables that were not trained here, as those of step 0, and wait until it is done."""
    manager.save(
        0,
        args=ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            about=ocp.args.JsonSave({"config": config, "eer": None}),
        ),
    )
    manager.wait_until_finished()


def restore_variables(run: Path, which: str, sharding: jax.sharding.Sharding) -> Saved:
    """The variables of a checkpoint of a run: "last", "best" (lowest EER) or a step number.

    The tree is the one that was saved. Raises UserError when there is no such checkpoint, or it is
    damaged.
    """
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoints: give the folder of a run that has saved some")
    with open_manager(folder, read_only=True) as manager:
        steps = list(manager.all_steps())
        step = _choose(manager, which, steps)
        if step is None or step not in steps:
            raise UserError(f"{run} holds no checkpoint {which}: it has {steps or 'none yet'}")
        with _reading(manager, step):
            shapes = jax.tree.map(
                lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
                manager.item_metadata(step)["variables"].tree,
            )
            args = ocp.args.Composite(
                variables=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore()
            )
            items = manager.restore(step, args=args)
            about = items["about"]
            return Saved(step, items["variables"], about.get("speakers"), about["config"])


def _latest_of_all(manager: ocp.CheckpointManager) -> int | None:
    """Host 0's latest step. A network file system may show it to other hosts a little later."""
    mine = manager.latest_step()
    if not jax.distributed.is_initialized():
        return mine
    latest = int(processes.broadcast(np.int32(NO_STEP if mine is None else mine)))
    if latest != NO_STEP:
        processes.check_seen(Path(manager.directory) / str(latest))
    if mine is not None and mine > latest:
        raise UserError(
            f"host {jax.process_index()} sees {manager.directory / str(mine)}, which host 0 does "
            "not see: give an --out on a file system that all hosts share; if it is, start again "
            "when it shows them the same"
        )
    if mine != latest:
        manager.reload()
    return None if latest == NO_STEP else latest


@contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of orbax, tensorstore, or what they meet in a damaged file
        raise UserError(
            f"the checkpoint {manager.directory / str(step)} is damaged: remove it; training goes "
            "on from the one before it, if that was kept"
        ) from error


def _choose(manager: ocp.CheckpointManager, which: str, steps: list[int]) -> int | None:
    if which == "last":
        return manager.latest_step()
    if which != "best":
        return int(which) if which.isdecimal() else None
    eers = {}
    for step in steps:
        with _reading(manager, step):
            items = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        about = items["about"]
        if about["eer"] is not None:
            eers[step] = about["eer"]
    return min(eers, key=eers.__getitem__, default=None)
