"""Trials: pairs of utterances, and whether one speaker said both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chns_jax.corpus.index import Corpus
from chns_jax.errors import UserError
from chns_jax.randomness import Purpose, generator

MOST_UTTERANCES = 4_000  # eight million pairs


@dataclass(frozen=True)
class NamedTrials:
    """A trial list as written."""

    labels: np.ndarray  # (m,) bool: the same speaker
    enrolment: list[str]  # (m,) utterance names
    test: list[str]  # (m,)


@dataclass(frozen=True)
class Trials:
    """Trials among the utterances of a corpus."""

    labels: np.ndarray  # (m,) bool: the same speaker
    enrolment: np.ndarray  # (m,) rows of the corpus
    test: np.ndarray  # (m,)

    def utterances(self) -> np.ndarray:
        """The rows that occur, ascending."""
        return np.unique(np.concatenate([self.enrolment, self.test]))

    def scores(self, utterances: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """(m,) cosines, given L2-normalised embeddings (v, d) of ascending rows (v,)."""
        enrolment = embeddings[np.searchsorted(utterances, self.enrolment)]
        test = embeddings[np.searchsorted(utterances, self.test)]
        return np.einsum("md,md->m", enrolment, test)


def read(path: Path | str) -> NamedTrials:
    """A VoxCeleb trial list: lines of "<1 or 0> <enrolment> <test>". Raises UserError."""
    labels, enrolment, test = [], [], []
    try:
        with open(Path(path).expanduser(), encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                parts = line.split()
                if not parts:
                    continue
                if len(parts) != 3 or parts[0] not in ("0", "1"):
                    raise UserError(
                        f"{path} line {number} is not '<1 or 0> <enrolment> <test>': "
                        f"{line.strip()[:80]}"
                    )
                labels.append(parts[0] == "1")
                enrolment.append(parts[1])
                test.append(parts[2])
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the trial list {path} cannot be read: {reason}") from error
    if all(labels) or not any(labels):
        raise UserError(f"{path} needs both target (1) and non-target (0) trials")
    return NamedTrials(np.array(labels), enrolment, test)


def locate(named: NamedTrials, corpus: Corpus, path: Path | str) -> Trials:
    """The trials as rows of `corpus`. Raises UserError naming the first file it does not have."""
    rows = corpus.rows([*named.enrolment, *named.test])
    reasons = {broken.name: broken.why for broken in corpus.broken}
    for name in [*named.enrolment, *named.test]:
        if name not in rows:
            why = reasons.get(name, f"is not in {corpus.roots[0]}")
            raise UserError(
                f"{path} names {name}, which {why}: correct the list or give the right folder"
            )
    return Trials(
        named.labels,
        np.array([rows[name] for name in named.enrolment]),
        np.array([rows[name] for name in named.test]),
    )


def check_speakers(trials: Trials, corpus: Corpus, path: Path | str) -> None:
    """Raises UserError when the labels and the folders of `corpus` disagree about who speaks."""
    wrong = trials.labels != (corpus.speaker[trials.enrolment] == corpus.speaker[trials.test])
    if wrong.any():
        first = np.argmax(wrong)
        one, other = (corpus.names[rows[first]] for rows in (trials.enrolment, trials.test))
        claim = "one speaker" if trials.labels[first] else "two speakers"
        raise UserError(
            f"{path} has {one} and {other} as {claim}, but their folders do not: correct the list "
            "or give a root of one folder for each speaker"
        )


def make(corpus: Corpus, *, max_trials: int, seed: int) -> Trials:
    """All pairs of a corpus's utterances, or `max_trials` of them at most.

    Targets are pairs of one speaker from different recordings. When there are more pairs, some are
    drawn: in proportion, but a tenth of them targets if there are as many. Of a corpus of more than
    4,000 utterances, so many are drawn first. Raises UserError when there are no targets or no
    non-targets.
    """
    rng = generator(seed, Purpose.TRIALS)
    utterances = np.arange(len(corpus))
    if len(corpus) > MOST_UTTERANCES:
        utterances = np.sort(rng.choice(len(corpus), MOST_UTTERANCES, replace=False))
    first, second = (utterances[i] for i in np.triu_indices(len(utterances), k=1))
    same = corpus.speaker[first] == corpus.speaker[second]
    across = corpus.recording[first] != corpus.recording[second]
    target, nontarget = np.flatnonzero(same & across), np.flatnonzero(~same)
    if not len(target) or not len(nontarget):
        raise UserError(
            f"the {len(corpus.speakers)} held-out speakers of {corpus.roots[0]} make no trials: "
            "hold out at least two speakers, one of whom has two recordings"
        )
    if len(target) + len(nontarget) > max_trials:
        share = max(0.1, len(target) / (len(target) + len(nontarget)))
        wanted = min(len(target), max(1, round(share * max_trials)))
        target = np.sort(rng.choice(target, wanted, replace=False))
        rest = min(len(nontarget), max(1, max_trials - wanted))
        nontarget = np.sort(rng.choice(nontarget, rest, replace=False))
    kept = np.concatenate([target, nontarget])
    labels = np.arange(len(kept)) < len(target)
    return Trials(labels, first[kept], second[kept])
