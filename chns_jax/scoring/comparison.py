"""The table of a paper: error rates of systems on trial lists, with 95 % intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from chns_jax.common.randomness import Purpose, generator
from chns_jax.scoring import metrics
from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS, WHOLE, interval, replicates

METRICS = ("eer", *(f"min_dcf_{p:g}" for p in metrics.P_TARGETS))


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one system on one trial list; error rates and changes are fractions."""

    trials: str
    system: str
    metric: str  # one of METRICS
    value: float  # mean over the runs of the system
    low: float | None  # 95 % interval over speakers; None of fewer than FEWEST_SPEAKERS
    high: float | None
    runs: int
    lowest: float  # of the runs
    highest: float
    change: float | None  # relative to the baseline; None without one
    change_low: float | None  # 95 % interval, both systems on the same resampled speakers
    change_high: float | None
    better: int | None  # paired runs with a lower value than the baseline's; None if not paired
    targets: int
    nontargets: int
    speakers: int


def compare(
    trials: str,
    labels: np.ndarray,
    enrolment: np.ndarray,
    test: np.ndarray,
    scores: Mapping[str, Sequence[np.ndarray]],
    *,
    baseline: str | None,
    seed: int,
    count: int,
    paired: bool = False,
    parts: Sequence[slice | np.ndarray] = WHOLE,
) -> list[ComparedMetric]:
    """The rows of one trial list: each system by each metric, in order.

    `enrolment` and `test` (m,) are the speakers of the trials, `scores` the scores (m,) of each run
    of each system, `baseline` one of the systems; `count` replicates are drawn. `paired`: run i of
    every system is of one seed, and replicates draw runs too, the same of all systems, so that the
    intervals cover speakers and seeds. `parts` of the list have thresholds of their own: a metric
    is the mean over them. Raises ValueError as `metrics` does, and when `paired` systems have
    different numbers of runs.
    """
    labels = np.asarray(labels).astype(bool)
    rankings = [
        [metrics.corners(metrics.rank(labels[part], run[part])) for part in parts]
        for runs in scores.values()
        for run in runs
    ]
    counts = [len(runs) for runs in scores.values()]
    if paired and len(set(counts)) > 1:
        raise ValueError(f"paired systems have as many runs each, not {counts}")
    ends = np.cumsum(counts)[:-1]

    def of_runs(weights: np.ndarray | None) -> np.ndarray:
        """(runs of all systems, metrics)"""
        of_parts = [None if weights is None else weights[part] for part in parts]
        return np.array(
            [np.mean([*map(_figures, ranking, of_parts)], axis=0) for ranking in rankings]
        )

    by_system = dict(zip(scores, np.split(of_runs(None), ends), strict=True))
    speakers = len(np.union1d(enrolment, test))
    about = int(np.count_nonzero(labels)), int(np.count_nonzero(~labels)), speakers
    drawn_by_system = None
    if speakers >= FEWEST_SPEAKERS:
        drawn = replicates(of_runs, labels, enrolment, test, seed=seed, count=count, parts=parts)
        of_systems = np.split(drawn, ends, axis=1)
        if paired:
            picked = _picked_runs(counts[0], seed=seed, count=count)[:, :, None]
            of_systems = [np.take_along_axis(runs, picked, axis=1) for runs in of_systems]
        means = [runs.mean(axis=1) for runs in of_systems]  # each (count, metrics)
        drawn_by_system = dict(zip(scores, means, strict=True))
    rows = []
    for system, runs in by_system.items():
        value, none = runs.mean(axis=0), [None] * len(METRICS)
        low, high, change, change_low, change_high = [none] * 5
        if drawn_by_system is not None:
            low, high = (end.tolist() for end in interval(drawn_by_system[system]))
        if baseline is not None:
            change = _relative(value, by_system[baseline].mean(axis=0)).tolist()
        if baseline is not None and drawn_by_system is not None:
            changes = _relative(drawn_by_system[system], drawn_by_system[baseline])
            change_low, change_high = (end.tolist() for end in interval(changes))
        better = none
        if baseline is not None and paired:
            better = np.count_nonzero(runs < by_system[baseline], axis=0).tolist()
        rows += [
            ComparedMetric(trials, system, metric, float(value[i]), low[i], high[i], len(runs),
                float(runs[:, i].min()), float(runs[:, i].max()),
                change[i], change_low[i], change_high[i], better[i], *about)
            for i, metric in enumerate(METRICS)
        ]  # fmt: skip
    return rows


def to_csv(rows: Sequence[ComparedMetric]) -> str:
    """A line of names, then one line for each row; what there is none of is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(ComparedMetric)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def to_lines(rows: Sequence[ComparedMetric]) -> tuple[list[str], list[list[str]]]:
    """A table as text: its head, and a line for each system on each trial list."""
    by_line: dict[tuple[str, str], list[ComparedMetric]] = {}
    for row in rows:
        by_line.setdefault((row.trials, row.system), []).append(row)
    any_change = any(row.change is not None for row in rows)
    any_spread = any(row.runs > 1 for row in rows)
    any_better = any(row.better is not None for row in rows)
    head = ["trials", "system"] + ["runs"] * any_spread
    for metric in METRICS:
        name = "EER (%)" if metric == "eer" else f"minDCF {metric.removeprefix('min_dcf_')}"
        head += [name] + ["over runs"] * any_spread + ["change (%)"] * any_change
        head += ["better"] * any_better
    lines = []
    for (trials, system), of_line in by_line.items():
        cells = [trials, system] + [str(of_line[0].runs)] * any_spread
        for row in of_line:
            scale, digits = (100, 2) if row.metric == "eer" else (1, 3)
            number = f".{digits}f"
            cells.append(_with_interval(row.value, row.low, row.high, scale, number))
            if any_spread:
                spread = f"{scale * row.lowest:{number}} to {scale * row.highest:{number}}"
                cells.append(spread if row.runs > 1 else "")
            if any_change:
                cells.append(
                    _with_interval(row.change, row.change_low, row.change_high, 100, "+.1f")
                )
            if any_better:
                cells.append("" if row.better is None else f"{row.better} of {row.runs}")
        lines.append(cells)
    return head, lines


def to_markdown(rows: Sequence[ComparedMetric], *, paired: bool = False, scores: str = "") -> str:
    """The table of `to_lines`, and what its columns mean; `paired` as of `compare`, `scores` a
    sentence about what was scored."""
    head, lines = to_lines(rows)
    whole = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    whole += [[*map(_escaped, cells)] for cells in lines]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in whole)
    lists = {row.trials: row for row in rows}.values()
    notes = [
        f"{_escaped(row.trials)}: {row.targets:,} target and {row.nontargets:,} impostor trials "
        f"of {row.speakers:,} speakers."
        for row in lists
    ] + [scores] * bool(scores)
    few = [_escaped(row.trials) for row in lists if row.low is None]
    if few:
        notes.append(
            f"Without intervals: {', '.join(few)}, of fewer than {FEWEST_SPEAKERS} speakers."
        )
    if len(few) < len(lists):
        drawn = "speakers of the trials and the seeds" if paired else "speakers of the trials"
        stay = "" if paired else "; the runs stay"
        notes.append(f"In brackets: 95 % intervals from resampling the {drawn}{stay}.")
        if any(row.change is not None for row in rows):
            both = "speakers and seeds" if paired else "speakers"
            notes.append(f"The interval of a change resamples the same {both} for both systems.")
    if any(row.better is not None for row in rows):
        notes.append("Better: runs below the baseline's of the same seed.")
    return f"{table}\n{' '.join(notes)}\n"


def _picked_runs(runs: int, *, seed: int, count: int) -> np.ndarray:
    """(count, runs): the runs that count in each replicate, drawn with replacement."""
    draws = (generator(seed, Purpose.BOOTSTRAP_RUNS, replicate) for replicate in range(count))
    return np.stack([rng.integers(runs, size=runs) for rng in draws])


def _figures(ranking: metrics.Ranking, weights: np.ndarray | None) -> list[float]:
    """The METRICS of weighted trials."""
    rates = metrics.rates(ranking, weights)
    return [metrics.eer_of(rates), *(metrics.min_dcf_of(rates, p) for p in metrics.P_TARGETS)]


def _relative(value: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """0 where both are alike, infinite where only the baseline makes no errors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(value == baseline, 0.0, (value - baseline) / baseline)


def _with_interval(
    value: float | None, low: float | None, high: float | None, scale: float, number: str
) -> str:
    """`value` and its interval, where there are any, times `scale` and in the format `number`."""
    if value is None:
        return ""
    text = f"{scale * value:{number}}"
    if low is None or high is None:
        return text
    return f"{text} [{scale * low:{number}}, {scale * high:{number}}]"


def _escaped(name: str) -> str:
    return " ".join(name.replace("|", "\\|").splitlines())
