"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chns_jax.common.files import replacing
from chns_jax.reports.figure import new_figure


def training_picture(
    path: Path,
    *,
    eer_at: dict[int, float],
    baseline_eer: float | None,
    negatives: dict[str, np.ndarray],
) -> None:
    """Write a PNG: validation EER over steps, and histograms of the negatives' cosine.

    `eer_at` maps steps to EERs (fractions); `negatives` maps the name of a way to compose batches
    to the cosines of its negatives.
    """
    figure = new_figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)

    if eer_at:
        eers = 100 * np.array(list(eer_at.values()))
        left.plot(list(eer_at), eers, marker="o", color="C0", label="encoder")
        left.annotate(
            f"{eers[-1]:.1f} %", (list(eer_at)[-1], eers[-1]), (0, 8),
            textcoords="offset points", ha="center",
        )  # fmt: skip
        if baseline_eer is not None:
            left.axhline(100 * baseline_eer, color="0.5", linestyle="--", label="MFCC baseline")
        top = max(eers.max(), 100 * (baseline_eer or 0)) or 1.0  # an EER of 0 has no scale
        left.set(ylim=(0, 1.2 * top), xlim=(0, 1.08 * max(eer_at)))
        left.legend()
    else:
        left.text(0.5, 0.5, "no validation trials", ha="center", transform=left.transAxes)
    left.set(title="Speakers never trained on", xlabel="step", ylabel="EER (%)")

    low = min((float(cosines.min()) for cosines in negatives.values()), default=-1.0)
    bins = np.linspace(min(low, 0.0), 1.0, 80)
    for i, (name, cosines) in enumerate(negatives.items()):
        percentile = np.percentile(cosines, 95)
        label = f"{name}: mean {cosines.mean():.2f}, 95th percentile {percentile:.2f}"
        right.hist(
            cosines, bins, density=True, histtype="stepfilled", alpha=0.45, color=f"C{i}",
            label=label,
        )  # fmt: skip
    right.set(
        title="Negatives of the anchors in a batch, final encoder",
        xlabel="cosine of anchor and negative",
        ylabel="density",
    )
    right.set_ylim(top=1.3 * right.get_ylim()[1])  # room for the legend
    right.legend(loc="upper right", fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)

    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
