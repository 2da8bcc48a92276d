"""A run folder: what each file in it is called, who may write it, and what a run was trained on."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax import config as configs
from chns_jax.common import locks
from chns_jax.common.errors import UserError
from chns_jax.common.files import remove_leftovers, replacing
from chns_jax.config import BUILTIN_VOICES, Config, Hosts
from chns_jax.corpus.split import make_split, voices_folder
from chns_jax.devices import processes
from chns_jax.sampling import clusters as tables


class AtWork(UserError):
    """Another training holds the run folder."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / configs.RUN_CONFIG

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.txt"

    @property
    def bad_batch(self) -> Path:
        return self.path / "bad_batch.txt"

    @property
    def picture(self) -> Path:
        return self.path / "training.png"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def calibration(self) -> Path:
        return self.path / "calibration.json"

    def cohort(self, digest: str) -> Path:
        """The impostors of a calibration's norm."""
        return self.path / f"cohort-{digest[:16]}.npz"

    def cohorts(self) -> Iterator[Path]:
        return self.path.glob("cohort-*.npz")

    def table(self, step: int) -> Path:
        """The clusters that were made before `step`."""
        return self.path / "tables" / f"step_{step:07d}.npz"

    def tables(self) -> list[tuple[int, Path]]:
        """Step and file of each table, in order."""
        found = []
        for path in self.path.glob("tables/step_*.npz"):
            numbered = re.fullmatch(r"step_(\d+)\.npz", path.name)
            if numbered:
                found.append((int(numbered[1]), path))
        return sorted(found)

    def is_begun(self) -> bool:
        """Whether something was learnt here; until then, another config may have the folder."""
        kept = *self.checkpoints.glob("[0-9]*"), *self.path.glob("tables/*.npz")
        return bool(kept)


def is_complete(folder: RunFolder, config: Config) -> bool:
    """Whether a folder holds this run, finished. Raises UserError for a run of another config."""
    if not folder.is_begun():
        return False
    _check_config(folder, config)
    return read_summary(folder) is not None


def read_summary(folder: RunFolder) -> dict[str, Any] | None:
    """What a run that is complete says of itself: "step" and, of one that was trained here,
    "seconds" among it. None where there is none, or it was cut short and is to be made again.
    Raises UserError for what is no regular file."""
    if folder.summary.exists() and not folder.summary.is_file():
        raise UserError(f"{folder.summary} is no regular file: remove it")
    try:
        found = json.loads(folder.summary.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("step"), int)
    seconds = found.get("seconds", 0) if whole else None
    return found if isinstance(seconds, int | float) and math.isfinite(seconds) else None


@contextmanager
def claim(folder: RunFolder, config: Config) -> Iterator[None]:
    """Make the run folder, and put the complete config into it; all processes must see it.

    Raises AtWork when another training is at work there. This one keeps others out until the
    block ends, or the process does.
    """
    with ExitStack() as held:
        if processes.is_first():
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                above = (folder.path, *folder.path.parents)
                nowhere = any(os.path.islink(at) and not os.path.exists(at) for at in above)
                raise UserError(
                    f"the run folder {folder.path} is "
                    f"{'a link that leads nowhere' if nowhere else 'a file'}: give another --out"
                ) from None
            if not folder.is_begun():
                _check_unused(folder, config)
            if os.path.lexists(folder.lock) and not os.path.isfile(folder.lock):
                raise UserError(f"{folder.lock} is no regular file: remove it")
            if not locks.hold(held.enter_context(open(folder.lock, "a"))):
                raise AtWork(
                    f"another training is at work in {folder.path}: wait until it ends, or give "
                    "another --out"
                )
            remove_leftovers(folder.path)
            if not folder.is_begun():
                with replacing(folder.config) as file:
                    file.write(configs.to_yaml(replace(config, hosts=Hosts())))  # what, not where
        processes.barrier("the run folder is made")
        if not processes.is_first():
            processes.check_seen(folder.config)
            _check_config(folder, config)  # that of the first must be that of all
        yield


def is_at_work(folder: RunFolder, config: Config) -> bool:
    """Whether another training of this config is at work in a folder, as far as its file system
    knows locks. Raises UserError where it is one of another config."""
    if not locks.is_held(folder.lock):
        return False
    if folder.config.exists():
        _check_config(folder, config)
    return True


def check_kept(folder: RunFolder) -> None:
    """Raises UserError when the run folder was removed after it was claimed."""
    if processes.is_first() and not folder.config.exists():
        raise UserError(
            f"{folder.path} was removed, or its {folder.config.name}: what was not saved before is "
            "lost, and the same command begins anew; put it back to go on"
        )


def training_speakers(run: Path, config: Config, step: int) -> np.ndarray | None:
    """Names (n,) of who a run was trained on until `step`, by its tables or else by its corpus.

    None where it has neither, or was not trained here.
    """
    made = RunFolder(run).tables()
    if made:
        return tables.read(made[-1][1])[0]
    if (
        step == 0
        or configs.is_published(run)
        or (config.data.root == BUILTIN_VOICES and not voices_folder(config.data).is_dir())
    ):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return make_split(config).training.speakers
    except (UserError, OSError):
        return None


def _check_config(folder: RunFolder, config: Config) -> None:
    """Raises UserError when the folder has another config, or has lost it."""
    if not folder.config.exists():
        raise UserError(
            f"{folder.path} holds a damaged run, without its {folder.config.name}: put that back, "
            "or give another --out"
        )
    changed = configs.differences(config, configs.load(["--config", str(folder.config)]))
    if changed:
        raise UserError(
            f"{folder.path} holds a run of another config, which differs in {', '.join(changed)}: "
            "give another --out, or the config of that run"
        )


def _check_unused(folder: RunFolder, config: Config) -> None:
    """Raises UserError when the folder is one that the run reads, or when files would be
    overwritten that are no run's which was stopped before it had learnt something: that has left
    its config, every byte as it is written."""
    configs.check_apart(folder.path, config)
    names = (
        folder.config, folder.metrics, folder.skipped, folder.bad_batch, folder.picture,
        folder.summary, folder.calibration,
    )  # fmt: skip
    there = [path.name for path in names if os.path.lexists(path)]
    if not there:
        return
    try:
        written = configs.to_yaml(configs.load([f"--config={folder.config}"])).encode()
        ours = folder.config.read_bytes() == written
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"{folder.path} holds a {there[0]} that no run wrote: give another --out")
