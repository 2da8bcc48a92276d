"""Who speaks when: turns, as RTTM, the format of NIST's Rich Transcription evaluations (2009)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common.files import replacing
from chns_jax.diarisation.windows import Windows


class Turn(NamedTuple):
    start: float  # seconds
    end: float
    speaker: int


def turns(speech: np.ndarray, windows: Windows, labels: np.ndarray, sample_rate: int) -> list[Turn]:
    """What is spoken, cut where the speaker changes; one turn ends before the next begins.

    A moment of `speech` (r, 2), in samples, is of the speaker (n,) whose window's middle is nearest
    among those of its stretch.
    """
    middles = (windows.start + windows.end) // 2
    first_of = np.searchsorted(windows.region, np.arange(len(speech) + 1))
    made: list[Turn] = []
    for region, (start, end) in enumerate(speech.tolist()):
        mine = np.arange(first_of[region], first_of[region + 1])
        changes = np.flatnonzero(np.diff(labels[mine]))
        borders = (middles[mine[changes]] + middles[mine[changes + 1]]) // 2
        edges = [start, *borders.tolist(), end]
        said_by = labels[mine[np.append(changes, len(mine) - 1)]].tolist()
        for first, last, speaker in zip(edges[:-1], edges[1:], said_by, strict=True):
            made.append(Turn(first / sample_rate, last / sample_rate, speaker))
    return made


def write_rttm(path: Path | str, recording: str, turns: Iterable[Turn]) -> None:
    """Write turns of a recording, whose name may hold no blanks in this format: they become _."""
    name = "_".join(recording.split())
    with replacing(path) as file:
        for start, end, speaker in turns:
            file.write(
                f"SPEAKER {name} 1 {start:.3f} {end - start:.3f} <NA> <NA> speaker{speaker} "
                "<NA> <NA>\n"
            )
