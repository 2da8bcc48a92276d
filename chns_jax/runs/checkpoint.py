"""Checkpoints: the whole truth about a run at a step. The only file that imports orbax."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from chns_jax.common.command_line import averaged
from chns_jax.common.console import say
from chns_jax.common.errors import UserError, shortened
from chns_jax.devices import processes
from chns_jax.runs.folder import RunFolder
from chns_jax.runs.state import Saved, TrainState, digest
from chns_jax.sampling.clusters import SpeakerClusters

NO_STEP = -1  # what hosts tell each other where there is no checkpoint

# orbax reports its own settings as warnings at every start, and each error, which it raises too,
# with hundreds of lines.
logging.getLogger("absl").setLevel(logging.ERROR)
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.msg)
_hook = sys.unraisablehook


def _not_of_closed_loops(ignored: Any) -> None:
    """After the first error of several reads or writes, tensorstore tells of the others a loop that
    orbax has closed; each would be a traceback."""
    if "Event loop is closed" not in str(ignored.exc_value):
        _hook(ignored)


sys.unraisablehook = _not_of_closed_loops


class Damaged(Exception):
    """A checkpoint that does not hold what was saved, as a sentence about it."""


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


@contextmanager
def open_manager(
    folder: Path, keep: int = 1, *, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `folder`: the `keep` latest, and the one of lowest EER, are kept.

    What is being saved is waited for at the end; if that fails after another error, it is that one
    which is raised.
    """
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
        "average": ocp.StandardCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
    }
    _check_files(folder)
    try:
        manager = ocp.CheckpointManager(
            folder.resolve(), options=options, item_handlers=handlers if read_only else None
        )
    except RecursionError as error:  # of JSON
        raise UserError(f"what {folder} says of its checkpoints is damaged: remove it") from error
    try:
        yield manager
    except BaseException:
        with suppress(Exception):
            manager.close()
        raise
    manager.close()


def _check_files(folder: Path) -> None:
    """Raises UserError for a pipe or a device in place of a file, which might never end."""
    for inside, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(inside, name)
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(f"{path} is no regular file: remove its checkpoint")


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
    trees = {"variables": state.variables, "optimizer": state.optimizer, "refresh": refresh}
    trees["average"] = state.average
    trees["table"] = table and dataclasses.asdict(table)
    manager.save(
        int(state.step),
        args=_to_save(trees, {**progress._asdict(), "config": config, "eer": eer}),
        metrics=None if eer is None else {"eer": eer},
    )


def restore(manager: ocp.CheckpointManager, shapes: Callable[[], TrainState]) -> Restored | None:
    """The latest checkpoint, of the shapes and on the devices of `shapes()`, `ShapeDtypeStruct` in
    place of arrays; None when there is none.

    One that is damaged is named and set aside for the one before it. Several hosts take the one
    that host 0 sees. Raises UserError when none is whole, one cannot be read, or hosts do not see
    the same.
    """
    while (step := _latest_of_all(manager)) is not None:
        restored = damage = None
        try:
            restored = _restore(manager, step, shapes())
        except Damaged as error:
            damage = error
        path = manager.directory / str(step)
        processes.check_same("00" if damage is None else "01", f"bytes of {path}", "--out")
        if damage is None:
            return restored
        if len(manager.all_steps()) == 1:
            raise UserError(f"{damage}: remove it; none before it was kept") from damage
        aside = path.with_name(f"damaged.{step}")
        say(f"warning: {damage}: training goes on from the one before it; {aside} can be removed")
        if processes.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        processes.barrier(f"{aside} is set aside")
        manager.reload()
    return None


def _restore(manager: ocp.CheckpointManager, step: int, shapes: TrainState) -> Restored:
    args = {
        "variables": ocp.args.StandardRestore(shapes.variables),
        "optimizer": ocp.args.StandardRestore(shapes.optimizer),
        "about": ocp.args.JsonRestore(),
    }
    if shapes.average is not None:
        args["average"] = ocp.args.StandardRestore(shapes.average)
    with _reading(manager, step, args):
        saved = manager.item_metadata(step)
        for name in ("table", "refresh"):
            if name in saved:
                args[name] = ocp.args.StandardRestore()
        items = manager.restore(step, args=ocp.args.Composite(**args))
        _check(manager, step, items)
    table = None
    if "table" in args:
        table = SpeakerClusters(
            *(np.asarray(items["table"][key]) for key in ("cluster", "centroids"))
        )
    refresh = items["refresh"] if "refresh" in args else None
    count = jax.device_put(np.int32(step), shapes.step.sharding)
    average = items["average"] if "average" in args else None
    state = TrainState(count, items["variables"], items["optimizer"], average)
    progress = Progress(*(items["about"][key] for key in Progress._fields))
    return Restored(state, table, progress, refresh)


def latest_config(manager: ocp.CheckpointManager) -> str:
    """The config, in YAML, of the latest checkpoint; empty when there is none, or it is damaged."""
    step = manager.latest_step()
    if step is None:
        return ""
    args = {"about": ocp.args.JsonRestore()}
    with suppress(Damaged), _reading(manager, step, args):
        items = manager.restore(step, args=ocp.args.Composite(**args))
        _check(manager, step, items)
        return items["about"]["config"]
    return ""


def save_variables(manager: ocp.CheckpointManager, variables: dict[str, Any], config: str) -> None:
    """Save variables that were not trained here, as those of step 0, and wait until it is done."""
    manager.save(0, args=_to_save({"variables": variables}, {"config": config, "eer": None}))
    manager.wait_until_finished()


def restore_variables(run: Path, which: str, sharding: jax.sharding.Sharding) -> Saved:
    """The variables of a checkpoint of a run: "last", "best" (lowest EER) or a step number, or the
    mean of the last N that it holds, "average:N"; their moving averages, where it has some.

    The tree is the one that was saved. Where the last one is damaged, that is said, and it is that
    of the one before. Raises UserError when there is no such checkpoint, it is damaged, or it
    cannot be read.
    """
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoints: give the folder of a run that has saved some")
    with open_manager(folder, read_only=True) as manager:
        steps = sorted(manager.all_steps())
        try:
            count = averaged(which)
            if count is not None:
                if count > len(steps):
                    raise UserError(
                        f"{run} holds {len(steps)} checkpoints, fewer than {shortened(which)} "
                        f"names: train with training.keep {count}"
                    )
                return _mean(_restore_variables(manager, step, sharding) for step in steps[-count:])
            step = _choose(manager, which, steps)
            while True:
                if step is None or step not in steps:
                    raise UserError(
                        f"{run} holds no checkpoint {shortened(which)}: it has "
                        f"{steps or 'none yet'}"
                    )
                try:
                    return _restore_variables(manager, step, sharding)
                except Damaged as error:
                    if which != "last" or step == steps[0]:
                        raise
                    step = steps[steps.index(step) - 1]
                    say(f"warning: {error}: that of step {step} is used")
        except Damaged as error:
            raise UserError(f"{error}: remove it, or give another --checkpoint") from error


def _mean(checkpoints: Iterable[Saved]) -> Saved:
    """The last of some checkpoints, with the mean of the variables of all, summed in float64.

    Running means and variances are averaged as parameters are: each is of about the parameters
    that it was saved with, and these lie near each other where the learning rate is low.
    """
    total, count = None, 0
    for saved in checkpoints:
        one = jax.tree.map(lambda array: np.asarray(array, np.float64), saved.variables)
        total = one if total is None else jax.tree.map(np.add, total, one)
        last, count = saved, count + 1

    def mean(sum, like):
        return jax.device_put((sum / count).astype(like.dtype), like.sharding)

    return last._replace(variables=jax.tree.map(mean, total, last.variables))


def _restore_variables(
    manager: ocp.CheckpointManager, step: int, sharding: jax.sharding.Sharding
) -> Saved:
    args: dict[str, Any] = {"about": ocp.args.JsonRestore()}
    averages = (Path(manager.directory) / str(step) / "average").is_dir()
    name = "average" if averages else "variables"
    args[name] = None
    with _reading(manager, step, args):
        saved = manager.item_metadata(step)
        shapes = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
            saved[name].tree,
        )
        args[name] = ocp.args.StandardRestore(shapes)
        items = manager.restore(step, args=ocp.args.Composite(**args))
        _check(manager, step, items)
        if not averages and "average" in items["about"].get("sha256", {}):
            raise Damaged(f"the checkpoint {manager.directory / str(step)} is damaged (average)")
    about = items["about"]
    return Saved(step, items[name], about.get("speakers"), about["config"])


def _to_save(trees: dict[str, Any], about: dict[str, Any]) -> ocp.args.Composite:
    """Items of a checkpoint, and their digests: of what is restored, and not of files, so that
    whatever happens to it between here and there is seen.

    The items are copies on the host. Of arrays on several devices orbax would take a slice from
    each, by a program of its own for each shape: 3.4 s for eight devices and configs/debug.yaml.
    """
    trees = jax.tree.map(np.array, {name: tree for name, tree in trees.items() if tree})
    digests = {name: digest(tree) for name, tree in trees.items()}
    about = {**about, "sha256": {**digests, "about": _digest_of_json(about)}}
    return ocp.args.Composite(
        about=ocp.args.JsonSave(about),
        **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
    )


def _digest_of_json(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _check(manager: ocp.CheckpointManager, step: int, items: Any) -> None:
    """Raises Damaged when restored items are not what their digests say; those of checkpoints of
    earlier versions, which have no digests, are believed."""
    about = dict(items["about"])
    digests = about.pop("sha256", {})
    for name, expected in digests.items():
        if name not in items:
            continue
        found = _digest_of_json(about) if name == "about" else digest(items[name])
        if found != expected:
            raise Damaged(f"the checkpoint {manager.directory / str(step)} is damaged ({name})")


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
def _reading(manager: ocp.CheckpointManager, step: int, args: dict[str, Any]) -> Iterator[None]:
    """Raises Damaged when what is restored of `args` is damaged, and else UserError for errors."""
    path = Path(manager.directory / str(step))
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # of orbax, tensorstore, or what they meet in a damaged file
        _let_go(error)
        fault = _fault(error, path)
        if fault is None:
            _check_alone(manager, step, args)
            fault = "it does not fit its config, or was saved by another version of chns_jax"
        raise UserError(f"the checkpoint {path} cannot be restored: {fault}") from error


def _fault(error: Exception, path: Path) -> str | None:
    """What else than damage kept a checkpoint in the folder `path` from being restored, if so."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "there is too little memory"
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    if code is not None and int(code[1]) != errno.ENOENT:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return error.strerror or str(error)
    try:  # orbax takes what it may not look at for missing
        for folder, _, names in os.walk(path, onerror=_raise):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    while file.read(1 << 24):
                        pass
    except OSError as other:
        return f"{other.filename}: {other.strerror}"
    return None


def _check_alone(manager: ocp.CheckpointManager, step: int, args: dict[str, Any]) -> None:
    """Raises Damaged when items of a checkpoint, as they were saved, cannot be restored or are not
    what their digests say."""
    path = manager.directory / str(step)
    as_saved = {name: ocp.args.StandardRestore() for name in args if name != "about"}
    try:
        with warnings.catch_warnings(action="ignore"):  # of shardings that are not given
            items = manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore(), **as_saved)
            )
        _check(manager, step, items)
    except Damaged:
        raise
    except Exception as error:
        _let_go(error)
        if _fault(error, Path(path)) is None:
            raise Damaged(f"the checkpoint {path} is damaged") from error


def _let_go(error: BaseException) -> None:
    """Frees what the calls that ended in `error` hold: coroutines of orbax among it, of which each
    would warn that it was never awaited, wherever it is freed."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        traceback.clear_frames(error.__traceback__)


def _raise(error: OSError) -> None:
    raise error


def _choose(manager: ocp.CheckpointManager, which: str, steps: list[int]) -> int | None:
    if which == "last":
        return max(steps, default=None)
    if which != "best":
        # As a step is written: not 05, nor in the digits of another script.
        return next((step for step in steps if str(step) == which), None)
    eers = {}
    for step in steps:
        args = {"about": ocp.args.JsonRestore()}
        with _reading(manager, step, args):
            items = manager.restore(step, args=ocp.args.Composite(**args))
            _check(manager, step, items)
        if items["about"]["eer"] is not None:
            eers[step] = items["about"]["eer"]
    return min(eers, key=eers.__getitem__, default=None)
