"""The page of an evaluation: DET curve, scores, hardest trials, EER by duration and gender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from chns_jax.reports import pages
from chns_jax.reports.pages import Html
from chns_jax.scoring.metrics import Rates, eer, eer_of, error_rates, rank
from chns_jax.scoring.metrics import rates as rates_of

HARDEST = 50  # trials in a table
LOWEST_RATE = 1e-4  # of a DET curve's axes
DET_POINTS = 2000
HISTOGRAM_BINS = 100
DURATION_BINS = 5
NAMES = {
    "eer": "EER",
    "min_dcf": "minDCF",
    "min_cllr": "minimal Cllr",
    "act_dcf": "actual DCF",
    "cllr": "Cllr",
    "targets": "target trials",
    "nontargets": "impostor trials",
}
LEGEND_BELOW = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}  # room on narrow pages
TARGET, IMPOSTOR, OTHER = "#1f77b4", "#d62728", "#555"


def write_report(
    path: Path | str,
    *,
    title: str,
    labels: np.ndarray,
    scores: np.ndarray,
    enrolment: Sequence[str],
    test: Sequence[str],
    seconds: np.ndarray,
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Any],
    score_is: str = "score",
    threshold: float | None = None,
    threshold_is: str | None = None,
    genders: Sequence[str | None] | None = None,
) -> None:
    """Write the HTML page of m scored trials, of both kinds; it needs plotly.

    `labels` (m,) are true for targets; `scores` (m,) are higher for the same speaker, and called
    `score_is`; `enrolment` and `test` (m,) are the names of utterances, `seconds` (m, 2) their
    durations. `threshold`, at and above which a trial is accepted, was set for what `threshold_is`
    says; without it, that of the EER of these trials is shown. `genders` (m,) has "ff", "mm", "fm"
    or None. `metrics` are numbers, or mappings of them, and `intervals` of the same names are
    [low, high], where there are any.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, float)
    rates, seconds = error_rates(labels, scores), np.asarray(seconds)
    if threshold is None:
        threshold = eer_threshold(labels, scores)
        threshold_is = "the equal error rate of these trials"
    pages.write(
        path,
        title,
        f"{labels.sum():,} target trials (one speaker) and {(~labels).sum():,} impostor trials "
        f"(two speakers). Threshold: {threshold:.4g}, set for {threshold_is}.",
        [
            pages.section(
                "Figures",
                "Rates are fractions.",
                pages.table(
                    {"figure": "", "value": "", "95 % interval": ""}, _figures(metrics, intervals)
                ),
            ),
            pages.section(
                "Detection error trade-off",
                "Miss rate (targets rejected) against false-alarm rate (impostors accepted) as the "
                "threshold falls, on axes on which normally distributed scores make a straight "
                "line.",
                _det_figure(labels, scores, rates, threshold),
            ),
            pages.section(
                "Scores",
                f"Share of the trials of each kind in {HISTOGRAM_BINS} equal intervals of the "
                f"{score_is}; at and above the threshold, set for {threshold_is}, a trial is "
                "accepted.",
                _histogram(labels, scores, threshold, score_is),
            ),
            *_group_sections(labels, scores, threshold, seconds.min(axis=1), genders),
            pages.section(
                "Hardest impostor trials",
                f"The {HARDEST} impostor trials of the highest {score_is}; a wrong label among "
                "them is as likely as a hard voice.",
                _hardest(~labels, -scores, scores, enrolment, test, seconds, score_is),
            ),
            pages.section(
                "Worst target trials",
                f"The {HARDEST} target trials of the lowest {score_is}.",
                _hardest(labels, scores, scores, enrolment, test, seconds, score_is),
            ),
        ],
    )


def trial_genders(speakers: np.ndarray, genders: Mapping[str, str]) -> list[str | None]:
    """ "ff", "mm", "fm" or None for the speakers (m, 2) of trials, given theirs: "f" or "m"."""
    known = {name: genders.get(name) for name in np.unique(speakers).tolist()}
    pairs = ((known[one], known[other]) for one, other in speakers.tolist())
    return [one and other and "".join(sorted((one, other))) for one, other in pairs]


def eer_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The highest threshold (accepting scores >= it) with no fewer false alarms than misses."""
    ranking = rank(labels, scores)
    false_alarm, miss = rates_of(ranking)
    above = int(np.argmax(false_alarm >= miss))
    return float(scores[ranking.order[ranking.accepted[above - 1]]])


def det_curve(rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """Normal deviates of false-alarm and miss rate, (p,) each, of at most 2,000 points.

    Rates are clipped to [0.0001, 0.9999]. What is left out lies within 0.008 of the curve, along
    it, which is less than a pixel. Source: Martin et al., "The DET curve in assessment of detection
    task performance", Eurospeech 1997.
    """
    clipped = np.clip(rates, LOWEST_RATE, 1 - LOWEST_RATE)
    moved = (np.diff(clipped, axis=1) != 0).any(axis=0)
    false_alarm, miss = (_probit(rate) for rate in clipped[:, np.append(True, moved)])
    length = np.append(0.0, np.cumsum(np.abs(np.diff(false_alarm)) + np.abs(np.diff(miss))))
    interval = np.floor(length / max(length[-1], 1e-12) * (DET_POINTS - 1))
    kept = np.append(True, np.diff(interval) != 0)  # the first of each interval, and the end
    return false_alarm[kept], miss[kept]


def by_group(
    labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Mapping[str, np.ndarray]
) -> list[tuple[str, int, int, float | None, float | None, float | None]]:
    """Name, targets, impostors, EER, miss and false-alarm rate (%) of groups of trials.

    `groups` have masks (m,); a rate is None where the group has no trials for it.
    """
    rows = []
    for name, mask in groups.items():
        target, impostor = scores[mask & labels], scores[mask & ~labels]
        both = len(target) > 0 and len(impostor) > 0
        rows.append(
            (
                name,
                len(target),
                len(impostor),
                100 * eer(labels[mask], scores[mask]) if both else None,
                100 * float(np.mean(target < threshold)) if len(target) else None,
                100 * float(np.mean(impostor >= threshold)) if len(impostor) else None,
            )
        )
    return rows


def duration_groups(shortest: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (m,) of about equally many trials by `shortest` (m,), seconds of the shorter side."""
    edges = np.unique(np.quantile(shortest, np.linspace(0, 1, DURATION_BINS + 1)).round(1))
    if len(edges) < 2:
        return {f"{edges[0]:.1f} s": np.ones(len(shortest), bool)}
    place = np.digitize(shortest.round(1), edges[1:-1])
    return {
        f"{low:.1f} to {high:.1f} s": place == i
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    }


def _group_sections(labels, scores, threshold, shortest, genders) -> Iterator[Html]:
    columns = {"targets": "d", "impostors": "d"}
    columns |= {"EER (%)": ".2f", "misses (%)": ".2f", "false alarms (%)": ".2f"}
    rows = by_group(labels, scores, threshold, duration_groups(shortest))
    yield pages.section(
        "By duration",
        "Trials by the duration of their shorter side, in intervals of about equally many; each "
        "EER has a threshold of its own, misses and false alarms are those at the page's.",
        _eer_bars(rows),
        pages.table({"shorter side": "", **columns}, rows),
    )
    if genders is not None:
        genders = np.array([gender or "unknown" for gender in genders])
        titles = {"ff": "female", "mm": "male", "fm": "female and male", "unknown": "unknown"}
        groups = {title: genders == key for key, title in titles.items() if key in genders}
        yield pages.section(
            "By gender",
            "Trials by the gender of their speakers as the metadata has it; impostors of the other "
            "gender make no EER, as they have no targets.",
            pages.table({"gender": "", **columns}, by_group(labels, scores, threshold, groups)),
        )


def _det_figure(labels, scores, rates: Rates, threshold: float) -> Html:
    import plotly.graph_objects as go

    def point(rate: float) -> float:
        return float(_probit(np.clip([rate], LOWEST_RATE, 1 - LOWEST_RATE))[0])

    def marker(false_alarm: float, miss: float, name: str, symbol: str) -> go.Scatter:
        return go.Scatter(
            x=[point(false_alarm)], y=[point(miss)], mode="markers", name=name, cliponaxis=False,
            marker={"size": 11, "symbol": symbol, "color": OTHER, "line": {"width": 2}},
            hovertemplate=f"false alarms {100 * false_alarm:.2f} %, misses {100 * miss:.2f} %",
        )  # fmt: skip

    x, y = det_curve(rates)
    to_rate = np.vectorize(NormalDist().cdf, otypes=[float])
    drawn = go.Figure(
        go.Scatter(
            x=x, y=y, mode="lines", name="DET curve", line={"color": TARGET, "width": 2.5},
            customdata=100 * np.stack([to_rate(x), to_rate(y)], axis=1),
            hovertemplate="false alarms %{customdata[0]:.2f} %<br>misses %{customdata[1]:.2f} %",
        )
    )  # fmt: skip
    equal = eer_of(rates)
    drawn.add_trace(marker(equal, equal, f"EER {100 * equal:.2f} %", "circle"))
    false_alarm = float(np.mean(scores[~labels] >= threshold))
    miss = float(np.mean(scores[labels] < threshold))
    drawn.add_trace(marker(false_alarm, miss, f"threshold {threshold:.4g}", "x-thin-open"))
    ticks = [1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99]
    # As far as the curve goes before one of the rates makes it of no use, and to the threshold.
    high = max(0.6, min(1.5 * equal, 0.99), false_alarm, miss)
    useful = (rates.false_alarm <= high) & (rates.miss <= high)
    low = min(0.5 * min(rates.false_alarm[useful].min(), rates.miss[useful].min()), 0.05)
    axis = {
        "range": [point(low), point(high) + 0.1],
        "tickvals": [point(tick) for tick in ticks],
        "ticktext": [f"{100 * tick:g}" for tick in ticks],
        "zeroline": False, "constrain": "domain",
    }  # fmt: skip
    drawn.update_xaxes(title="false-alarm rate (%)", **axis)
    drawn.update_yaxes(title="miss rate (%)", scaleanchor="x", **axis)
    drawn.update_layout(legend=LEGEND_BELOW)
    return Html(f'<div style="max-width: 620px">{pages.figure(drawn, "det", height=640)}</div>')


def _histogram(labels: np.ndarray, scores: np.ndarray, threshold: float, score_is: str) -> Html:
    import plotly.graph_objects as go

    edges = np.histogram_bin_edges(scores, HISTOGRAM_BINS)
    drawn = go.Figure()
    for name, mask, colour in [
        ("target trials", labels, TARGET), ("impostor trials", ~labels, IMPOSTOR),
    ]:  # fmt: skip
        share = 100 * np.histogram(scores[mask], edges)[0] / mask.sum()
        drawn.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2, y=share, name=name, opacity=0.6,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"{score_is} %{{x:.3f}}: %{{y:.2f}} %",
            )
        )  # fmt: skip
    drawn.add_vline(x=threshold, line={"color": OTHER, "dash": "dash"})
    # Inside the axes, above which Plotly's buttons lie, on the side where there is more room.
    room = "left" if threshold < (edges[0] + edges[-1]) / 2 else "right"
    drawn.add_annotation(
        x=threshold, y=1, yref="paper", xanchor=room, yanchor="top", showarrow=False,
        text=f"threshold {threshold:.4g}", bgcolor="rgba(255, 255, 255, 0.8)",
    )  # fmt: skip
    drawn.update_layout(barmode="overlay", bargap=0, legend=LEGEND_BELOW)
    drawn.update_xaxes(title=score_is)
    drawn.update_yaxes(title="share of the trials of its kind (%)")
    return pages.figure(drawn, "scores", height=400)


def _eer_bars(rows: Sequence[tuple]) -> Html:
    import plotly.graph_objects as go

    names, eers = zip(*[(row[0], row[3]) for row in rows], strict=True)
    text = ["no EER" if eer is None else f"{eer:.2f}" for eer in eers]
    drawn = go.Figure(
        go.Bar(
            x=names, y=[eer or 0.0 for eer in eers], text=text, textposition="outside",
            cliponaxis=False, marker={"color": TARGET}, width=0.6,
            hovertemplate="%{x}: EER %{text} %<extra></extra>",
        )
    )  # fmt: skip
    drawn.update_xaxes(title="duration of the shorter side", type="category")
    drawn.update_yaxes(title="EER (%)", rangemode="tozero")
    return pages.figure(drawn, "durations", height=320)


def _hardest(mask, order_by, scores, enrolment, test, seconds, score_is) -> Html:
    """The trials of `mask` with the lowest `order_by`."""
    candidates = np.flatnonzero(mask)
    chosen = candidates[np.argsort(order_by[candidates], kind="stable")[:HARDEST]]
    columns = {"#": "d", score_is: ".4f", "enrolment": "", "enrolment (s)": ".1f", "test": ""}
    return pages.table(
        columns | {"test (s)": ".1f"},
        [
            (place, scores[i], enrolment[i], seconds[i, 0], test[i], seconds[i, 1])
            for place, i in enumerate(chosen.tolist(), start=1)
        ],
    )


def _figures(
    metrics: Mapping[str, Any], intervals: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, str, str | None]]:
    """Name, value and interval of each figure, an interval with the decimals of its value."""
    for key, value in metrics.items():
        name, between = f"{above}{NAMES.get(key, key)}", intervals.get(key)
        if isinstance(value, Mapping):
            yield from _figures(value, between or {}, f"{name} ")
            continue
        number = ".4f" if isinstance(value, float) else ""
        ends = between and ", ".join(f"{end:{number}}" for end in between)
        yield name, f"{value:{number}}", ends and f"[{ends}]"


def _probit(rates: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(rate) for rate in rates])
