"""The page of an exploration: what `exploration` found, drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from chns_jax.common.vectors import means
from chns_jax.reports import exploration, pages
from chns_jax.reports.exploration import Fit, Pairs, RefreshedTable
from chns_jax.reports.pages import Html
from chns_jax.sampling.clusters import SpeakerClusters

TOP = 50  # rows of a table
SAME_PERCENTILE = 99.9  # of same-speaker cosines: above it, two names are likely one speaker
FIT_PERCENTILE = 1.0  # of cosines to the own speaker: below it, an utterance is likely another's
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
MEASURES = {
    "rand_index": "adjusted Rand index",
    "kept": "co-members kept",
    "changed": "speakers changed",
}


class Voices(NamedTuple):
    """Utterances of a corpus and what was made of them; shapes as in `exploration`."""

    speakers: Sequence[str]  # (n,) names
    names: Sequence[str]  # (v,) of utterances
    embeddings: np.ndarray  # (v, d)
    speaker: np.ndarray  # (v,)
    recording: np.ndarray  # (v,)
    table: SpeakerClusters


def sections(
    voices: Voices,
    tables: Sequence[RefreshedTable],
    player: Callable[[int, int], Html] | None,
    seed: int,
) -> Iterator[Html]:
    """The parts of the page; `player` makes what plays an utterance, given its place and its row.

    The row is that of a table, from 0; without `player` the tables have no sound.
    """
    voiceprints = means(voices.embeddings, voices.speaker)
    pairs = exploration.confusable_pairs(voiceprints, TOP)
    fit = exploration.fit(voices.embeddings, voices.speaker)
    yield _map(voices, voiceprints, pairs, seed)
    yield _sizes(voices.table)
    yield _confusable(voices, pairs, tables, player)
    yield from _movement(voices, pairs, tables)
    yield _likely_one(voices, pairs)
    yield _misplaced(voices, fit)


def _map(voices: Voices, voiceprints: np.ndarray, pairs: Pairs, seed: int) -> Html:
    import plotly.graph_objects as go

    names = np.array([pages.escape(name) for name in voices.speakers])
    x, y = exploration.layout(voiceprints, seed).T
    ends = np.stack([pairs.one, pairs.other, pairs.other], axis=1).ravel()
    gap = np.arange(len(ends)) % 3 == 2  # what is no number interrupts a line
    drawn = go.Figure(
        go.Scatter(
            x=np.where(gap, np.nan, x[ends]), y=np.where(gap, np.nan, y[ends]), mode="lines",
            name="confusable pairs", hoverinfo="skip", line={"color": "#999", "width": 1},
        )
    )  # fmt: skip
    for cluster in range(len(voices.table.centroids)):
        members = voices.table.speakers_of(cluster)
        drawn.add_trace(
            go.Scatter(
                x=x[members], y=y[members], mode="markers", name=f"cluster {cluster}",
                text=names[members], hovertemplate="%{text}",
                marker={
                    "size": 9 if len(x) < 500 else 5,
                    "color": COLOURS[cluster % len(COLOURS)],
                    "symbol": SYMBOLS[cluster // len(COLOURS) % len(SYMBOLS)],
                },
            )
        )  # fmt: skip
    blank = {"showticklabels": False, "zeroline": False, "title": None}
    drawn.update_xaxes(**blank)
    drawn.update_yaxes(**blank)
    marked = "colour is" if len(voices.table.centroids) <= len(COLOURS) else "colour and shape are"
    method = "PCA" if len(x) < exploration.FEWEST_FOR_TSNE else "t-SNE"
    return pages.section(
        "Speakers",
        f"Each point is a speaker's voiceprint, drawn in two dimensions by {method}: near ones "
        "sound alike to the encoder, while far distances and the axes mean little. The "
        f"{marked} its k-means cluster; lines join the {len(pairs.one)} most confusable pairs.",
        pages.figure(drawn, "map", height=680),
    )


def _sizes(table: SpeakerClusters) -> Html:
    import plotly.graph_objects as go

    order = np.argsort(-table.sizes, kind="stable")
    few = len(order) <= 2 * len(COLOURS)
    drawn = go.Figure(
        go.Bar(
            x=[f"{cluster}" for cluster in order], y=table.sizes[order],
            text=table.sizes[order] if few else None, textposition="outside", cliponaxis=False,
            marker={"color": [COLOURS[cluster % len(COLOURS)] for cluster in order]},
            hovertemplate="cluster %{x}: %{y} speakers<extra></extra>",
        )
    )  # fmt: skip
    drawn.update_xaxes(title="cluster", type="category")
    drawn.update_yaxes(title="speakers", rangemode="tozero")
    return pages.section(
        "Cluster sizes",
        f"Speakers in each of the {len(table.centroids)} k-means clusters of the voiceprints, the "
        "largest first.",
        pages.figure(drawn, "sizes", height=320),
    )


def _confusable(
    voices: Voices,
    pairs: Pairs,
    tables: Sequence[RefreshedTable],
    player: Callable[[int, int], Html] | None,
) -> Html:
    shared = exploration.shared(tables, *_names(voices, pairs))
    columns = {"#": "d", "cosine": ".3f", "one": "", "other": "", "one cluster": ""}
    if tables:
        columns |= {"together": "d", "refreshes": "d"}
    if player is not None:
        columns |= {"hear one": "", "hear the other": ""}
    rows = []
    for row, (one, other, cosine) in enumerate(zip(*pairs, strict=True)):
        together = voices.table.cluster[one] == voices.table.cluster[other]
        cells = [row + 1, cosine, voices.speakers[one], voices.speakers[other]]
        cells.append("yes" if together else "no")
        if tables:
            known = shared[row][~np.isnan(shared[row])]
            cells += [int(known.sum()), len(known)] if len(known) else [None, 0]
        if player is not None:
            first, second = (np.flatnonzero(voices.speaker == each) for each in (one, other))
            a, b = exploration.most_alike(voices.embeddings[first], voices.embeddings[second])
            cells += [player(int(first[a]), row), player(int(second[b]), row)]
        rows.append(cells)
    return pages.section(
        "Most confusable speakers",
        f"The {len(rows)} pairs of speakers with the highest cosine of their voiceprints (the "
        "normalised mean of a speaker's embeddings)"
        + (
            ", whether they share a cluster here, and at how many of the run's refreshes that knew "
            "both"
            if tables
            else " and whether they share a cluster here"
        )
        + ("; one hears their two most alike utterances." if player is not None else "."),
        pages.table(columns, rows),
    )


def _movement(voices: Voices, pairs: Pairs, tables: Sequence[RefreshedTable]) -> Iterator[Html]:
    import plotly.graph_objects as go

    heading = "Clusters over the run's refreshes"
    if not tables:
        yield pages.section(heading, "The run has no tables of clusters: it made none.")
        return
    steps = [f"{refresh.step}" for refresh in tables]
    shared = exploration.shared(tables, *_names(voices, pairs))
    known = ~np.isnan(shared).all(axis=1)
    if known.any():
        labels = [
            pages.escape(f"{place + 1}. {one} – {other}")
            for place, (one, other) in enumerate(zip(*_names(voices, pairs), strict=True))
        ]
        drawn = go.Figure(
            go.Heatmap(
                x=steps, y=[labels[row] for row in np.flatnonzero(known)],
                z=shared[known], zmin=0, zmax=1, xgap=2, ygap=2, showscale=False,
                colorscale=[[0, "#e3e3e3"], [1, COLOURS[0]]],
                hovertemplate="step %{x}: %{y}<extra></extra>",
            )
        )  # fmt: skip
        drawn.update_xaxes(title="step of the refresh", type="category", showgrid=False)
        drawn.update_yaxes(autorange="reversed", automargin=True, showgrid=False, dtick=1)
        chance = exploration.shared_by_chance(tables)
        yield pages.section(
            "Confusable speakers over the run's refreshes",
            f"Blue: the pair was in one cluster of the table that the run made before that step; "
            f"grey: it was not. {known.sum()} of the {len(shared)} most confusable pairs are in "
            f"the tables; {100 * np.nanmean(shared[:, -1]):.0f} % of them share a cluster at the "
            f"last refresh, as do {100 * chance[-1]:.0f} % of all pairs.",
            pages.figure(drawn, "refreshes", height=120 + 20 * int(known.sum())),
        )
    found = list(exploration.changes(tables))
    rows = [(c.step, c.rand_index, 100 * c.changed, 100 * c.kept) for c in found]
    columns = {"step": "d", "adjusted Rand index": ".3f", "speakers changed (%)": ".1f"}
    parts = [pages.table(columns | {"co-members kept (%)": ".1f"}, rows)] if found else []
    if len(found) > 1:
        at = [c.step for c in found]
        drawn = go.Figure(
            [
                go.Scatter(x=at, y=[getattr(c, key) for c in found], name=name)
                for key, name in MEASURES.items()
            ]
        )
        drawn.update_traces(mode="lines+markers")
        drawn.update_xaxes(title="step of the refresh")
        drawn.update_yaxes(title="index or share", range=[-0.05, 1.05])
        parts.insert(0, pages.figure(drawn, "changes", height=360))
    yield pages.section(
        heading,
        "What each table changed of the one before it: their adjusted Rand index (1: the same "
        "clusters, 0: no more alike than by chance), the share of speakers who do not have exactly "
        "the same co-members (the others of their cluster), and the mean share of co-members that "
        "a speaker kept."
        if found
        else "The run made one table only, so that nothing moved.",
        *parts,
    )


def _likely_one(voices: Voices, pairs: Pairs) -> Html:
    heading = "Likely label errors: one speaker under two names"
    same = exploration.same_speaker_cosines(voices.embeddings, voices.speaker, voices.recording)
    if not len(same):
        return pages.section(heading, "No speaker has two recordings to compare them by.")
    threshold = float(np.percentile(same, SAME_PERCENTILE))
    found = int(np.count_nonzero(pairs.cosine > threshold))
    rows = [
        (place, cosine, voices.speakers[one], voices.speakers[other])
        for place, (one, other, cosine) in enumerate(zip(*pairs, strict=True), start=1)
        if cosine > threshold
    ]
    return pages.section(
        heading,
        f"Pairs of speakers whose voiceprints have a cosine above {threshold:.3f}, the "
        f"{SAME_PERCENTILE:g}th percentile of the cosines of {len(same):,} pairs of utterances of "
        f"one speaker from different recordings: "
        f"{found or 'none'}{' or more' if found == TOP else ''} here.",
        *([pages.table({"#": "d", "cosine": ".3f", "one": "", "other": ""}, rows)] if rows else []),
    )


def _misplaced(voices: Voices, fit: Fit) -> Html:
    wrong = exploration.misfits(fit, FIT_PERCENTILE)
    columns = {"#": "d", "difference": ".3f", "utterance": "", "said to be": ""}
    columns |= {"cosine to it": ".3f", "nearest other": "", "cosine to that": ".3f"}
    rows = [
        (
            place,
            fit.own[i] - fit.other[i],
            voices.names[i],
            voices.speakers[int(voices.speaker[i])],
            fit.own[i],
            voices.speakers[int(fit.nearest[i])],
            fit.other[i],
        )
        for place, i in enumerate(wrong[:TOP].tolist(), start=1)
    ]
    return pages.section(
        "Likely label errors: utterances of another speaker",
        f"{len(wrong)} of {len(voices.speaker)} utterances have a cosine to the voiceprint of "
        "their speaker's other utterances that is below the cosine to another speaker's "
        f"voiceprint, or among the lowest {FIT_PERCENTILE:g} % of all; the {len(rows)} with the "
        "lowest difference of the two.",
        pages.table(columns, rows),
    )


def _names(voices: Voices, pairs: Pairs) -> tuple[list[str], list[str]]:
    one, other = ([str(voices.speakers[i]) for i in side] for side in (pairs.one, pairs.other))
    return one, other
