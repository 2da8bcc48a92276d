"""The page of a study: its table, and what curves say about the reasons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from chns_jax import config as configs
from chns_jax.config import Config
from chns_jax.reports import pages
from chns_jax.reports.pages import Html
from chns_jax.scoring.comparison import ComparedMetric
from chns_jax.studies.definition import Run, Study
from chns_jax.studies.trained import folder_of
from chns_jax.training.logs import records

SMOOTHED = 20  # parts of a run, of each of which a curve shows the mean
# The keys in which the arms of a curve may differ.
HARD_RATIO = "sampler.kind", "sampler.hard_ratio"
BATCH_SIZE = ("sampler.speakers",)


def write_page(
    path: Path, study: Study, runs: Sequence[Run], rows: Sequence[ComparedMetric], scores: str
) -> None:
    """Write the HTML page of trained runs and the rows of `compare` about them, `scores` a sentence
    about what was scored; it needs plotly."""
    validated = {one.name: _logged(one, "eer", 100) for one in runs}
    cosines = {one.name: _smoothed(_logged(one, "negative_cosine_mean", 1)) for one in runs}
    sections = [
        pages.section(
            "Error rates",
            "Fractions, means over seeds. Low and high: ends of 95 % intervals from resampling the "
            "speakers of the trials and the seeds, the same of an arm and of the baseline. Better: "
            f"seeds in which an arm is below the baseline. {scores}",
            _table(rows),
        )
    ]
    if any(len(points) > 1 for points in validated.values()):
        sections.append(
            pages.section(
                "EER over steps",
                "Of the validation while training, by cosines: each arm's mean over seeds, and the "
                "seeds.",
                _curves(study, runs, validated, "EER (%)", "eer"),
            )
        )
    sections.append(
        pages.section(
            "Cosines of the negatives",
            "How alike the speakers of a batch are to the encoder of that step: the mean cosine of "
            f"an anchor and its negatives, in {SMOOTHED} parts of the run.",
            _curves(study, runs, cosines, "mean cosine", "cosines"),
        )
    )
    ratios = _comparable(runs, HARD_RATIO)
    if len(ratios) > 2:
        sections.append(
            pages.section(
                "EER against the hard ratio",
                "Of arms that differ in nothing else; random batches have none from clusters.",
                _against(ratios, rows, _hard_ratio, "hard ratio", "ratios"),
            )
        )
    sizes = _comparable(runs, BATCH_SIZE)
    if len(sizes) > 1:
        sections.append(
            pages.section(
                "EER against the size of the batch",
                "Of arms that differ in nothing else: what more negatives a step can give.",
                _against(sizes, rows, _speakers, "speakers in a batch", "sizes"),
            )
        )
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(one.seed for one in runs))
    sentence = f"{len(study.arms)} arms, seeds {seeds}; changes are from {study.baseline}."
    pages.write(path, Path(study.path).name, sentence, sections)


def _table(rows: Sequence[ComparedMetric]) -> Html:
    columns = {"trials": "", "arm": "", "metric": "", "value": ".4f", "low": ".4f", "high": ".4f"}
    columns |= {"lowest seed": ".4f", "highest seed": ".4f", "change (%)": "+.1f"}
    columns |= {"change low": "+.1f", "change high": "+.1f", "better": "d", "seeds": "d"}
    return pages.table(
        columns,
        [
            (row.trials, row.system, row.metric, row.value, row.low, row.high, row.lowest,
             row.highest, *map(_percent, (row.change, row.change_low, row.change_high)),
             row.better, row.runs)
            for row in rows
        ],
    )  # fmt: skip


def _curves(
    study: Study, runs: Sequence[Run], points: Mapping[str, np.ndarray], unit: str, name: str
) -> Html:
    """A line an arm over the steps, `points` (n, 2) of each run; thin ones are its seeds."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    drawn = go.Figure()
    for arm, colour in zip(study.arms, itertools.cycle(qualitative.D3), strict=False):
        of_arm = [points[one.name] for one in runs if one.arm == arm]
        if len(of_arm) > 1:
            for of_seed in of_arm:
                drawn.add_trace(
                    go.Scatter(
                        x=of_seed[:, 0], y=of_seed[:, 1], mode="lines", legendgroup=arm,
                        line={"color": colour, "width": 1}, opacity=0.35, showlegend=False,
                        hoverinfo="skip",
                    )
                )  # fmt: skip
        steps = sorted(set.intersection(*(set(of_seed[:, 0]) for of_seed in of_arm)))
        means = [np.mean([of[of[:, 0] == step, 1][0] for of in of_arm]) for step in steps]
        drawn.add_trace(
            go.Scatter(
                x=steps, y=means, mode="lines+markers", name=arm, legendgroup=arm,
                line={"color": colour, "width": 2.5},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_xaxes(title="step")
    drawn.update_yaxes(title=unit)
    return pages.figure(drawn, name)


def _against(
    arms: Mapping[str, Config],
    rows: Sequence[ComparedMetric],
    value_of: Callable[[Config], float],
    axis: str,
    name: str,
) -> Html:
    """A line a trial list: the EER of the arms over a value of their configs, with intervals."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    of_eer = [row for row in rows if row.metric == "eer" and row.system in arms]
    for trials in dict.fromkeys(row.trials for row in of_eer):
        line = [row for row in of_eer if row.trials == trials]
        line.sort(key=lambda row: value_of(arms[row.system]))
        above = [100 * ((row.high or row.value) - row.value) for row in line]
        below = [100 * (row.value - (row.low or row.value)) for row in line]
        drawn.add_trace(
            go.Scatter(
                x=[value_of(arms[row.system]) for row in line],
                y=[100 * row.value for row in line],
                error_y={"type": "data", "array": above, "arrayminus": below},
                mode="lines+markers", name=trials, text=[row.system for row in line],
                hovertemplate="%{text}: %{y:.2f} %<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_layout(showlegend=True)
    drawn.update_xaxes(title=axis)
    drawn.update_yaxes(title="EER (%)")
    return pages.figure(drawn, name)


def _comparable(runs: Sequence[Run], free: Sequence[str]) -> dict[str, Config]:
    """The largest set of arms whose configs differ in the `free` keys alone, by name."""
    arms = {one.arm: one.config for one in runs if one.seed == runs[0].seed}
    sets = [
        {
            arm: other
            for arm, other in arms.items()
            if set(configs.differences(config, other)) <= set(free)
        }
        for config in arms.values()
    ]
    return max(sets, key=len)


def _hard_ratio(config: Config) -> float:
    return config.sampler.hard_ratio if config.sampler.kind == "chns" else 0.0


def _speakers(config: Config) -> float:
    return config.sampler.speakers


def _logged(one: Run, scalar: str, scale: float) -> np.ndarray:
    """(n, 2): steps and values of what a run wrote down while it trained."""
    lines = [line for line in records(folder_of(one).metrics) if scalar in line]
    return np.array([(line["step"], scale * line[scalar]) for line in lines]).reshape(-1, 2)


def _smoothed(points: np.ndarray) -> np.ndarray:
    parts = np.array_split(points, min(SMOOTHED, max(1, len(points))))
    return np.array([(part[-1, 0], part[:, 1].mean()) for part in parts if len(part)]).reshape(
        -1, 2
    )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
