"""The page of a study: its table, and what curves say about the reasons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax import config as configs
from chns_jax.config import Config
from chns_jax.reports import pages
from chns_jax.reports.pages import Html
from chns_jax.scoring.comparison import ComparedMetric, to_lines
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
    sections = []
    if len(study.arms) > 1:
        sections.append(
            pages.section(
                f"Change of the EER from {study.baseline}",
                "Means over seeds, with 95 % intervals from resampling the speakers of the trials "
                "and the seeds, the same of an arm and of the baseline. Where one holds 0, nothing "
                "was shown.",
                _changes(rows, study.baseline),
            )
        )
    sections += [_error_rates(name, rows) for name in dict.fromkeys(row.trials for row in rows)]
    if any(len(points) > 1 for points in validated.values()):
        sections.append(
            pages.section(
                "EER over steps",
                "Of the validation while training, by cosines: each arm's mean over its runs, and "
                "the runs.",
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
    ratios = arms_of_ratios(runs)
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
    sentence = f"{len(study.arms)} arms, seeds {seeds}; changes are from {study.baseline}. {scores}"
    pages.write(path, Path(study.path).name, sentence, sections)


def arms_of_ratios(runs: Sequence[Run]) -> dict[str, Config]:
    """The arms that differ in the hard ratio alone, by name. Random batches have 0, unless an arm
    of CHNS has, whose batches are random too but normalised as those of the others."""
    ratios = _comparable(runs, HARD_RATIO)
    of_chns = {arm: config for arm, config in ratios.items() if _is_chns(config)}
    return of_chns if 0 in map(_hard_ratio, of_chns.values()) else ratios


def _changes(rows: Sequence[ComparedMetric], baseline: str) -> Html:
    """A point an arm and list, with its interval, beside the line of no change."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    of_eer = [row for row in rows if row.metric == "eer" and row.system != baseline]
    for trials in dict.fromkeys(row.trials for row in of_eer):
        of_list = [row for row in of_eer if row.trials == trials]
        change = [row.change or 0.0 for row in of_list]
        drawn.add_trace(
            go.Scatter(
                x=[100 * value for value in change], y=[row.system for row in of_list],
                error_x=_bars(
                    change, [row.change_low for row in of_list],
                    [row.change_high for row in of_list],
                ),
                mode="markers", name=trials, orientation="h",
                text=[f"{row.better} of {row.runs} seeds below" for row in of_list],
                hovertemplate=f"%{{y}}, {trials}: %{{x:+.1f}} %, %{{text}}<extra></extra>",
            )
        )  # fmt: skip
    drawn.add_vline(0, line={"color": "#888", "width": 1})
    drawn.update_layout(scattermode="group", showlegend=True)
    drawn.update_xaxes(title="change of the EER (%)")
    drawn.update_yaxes(autorange="reversed", type="category")
    points = len(of_eer) + len({row.system for row in of_eer})
    return pages.figure(drawn, "changes", height=130 + 15 * points)


def _error_rates(trials: str, rows: Sequence[ComparedMetric]) -> Html:
    """The table of one list, a line an arm."""
    of_list = [row for row in rows if row.trials == trials]
    head, lines = to_lines(of_list)
    columns = [("arm", ""), *((name, "s") for name in head[2:])]
    return pages.section(
        f"Error rates: {trials}",
        f"{of_list[0].targets:,} target and {of_list[0].nontargets:,} impostor trials of "
        f"{of_list[0].speakers:,} speakers. Better: seeds in which an arm is below the baseline.",
        pages.table(columns, [line[1:] for line in lines]),
    )


def _curves(
    study: Study, runs: Sequence[Run], points: Mapping[str, np.ndarray], unit: str, name: str
) -> Html:
    """A line an arm over the steps, `points` (n, 2) of each run; thin ones are its runs."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    drawn = go.Figure()
    # Of more arms than colours, the lines differ too.
    looks = itertools.product(("solid", "dash", "dot", "dashdot"), qualitative.D3)
    for arm, (dash, colour) in zip(study.arms, itertools.cycle(looks), strict=False):
        of_arm = [points[one.name] for one in runs if one.arm == arm]
        if len(of_arm) > 1:
            for of_seed in of_arm:
                drawn.add_trace(
                    go.Scatter(
                        x=of_seed[:, 0], y=of_seed[:, 1], mode="lines", legendgroup=arm,
                        line={"color": colour, "width": 1, "dash": dash}, opacity=0.35,
                        showlegend=False, hoverinfo="skip",
                    )
                )  # fmt: skip
        steps = sorted(set.intersection(*(set(of_seed[:, 0]) for of_seed in of_arm)))
        means = [np.mean([of[of[:, 0] == step, 1][0] for of in of_arm]) for step in steps]
        drawn.add_trace(
            go.Scatter(
                x=steps, y=means, mode="lines+markers", name=arm, legendgroup=arm,
                line={"color": colour, "width": 2.5, "dash": dash},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_xaxes(title="step")
    drawn.update_yaxes(title=unit)
    return pages.figure(drawn, name, height=max(480, 130 + 28 * len(study.arms)))  # all named


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
        drawn.add_trace(
            go.Scatter(
                x=[value_of(arms[row.system]) for row in line],
                y=[100 * row.value for row in line],
                error_y=_bars(
                    [row.value for row in line], [row.low for row in line],
                    [row.high for row in line],
                ),
                mode="lines+markers", name=trials, text=[row.system for row in line],
                hovertemplate="%{text}: %{y:.2f} %<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_layout(showlegend=True)
    drawn.update_xaxes(title=axis)
    drawn.update_yaxes(title="EER (%)")
    return pages.figure(drawn, name)


def _bars(
    values: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]
) -> dict[str, Any]:
    """Plotly's bars of intervals around fractions, in percent; of no length where there is none."""
    pairs = [*zip(values, low, high, strict=True)]
    return {
        "type": "data",
        "array": [0.0 if top is None else 100 * (top - value) for value, _, top in pairs],
        "arrayminus": [0.0 if end is None else 100 * (value - end) for value, end, _ in pairs],
    }


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


def _is_chns(config: Config) -> bool:
    return config.sampler.kind == "chns"


def _hard_ratio(config: Config) -> float:
    return config.sampler.hard_ratio if _is_chns(config) else 0.0


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
