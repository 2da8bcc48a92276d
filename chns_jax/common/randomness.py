"""Everything random is a pure function of (seed, purpose, position); nothing is carried."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a random stream is for. Not zero: [seed, a] and [seed, a, 0] are one stream to NumPy."""

    PLAN = 1
    CROP = 2
    REFRESH = 3
    HELD_OUT = 4
    TRIALS = 5
    CLUSTERS = 6
    ENCODER = 7
    BOOTSTRAP = 8
    EPOCH = 9
    AUGMENT = 10
    NOISE = 11
    RIRS = 12
    PAIRS = 13
    CHANCE = 14
    BOOTSTRAP_RUNS = 15
    FORECAST = 16
    GROUPS = 17


def generator(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """The random stream at `position` (step and slot, or round and speaker) for `purpose`."""
    return np.random.default_rng([seed, purpose, *position])
