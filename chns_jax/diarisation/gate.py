"""Where somebody speaks: an energy gate, whose threshold is set by the recording itself."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FRAME_SECONDS = 0.02
SILENT = -70.0  # dB of full scale: a recording that is never louder holds no speech
LOUD_PERCENTILE, QUIET_PERCENTILE = 98, 5  # of the levels: those of speech, and of what is behind
RANGE = 30.0  # dB below the loud level that speech still has
ABOVE_QUIET = 6.0  # dB above the quiet level that noise does not reach
LEAST_RANGE = 12.0  # dB below the loud level that is speech in any noise
LONGEST_GAP = 0.5  # seconds of silence that are a pause within speech
SHORTEST_SPEECH = 0.2  # seconds that are more than a click


def levels(blocks: Iterable[np.ndarray], sample_rate: int) -> np.ndarray:
    """Level (m,) of each 20 ms of a recording, in dB of full scale, without what is constant.

    `blocks` (s,) int16 follow each other. What is left at the end is a frame too.
    """
    length = round(FRAME_SECONDS * sample_rate)
    found, rest = [np.zeros(0)], np.zeros(0, np.int16)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // length * length
        found.append(rest[:whole].reshape(-1, length).var(axis=1, dtype=np.float64))
        rest = rest[whole:]
    if len(rest):
        found.append(rest[None].var(axis=1, dtype=np.float64))
    power = np.concatenate(found) / 32768.0**2
    return 10 * np.log10(np.maximum(power, 1e-10))


def threshold(levels: np.ndarray) -> float:
    """The level from which on frames are speech: `RANGE` below the loud frames, or above the noise
    where that is louder, which takes less than `LEAST_RANGE` of the speech."""
    loud, quiet = np.percentile(levels, [LOUD_PERCENTILE, QUIET_PERCENTILE]).tolist()
    if loud <= SILENT:  # little speech in a long silence
        loud = float(levels.max(initial=SILENT))
    return max(loud - RANGE, min(quiet + ABOVE_QUIET, loud - LEAST_RANGE), SILENT)


def speech(levels: np.ndarray, sample_rate: int, samples: int) -> np.ndarray:
    """First samples and ends (r, 2) of what is spoken in a recording of `samples` samples.

    Pauses of under 0.5 s are part of it, and sounds of under 0.2 s are not. What is loud enough
    need not be speech: an energy gate takes music for it, too.
    """
    edges = np.flatnonzero(np.diff(np.pad(levels > threshold(levels), 1).astype(np.int8)))
    inner = edges[1:-1].reshape(-1, 2)  # pauses: the end of one sound, the beginning of the next
    pauses = inner[inner[:, 1] - inner[:, 0] >= LONGEST_GAP / FRAME_SECONDS]
    found = np.concatenate([edges[:1], pauses.ravel(), edges[-1:]]).reshape(-1, 2)
    long_enough = found[:, 1] - found[:, 0] >= SHORTEST_SPEECH / FRAME_SECONDS
    return np.minimum(found[long_enough] * round(FRAME_SECONDS * sample_rate), samples)
