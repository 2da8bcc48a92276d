"""A picture of a recording: how loud it is, what of it is speech, and who speaks when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chns_jax.common.files import replacing
from chns_jax.diarisation.gate import FRAME_SECONDS
from chns_jax.diarisation.turns import Turn
from chns_jax.reports.figure import new_figure

MOST_POINTS = 4000  # of the curve: the loudest of each stretch is drawn


def segments_picture(
    path: Path | str, levels: np.ndarray, threshold: float, turns: Sequence[Turn]
) -> None:
    """Write a PNG: levels (m,) of 20 ms each in dB with the threshold of the gate, above a row for
    each speaker's turns."""
    speakers = sorted({turn.speaker for turn in turns})
    figure = new_figure(figsize=(12, 2.8 + 0.4 * len(speakers)), layout="constrained")
    ratios = [2.2, 0.4 + 0.4 * len(speakers)]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)

    stretch = -(-len(levels) // MOST_POINTS)
    loudest = np.maximum.reduceat(levels, np.arange(0, len(levels), stretch))
    seconds = (np.arange(len(loudest)) + 0.5) * stretch * FRAME_SECONDS
    above.plot(seconds, loudest, color="0.35", linewidth=0.7)
    above.axhline(threshold, color="C3", linestyle="--", linewidth=1, label="speech from here on")
    above.set(ylabel="level (dB)", xlim=(0, len(levels) * FRAME_SECONDS))
    above.legend(loc="lower right", fontsize="small")

    for row, speaker in enumerate(speakers):
        spans = [(turn.start, turn.end - turn.start) for turn in turns if turn.speaker == speaker]
        below.broken_barh(spans, (row - 0.35, 0.7), facecolors=f"C{speaker % 10}")
    below.set_yticks(range(len(speakers)), [f"speaker{speaker}" for speaker in speakers])
    below.set(ylim=(len(speakers) - 0.5, -0.5), xlabel="seconds")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")

    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
