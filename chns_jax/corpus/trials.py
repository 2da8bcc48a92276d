"""Trials: pairs of utterances, and whether one speaker said both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.files import replacing, without_links
from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.reading import check_readable
from chns_jax.corpus.corpus import Corpus

MOST_UTTERANCES = 4_000  # eight million pairs
# Whether the speakers of a corpus (m,) and others (m,) are impostors of each other, (m,) bool.
Impostors = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Layout(NamedTuple):
    """Of the lines of a trial list."""

    written: str
    label: int  # column
    values: tuple[str, str]  # of a target, and of an impostor


VOXCELEB = Layout("<1 or 0> <enrolment> <test>", 0, ("1", "0"))
CN_CELEB = Layout("<enrolment> <test> <1 or 0>", -1, ("1", "0"))
KALDI = Layout("<enrolment> <test> <target or nontarget>", -1, ("target", "nontarget"))


class OtherSpeakers(UserError):
    """The labels of a list and the folders disagree about who speaks."""


@dataclass(frozen=True)
class NamedTrials:
    """A trial list as written."""

    labels: np.ndarray  # (m,) bool: the same speaker
    enrolment: list[str]  # (m,) names of utterances, or of enrolled models
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


def utterances_of(lists: Iterable[Trials]) -> np.ndarray:
    """The rows that occur in any of the lists, ascending."""
    return np.unique(np.concatenate([trials.utterances() for trials in lists]))


def read(path: Path | str) -> NamedTrials:
    """A trial list: VoxCeleb's lines "<1 or 0> <enrolment> <test>", Kaldi's "<enrolment> <test>
    <target or nontarget>", or CN-Celeb's "<enrolment> <test> <1 or 0>".

    The first line says which of them. Raises UserError, also for a pair, in either order, that is
    labelled both ways.
    """
    labels, enrolment, test, numbers = [], [], [], []
    layout = None
    for number, line in _lines(path, "a trial list"):
        parts = line.split()
        layout = layout or _layout(parts)
        if len(parts) != 3 or parts[layout.label] not in layout.values:
            raise UserError(f"{path} line {number} is not '{layout.written}': {shortened(line)}")
        labels.append(parts[layout.label] == layout.values[0])
        names = parts[1:] if layout.label == 0 else parts[:2]
        enrolment.append(names[0])
        test.append(names[1])
        numbers.append(number)
    if all(labels) or not any(labels):
        raise UserError(f"{path} needs both target (1) and impostor (0) trials")
    named = NamedTrials(np.array(labels), enrolment, test)
    twice = _labelled_both_ways(named)
    if twice is not None:
        first, second = twice
        raise UserError(
            f"{path} line {numbers[second]} labels {enrolment[second]} and {test[second]} "
            f"otherwise than line {numbers[first]} does: leave one of them out"
        )
    return named


def read_enrolment(path: Path | str) -> dict[str, list[str]]:
    """The utterances of each enrolled model: lines of "<model> <utterance> <utterance> ...".

    Raises UserError for a model without utterances, or one that comes twice.
    """
    models: dict[str, list[str]] = {}
    for number, line in _lines(path, "an enrolment list"):
        model, *utterances = line.split()
        if not utterances:
            raise UserError(f"{path} line {number} names no utterance of the model {model}")
        if model in models:
            raise UserError(f"{path} line {number} names the model {model} again: join its lines")
        models[model] = utterances
    return models


def speakers_of(path: Path | str, corpus: Corpus) -> np.ndarray:
    """Names of the speakers of a list. Raises UserError as `read` and `locate_names`."""
    rows = locate(read(path), corpus, path).utterances()
    return corpus.speakers[np.unique(corpus.speaker[rows])]


def locate(named: NamedTrials, corpus: Corpus, path: Path | str) -> Trials:
    """The trials as rows of `corpus`. Raises UserError as `locate_names`."""
    warn_of_itself(named, path)
    rows = locate_names([*named.enrolment, *named.test], corpus, path)
    return Trials(named.labels, *np.split(rows, 2))


def warn_of_itself(named: NamedTrials, path: Path | str) -> None:
    """Warn of utterances of the list `path` that are tried against themselves."""
    count = sum(one == other for one, other in zip(named.enrolment, named.test, strict=True))
    if count:
        warnings.warn(
            f"{count} of the {len(named.labels)} trials of {path} compare an utterance with "
            "itself, which any model can: take them out",
            stacklevel=2,
        )


def locate_names(names: Sequence[str], corpus: Corpus, path: Path | str) -> np.ndarray:
    """Rows (v,) of `corpus` of the utterances that the list `path` names.

    Raises UserError naming the first that it does not have.
    """
    rows = corpus.rows(names)
    reasons = {broken.name: broken.why for broken in corpus.broken}
    for name in names:
        if name not in rows:
            why = reasons.get(name, f"is not in {corpus.roots[0]}")
            raise UserError(
                f"{path} names {name}, which {why}: correct the list or give the right folder"
            )
    return np.array([rows[name] for name in names], np.int64)


def check_speakers(
    named: NamedTrials, enrolment: np.ndarray, test: np.ndarray, path: Path | str
) -> None:
    """Raises OtherSpeakers when the labels of the list `path` disagree with the speakers of both
    sides, numbers (m,)."""
    wrong = named.labels != (enrolment == test)
    if wrong.any():
        first = np.argmax(wrong)
        claim = "one speaker" if named.labels[first] else "two speakers"
        raise OtherSpeakers(
            f"{path} has {named.enrolment[first]} and {named.test[first]} as {claim}, but their "
            "folders do not: correct the list, or give a root of one folder for each speaker or a "
            "Kaldi folder with utt2spk"
        )


def make(
    corpus: Corpus, *, max_trials: int, seed: int, impostors: Impostors | None = None
) -> Trials:
    """All pairs of a corpus's utterances, or `max_trials` of them at most.

    Targets are pairs of one speaker from different recordings, or, with a warning, from one where
    nobody has two; `impostors` may leave out pairs of two speakers. When there are more pairs, some
    are drawn: in proportion, but a tenth of them targets if there are as many. Of a corpus of more
    than 4,000 utterances, so many are drawn first. Raises UserError when there are no targets or no
    impostors.
    """
    rng = generator(seed, Purpose.TRIALS)
    utterances = np.arange(len(corpus))
    if len(corpus) > MOST_UTTERANCES:
        utterances = np.sort(rng.choice(len(corpus), MOST_UTTERANCES, replace=False))
    first, second = (utterances[i] for i in np.triu_indices(len(utterances), k=1))
    one, other = corpus.speaker[first], corpus.speaker[second]
    different = one != other
    target = np.flatnonzero(~different & (corpus.recording[first] != corpus.recording[second]))
    if not len(target) and not different.all():
        target = np.flatnonzero(~different)
        warnings.warn(
            f"no speaker of {corpus.roots[0]} has two recordings: targets are of one recording, "
            "and easier than those of two",
            stacklevel=2,
        )
    if impostors is not None:
        different[different] = impostors(one[different], other[different])
    impostor = np.flatnonzero(different)
    for kind, found in ("target", target), ("impostor", impostor):
        if not len(found):
            raise UserError(
                f"{len(corpus.speakers)} speakers of {corpus.roots[0]} make no {kind} trials: "
                "take more speakers, of two utterances each"
            )
    if len(target) + len(impostor) > max_trials:
        share = max(0.1, len(target) / (len(target) + len(impostor)))
        wanted = min(len(target), max(1, round(share * max_trials)))
        target = np.sort(rng.choice(target, wanted, replace=False))
        rest = min(len(impostor), max(1, max_trials - wanted))
        impostor = np.sort(rng.choice(impostor, rest, replace=False))
    kept = np.concatenate([target, impostor])
    labels = np.arange(len(kept)) < len(target)
    return Trials(labels, first[kept], second[kept])


def sharing(group: np.ndarray) -> Impostors:
    """Impostors of one group; `group` (n,), of anything, is each speaker's."""
    return lambda one, other: group[one] == group[other]


def among(neighbours: np.ndarray) -> Impostors:
    """Impostors one of whom is among the neighbours (n, k), speakers, of the other."""
    speakers, count = neighbours.shape
    pairs = np.repeat(np.arange(speakers), count) * speakers + neighbours.ravel()
    return lambda one, other: (
        np.isin(one * speakers + other, pairs) | np.isin(other * speakers + one, pairs)
    )


def all_of(rules: Sequence[Impostors]) -> Impostors:
    """Impostors by every one of the rules."""
    return lambda one, other: np.all([rule(one, other) for rule in rules], axis=0)


def write(path: Path | str, trials: Trials, corpus: Corpus) -> None:
    """A list of VoxCeleb's lines. Raises UserError as `lines_of` does."""
    with replacing(without_links(path)) as file:
        file.writelines(lines_of(trials, corpus))


def lines_of(trials: Trials, corpus: Corpus) -> Iterator[str]:
    """VoxCeleb's, with their ends. Raises UserError for a name with a space in it, or of bytes that
    are no UTF-8."""
    names = {row: corpus.names[row] for row in trials.utterances().tolist()}
    for name in names.values():
        if name.split() != [name] or not _is_utf8(name):
            raise UserError(f"a trial list cannot hold the name {name!r}: rename the file")
    columns = (trials.labels.tolist(), trials.enrolment.tolist(), trials.test.tolist())
    for label, one, other in zip(*columns, strict=True):
        yield f"{label:d} {names[one]} {names[other]}\n"


def list_names(paths: Sequence[str]) -> list[str]:
    """What lists are called: their files' names without extension, or else their paths.

    Raises UserError for one that is given twice.
    """
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(paths)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"the trials {twice[0]} are given twice: leave one out")
    return names


def _is_utf8(name: str) -> bool:
    """Whether it lacks the surrogates that stand for bytes of no letter."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labelled_both_ways(named: NamedTrials) -> tuple[int, int] | None:
    """Two trials, the earlier first, of one pair in either order, of which one is a target."""
    number = {name: i for i, name in enumerate(dict.fromkeys([*named.enrolment, *named.test]))}
    sides = [[number[name] for name in names] for names in (named.enrolment, named.test)]
    low, high = np.sort(np.array(sides, np.int64), axis=0)
    pair = low * len(number) + high
    both = np.intersect1d(pair[named.labels], pair[~named.labels])
    if not len(both):
        return None
    trials = np.flatnonzero(pair == both[0])
    other = trials[named.labels[trials] != named.labels[trials[0]]]
    return int(trials[0]), int(other[0])


def _layout(parts: list[str]) -> Layout:
    """What the words of a list's first line look like; VoxCeleb's when nothing fits."""
    if parts[-1] in KALDI.values:
        return KALDI
    if parts[0] not in VOXCELEB.values and parts[-1] in CN_CELEB.values:
        return CN_CELEB
    return VOXCELEB


def _lines(path: Path | str, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers."""
    file = check_readable(path, what)
    try:
        with open(file, encoding="utf-8-sig") as lines:
            yield from ((i, line) for i, line in enumerate(lines, start=1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"{path} cannot be read: {reason}: give {what}") from error
