"""A study: runs of one config that differ in a few keys and in the seed, to be compared."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from chns_jax import config as configs
from chns_jax.common import keys
from chns_jax.common.errors import UserError, shortened
from chns_jax.common.values import between, read_value
from chns_jax.config import LARGEST_SEED, Config

Seed = Annotated[int, between(0, LARGEST_SEED)]
FIELDS = ("base", "baseline", "seeds", "arms", "lists")
# Which an arm leaves alone: all are scored on speakers whom none trains on.
OF_STUDY = ("out", "training.seed", "data.trials", "data.trials_root", "data.held_out")
LONGEST_NAME = 64  # letters of an arm's or a list's


class TrialList(NamedTuple):
    """Where runs are scored."""

    trials: str
    root: str


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    base: dict[str, Any]  # values of dotted keys that all arms share
    baseline: str  # the arm that the changes of the others refer to
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, Any]]  # the keys of each in which it differs
    lists: dict[str, TrialList]  # by name; those of data.trials when there are none
    path: str


class Run(NamedTuple):
    """One training of a study."""

    arm: str
    seed: int
    fold: int  # 0 where there is one
    config: Config

    @property
    def name(self) -> str:
        return Path(self.config.out).name


def read(path: str) -> Study:
    """A study file. Raises UserError for one that is none.

    base: a config, relative to the file; baseline: an arm; seeds: numbers; arms: each a name and
    the keys that it changes; lists: each a name with trials and root.
    """
    written = keys.read_yaml(
        path, "a YAML file of a study, as in configs/lab/", "keys of a study, such as seeds: [0]"
    )
    where = f" in {path}"
    unknown = next((name for name in written if name not in FIELDS), None)
    if unknown is not None:
        raise UserError(f"{shortened(unknown)}{where} is unknown: a study has {', '.join(FIELDS)}")
    known, base = keys.keys_of(Config), {}
    if "base" in written:
        of_base = read_value("base", str, written["base"], where=where)
        base = keys.read_file(known, str(Path(path).expanduser().parent / of_base))
    arms = {
        _name(arm, where): keys.dotted(known, _section(f"arms.{arm}", changes, where), where)
        for arm, changes in _section("arms", written.get("arms"), where).items()
    }
    baseline = read_value("baseline", str, written.get("baseline"), where=where)
    if baseline not in arms:
        names = ", ".join(arms)
        raise UserError(f"baseline {shortened(baseline)}{where} is none of the arms: {names}")
    taken = next(((a, key) for a, of in arms.items() for key in OF_STUDY if key in of), None)
    if taken is not None:
        raise UserError(f"the arm {taken[0]}{where} sets {taken[1]}, which the study sets: drop it")
    seeds = read_value("seeds", tuple[Seed, ...], written.get("seeds"), where=where)
    check_seeds(seeds, f"seeds{where}")
    lists = {}
    for name, of_list in _section("lists", written.get("lists") or {}, where).items():
        of_list = _section(f"lists.{name}", of_list, where)
        if set(of_list) != set(TrialList._fields):
            raise UserError(f"lists.{name}{where} needs trials and root, and nothing else")
        lists[_name(name, where)] = TrialList(
            **{
                key: read_value(f"lists.{name}.{key}", str, value, where=where)
                for key, value in of_list.items()
            }
        )
    return Study(base, baseline, seeds, arms, lists, path)


def part_of(study: Study, arms: Sequence[str], seeds: Sequence[int], baseline: str | None) -> Study:
    """The study with these of its arms, in its order, and with these seeds and this baseline in
    place of its own; what is empty or None is as in the study.

    Raises UserError for an arm or a baseline that is none of its arms, a baseline that is left out,
    or a seed given twice.
    """
    names, where = ", ".join(study.arms), f" in {study.path}"
    for given, one in [*(("--arms", arm) for arm in arms), ("--baseline", baseline)]:
        if one is not None and one not in study.arms:
            raise UserError(f"{given} {shortened(one)} is none of the arms{where}: {names}")
    baseline = baseline or study.baseline
    if arms and baseline not in arms:
        raise UserError(
            f"--arms leaves out {baseline}, which changes are measured from: name it too, or "
            "another as --baseline"
        )
    if seeds:
        check_seeds(seeds, "--seeds")
    chosen = {arm: of for arm, of in study.arms.items() if not arms or arm in arms}
    return dataclasses.replace(
        study, arms=chosen, seeds=tuple(seeds) or study.seeds, baseline=baseline
    )


def check_seeds(seeds: Sequence[int], name: str) -> None:
    """Raises UserError, which calls them `name`, where there is none or one comes twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{name} must be one or more different numbers")


def runs_of(study: Study, folds: Sequence[Config]) -> list[Run]:
    """Every training, seed by seed, so that what is done early can be compared early.

    `folds` is what all share: a config, or one for each fold of the speakers. Each run lies in a
    folder of its own under its `out`. Raises UserError for an arm that makes no config, two that
    are alike, or a config with a seed or with several hosts.
    """
    seed = folds[0].training.seed
    if seed != study.base.get("training.seed", Config().training.seed):
        raise UserError(
            f"training.seed {seed} does nothing here, as the study sets the seeds: give --seeds "
            f"{seed} in its place"
        )
    runs = []
    for seed, (fold, config), (arm, changes) in itertools.product(
        study.seeds, enumerate(folds), study.arms.items()
    ):
        made = configs.replaced(config, changes, f" of the arm {arm} in {study.path}")
        if made.hosts.several:
            raise UserError(
                "hosts does nothing here, as each run of a study is trained on one: leave it "
                "out, and give the same command on every host, which then share the runs"
            )
        training = dataclasses.replace(made.training, seed=seed)
        name = f"{arm}-{seed}" if len(folds) == 1 else f"{arm}-{seed}-fold{fold + 1}"
        out = str(Path(config.out, "runs", name))
        runs.append(Run(arm, seed, fold, dataclasses.replace(made, out=out, training=training)))
    first = runs[: len(study.arms)]
    for i, run in enumerate(first):
        for other in first[:i]:
            if not configs.differences(run.config, other.config):
                raise UserError(
                    f"the arms {other.arm} and {run.arm} in {study.path} are one: drop one"
                )
    return runs


def _section(name: str, value: Any, where: str) -> dict[Any, Any]:
    if value is None and name.startswith("arms."):  # an arm that changes nothing
        return {}
    if not isinstance(value, dict) or not (value or name != "arms"):
        raise UserError(f"{name}{where} must have names with something under them")
    return value


def _name(name: str, where: str) -> str:
    """Which names folders and a column of a table."""
    if not re.fullmatch(rf"\w[\w.-]{{0,{LONGEST_NAME - 1}}}", name):
        shown = f"{name[:LONGEST_NAME]}..." if len(name) > LONGEST_NAME else name or "''"
        raise UserError(
            f"the name {shown}{where} must be letters, digits, _, . and -, {LONGEST_NAME} at most"
        )
    return name
