"""Who the built-in voices are: the anatomy and the habits of each speaker, in 133 numbers.

A speaker belongs to a family, and a family to a group of one sex and age, so that similarity is
graded: the hardest impostors are of one's own family, then those of one's group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VOWELS, CONSONANTS, FORMANTS, CONTOURS = 10, 11, 6, 4  # how many of each the synthesiser has
GROUP_SHARE, FAMILY_SHARE = 0.15, 0.35  # of the variance of every trait; the rest is one's own
FURTHEST = 2.5  # standard deviations from the middle; nobody is stranger

# One tag for each purpose, before the positions: default_rng([a, b]) equals default_rng([a, b, 0]).
GROUP_TRAITS, FAMILY_TRAITS, MEMBER = 1, 2, 3

# Sex and age | mean f0 (Hz) and vocal-tract length (cm), rounded from Fitch & Giedd 1999 (JASA
# 106:1511) and Hillenbrand et al. 1995 (JASA 97:3099). Families are dealt to them in turn.
GROUPS = (
    ("f", "adult", 205.0, 14.6),
    ("m", "adult", 118.0, 17.2),
    ("f", "child", 245.0, 13.0),
    ("m", "child", 235.0, 13.3),
    ("f", "old", 180.0, 14.9),
    ("m", "old", 132.0, 17.4),
)

# Middle, standard deviation and shape of each trait; where `log`, the deviation is of its natural
# logarithm.
TRAITS = {
    "f0": (1.0, 0.11, "log", ()),
    "tract": (1.0, 0.04, "log", ()),
    "f0_range_semitones": (1.8, 0.25, "log", ()),
    "melody": (0.0, 0.35, "", (CONTOURS,)),
    "phrase_syllables": (11.0, 0.3, "log", ()),
    "formants": (1.0, 0.04, "log", (FORMANTS,)),
    "bandwidths": (1.1, 0.25, "log", (FORMANTS,)),
    "vowels": (1.0, 0.06, "log", (VOWELS, 3)),
    "consonants": (1.0, 0.06, "log", (CONSONANTS, 3)),
    "hiss": (1.0, 0.12, "log", (CONSONANTS, 2)),
    "hiss_strength": (1.0, 0.3, "log", (CONSONANTS,)),
    "nasality": (0.12, 0.6, "log", ()),
    "nasal_zero_hz": (800.0, 0.3, "log", ()),
    "tilt_hz": (1130.0, 0.45, "log", ()),
    "breath_db": (-38.0, 5.0, "", ()),
    "open_quotient": (0.6, 0.07, "", ()),
    "open_quotient_drift": (0.0, 0.05, "", ()),
    "opening": (0.3, 0.35, "log", ()),
    "jitter": (0.006, 0.45, "log", ()),
    "shimmer": (0.05, 0.4, "log", ()),
    "syllables_per_second": (4.4, 0.15, "log", ()),
    "consonant_share": (0.36, 0.15, "log", ()),
    "glide_frames": (4.0, 0.25, "log", ()),
    "hesitations": (0.04, 0.6, "log", ()),
    "hesitation": (1.0, 0.08, "log", (3,)),
    "hesitation_syllables": (1.2, 0.25, "log", ()),
}


@dataclass(frozen=True, eq=False)
class Voice:
    """One speaker's anatomy and habits."""

    family: int  # speakers of a family have similar voices
    gender: str  # "f" or "m"
    age: str  # "child", "adult" or "old"
    f0_hz: float  # mean fundamental frequency, Hz
    tract_cm: float  # vocal-tract length, cm
    f0_range_semitones: float  # spread of the f0 contour
    melody: np.ndarray  # (CONTOURS,) of a phrase: weights of half waves, in spreads of the f0
    phrase_syllables: float  # mean length of a phrase
    formants: np.ndarray  # (FORMANTS,) ratios to those that the tract's length gives
    bandwidths: np.ndarray  # (FORMANTS,) ratios to Klatt's
    vowels: np.ndarray  # (VOWELS, 3) ratios of F1 to F3 to the targets of all
    consonants: np.ndarray  # (CONSONANTS, 3) the same of consonants
    hiss: np.ndarray  # (CONSONANTS, 2) ratios of centre and bandwidth of the friction
    hiss_strength: np.ndarray  # (CONSONANTS,) ratio of its amplitude
    nasality: float  # coupling of the nose in vowels, 0 to 1
    nasal_zero_hz: float  # zero of the nasal branch with the velum open, Hz
    tilt_hz: float  # above it the source falls 12 dB an octave rather than 6, Hz
    breath_db: float  # aspiration noise against a unit source, dB
    open_quotient: float  # share of a period in which the glottis is open
    open_quotient_drift: float  # what it gains from the middle of an utterance to its end
    opening: float  # strength of the excitation where the glottis opens, of that where it closes
    jitter: float  # standard deviation of pulse times, in periods
    shimmer: float  # standard deviation of the logarithm of pulse strengths
    syllables_per_second: float  # speaking rate
    consonant_share: float  # of a syllable's duration
    glide_frames: float  # coarticulation: half the time from one target to the next, in 10 ms
    hesitations: float  # filled pauses a syllable
    hesitation: np.ndarray  # (3,) ratios of their F1 to F3 to a uniform tube's
    hesitation_syllables: float  # how long they last


def draw_voice(seed: int, speaker: int, families: int = 48) -> Voice:
    """The voice of one speaker, a function of the arguments alone.

    The speaker's family is drawn evenly from `families`. Each trait is normal around its middle,
    cut at `FURTHEST`: the sum of a deviation that the group shares, one that the family shares, and
    one of the speaker's own. Raises ValueError for families < 1 and for a negative seed or speaker.
    """
    member = np.random.default_rng([seed, MEMBER, speaker])
    family = int(member.integers(families))
    group = family % len(GROUPS)
    gender, age, f0_hz, tract_cm = GROUPS[group]
    count = sum(int(np.prod(shape)) for *_, shape in TRAITS.values())
    deviation = (
        GROUP_SHARE**0.5 * np.random.default_rng([seed, GROUP_TRAITS, group]).normal(size=count)
        + FAMILY_SHARE**0.5
        * np.random.default_rng([seed, FAMILY_TRAITS, family]).normal(size=count)
        + (1 - GROUP_SHARE - FAMILY_SHARE) ** 0.5 * member.normal(size=count)
    )
    deviation = np.clip(deviation, -FURTHEST, FURTHEST)
    traits, start = {}, 0
    for name, (middle, spread, scale, shape) in TRAITS.items():
        size = int(np.prod(shape))
        moved = spread * deviation[start : start + size].reshape(shape)
        value = middle * np.exp(moved) if scale == "log" else middle + moved
        traits[name] = value if shape else float(value)
        start += size
    f0_hz, tract_cm = f0_hz * traits.pop("f0"), tract_cm * traits.pop("tract")
    return Voice(family, gender, age, f0_hz=f0_hz, tract_cm=tract_cm, **traits)


def families_of(seed: int, names: Sequence[str] | np.ndarray, families: int = 48) -> np.ndarray:
    """(n,) the family of each built-in speaker, "v" and a number by name."""
    return np.array([draw_voice(seed, int(name[1:]), families).family for name in names])
