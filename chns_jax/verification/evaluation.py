"""What a trial list says about a run: scores of its trials, error rates, and their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.vectors import means
from chns_jax.corpus import trials as trial_lists
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.trials import NamedTrials, OtherSpeakers
from chns_jax.embedding import cache as embedding_cache
from chns_jax.embedding.embedder import segment_samples
from chns_jax.embedding.model import Model
from chns_jax.scoring import comparison, metrics
from chns_jax.scoring.bootstrap import FEWEST_SPEAKERS, interval, replicates
from chns_jax.scoring.calibration import Calibration
from chns_jax.scoring.comparison import ComparedMetric
from chns_jax.scoring.norm import as_norm, check_apart, statistics
from chns_jax.verification.cohort import Cohort, describe

TRIALS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Scores:
    """The trials of a list with the scores of a run, before anything is calibrated."""

    trials: NamedTrials
    scores: np.ndarray  # (m,) cosines, or AS-normalised ones
    enrolment_speaker: np.ndarray | None  # (m,) numbers; None where nobody says who speaks
    test_speaker: np.ndarray | None  # (m,)
    speakers: np.ndarray  # (n,) their names
    seconds: np.ndarray  # (m, 2) durations of the sides
    cohort_mean: np.ndarray | None  # (m,) mean of both sides' means of AS-norm
    made_by: dict[str, Any]  # what `describe` says

    @property
    def qualities(self) -> dict[str, np.ndarray]:
        """(m,) of each quality that a calibration may weigh."""
        of_norm = {} if self.cohort_mean is None else {"cohort_mean": self.cohort_mean}
        return {"duration": np.log(self.seconds.min(axis=1)), **of_norm}


@dataclass(frozen=True)
class Evaluation:
    """A trial list, evaluated: all that a report shows."""

    scored: Scores
    log_likelihood_ratios: np.ndarray | None  # (m,); None without a calibration
    metrics: dict[str, Any]  # as the command prints them
    intervals: dict[str, Any]  # of the same names, [low, high] at 95 %; empty when there are none


def score(
    model: Model,
    trials: str | Path,
    root: str | Path,
    cache: str | Path,
    *,
    enrolment: str | Path | None = None,
    segments: float | None = None,
    cohort: Cohort | None = None,
    by_speaker: bool = True,
) -> Scores:
    """Score a trial list, whose utterances lie in folder `root`; each is embedded once.

    With `enrolment`, a list of models (`trials.read_enrolment`), the trials name models, whose
    embedding is the mean of those of their utterances. `segments` seconds are averaged, or
    utterances embedded whole. `by_speaker`: say who speaks, by the folders of `root`. Raises
    UserError for lists that are none or name what is not there, for files that cannot be read, for
    a cohort that has speakers of the trials, and, `by_speaker`, OtherSpeakers where the labels and
    the folders disagree.
    """
    named = trial_lists.read(trials)
    models = None if enrolment is None else trial_lists.read_enrolment(enrolment)
    if models is None:
        trial_lists.warn_of_itself(named, trials)
    corpus = open_corpus(root, cache)
    voices = _Voices.of(named, models, corpus, trials, enrolment)
    speakers = (None, None)
    if by_speaker:
        speaker = voices.speakers(corpus, enrolment)
        speakers = speaker[voices.enrolment], speaker[voices.test]
        trial_lists.check_speakers(named, *speakers, trials)
    segment = segment_samples(model.embedder, model.config.features.sample_rate, segments)
    if cohort is not None and cohort.named is not None:
        check_apart(corpus.speakers[np.unique(corpus.speaker[voices.utterance])], cohort.named)

    utterances, place = np.unique(voices.utterance, return_inverse=True)
    embeddings = embedding_cache.embed(model, corpus, utterances, cache, segment=segment)
    embeddings = means(embeddings[place], voices.voice)
    scores = _cosines(embeddings, voices.enrolment, voices.test)
    cohort_mean = None
    if cohort is not None:
        of_all = statistics(embeddings, cohort.embeddings, cohort.top)
        sides = [
            type(of_all)(*(x[side] for x in of_all)) for side in (voices.enrolment, voices.test)
        ]
        scores = as_norm(scores, *sides)
        cohort_mean = (sides[0].mean + sides[1].mean) / 2
    seconds = np.bincount(voices.voice, corpus.seconds[voices.utterance])
    of_sides = np.stack([seconds[voices.enrolment], seconds[voices.test]], axis=1)
    made_by = describe(model, segments, cohort)
    return Scores(named, scores, *speakers, corpus.speakers, of_sides, cohort_mean, made_by)


def evaluate(
    scored: Scores, *, count: int, seed: int, calibration: Calibration | None = None
) -> Evaluation:
    """Error rates of a scored list, with intervals from `count` replicates of its speakers.

    Actual costs and Cllr are those of log-likelihood ratios by a calibration of such scores. There
    are no intervals when `count` is 0, nobody says who speaks, or fewer than FEWEST_SPEAKERS do.
    """
    labels = scored.trials.labels
    llrs = None
    if calibration is not None:
        llrs = calibration.log_likelihood_ratios(scored.scores, scored.qualities)
    # With qualities, log-likelihood ratios rank trials in another order than scores do.
    values = scored.scores if llrs is None else llrs
    ranking = metrics.rank(labels, values)
    corners = metrics.corners(ranking)

    def figures(weights: np.ndarray | None) -> dict[str, Any]:
        rates = metrics.rates(corners, weights)
        found = {
            "eer": metrics.eer_of(rates),
            "min_dcf": {f"{p:g}": metrics.min_dcf_of(rates, p) for p in metrics.P_TARGETS},
            "min_cllr": metrics.min_cllr_of(ranking, weights),
        }
        if llrs is not None:
            found["act_dcf"] = {
                f"{p:g}": metrics.act_dcf(labels, llrs, p, weights=weights)
                for p in metrics.P_TARGETS
            }
            found["cllr"] = metrics.cllr(labels, llrs, weights)
        return found

    found = figures(None)
    counts = {"targets": int(labels.sum()), "nontargets": int((~labels).sum())}
    intervals = {}
    enrolment, test = scored.enrolment_speaker, scored.test_speaker
    if enrolment is not None and test is not None:
        speakers = enrolment, test
        counts["speakers"] = len(np.union1d(*speakers))
        if count and counts["speakers"] >= FEWEST_SPEAKERS:
            drawn = replicates(
                lambda weights: np.array(_leaves(figures(weights))),
                labels,
                *speakers,
                seed=seed,
                count=count,
            )
            intervals = _like(found, iter(np.stack(interval(drawn), axis=1).tolist()))
    return Evaluation(scored, llrs, {**found, **counts}, intervals)


def compare(
    name: str, scored: Mapping[str, Sequence[Scores]], **options: Any
) -> list[ComparedMetric]:
    """The rows of a table about a list, `name`, which all runs of all systems have scored by
    speaker. `options` as of `comparison.compare`."""
    return compare_folds(name, [scored], **options)


def compare_folds(
    name: str, folds: Sequence[Mapping[str, Sequence[Scores]]], **options: Any
) -> list[ComparedMetric]:
    """The same of a list in several folds: parts of it, of the speakers of one folder, which other
    runs of the same systems have scored, as many for each fold."""
    labels, enrolment, test = [], [], []
    scores: dict[str, list[list[np.ndarray]]] = {}  # by system and run
    for scored in folds:
        of_list = next(iter(scored.values()))[0]
        speakers = of_list.enrolment_speaker, of_list.test_speaker
        assert speakers[0] is not None and speakers[1] is not None  # `score` says who speaks
        labels.append(of_list.trials.labels)
        enrolment.append(speakers[0])
        test.append(speakers[1])
        for system, runs in scored.items():
            of_system = scores.setdefault(system, [[] for _ in runs])
            for parts, run in zip(of_system, runs, strict=True):
                parts.append(run.scores)
    ends = np.cumsum([0, *map(len, labels)]).tolist()
    joined = {system: [*map(np.concatenate, runs)] for system, runs in scores.items()}
    return comparison.compare(
        name,
        np.concatenate(labels),
        np.concatenate(enrolment),
        np.concatenate(test),
        joined,
        parts=[slice(*both) for both in itertools.pairwise(ends)],
        **options,
    )


@dataclass(frozen=True)
class _Voices:
    """Who is compared with whom: a voice is an utterance, or a model enrolled with several."""

    utterance: np.ndarray  # (w,) rows of the corpus
    voice: np.ndarray  # (w,) ascending: the voice that each belongs to
    enrolment: np.ndarray  # (m,) voices
    test: np.ndarray  # (m,)
    names: list[str]

    @classmethod
    def of(
        cls,
        named: NamedTrials,
        models: Mapping[str, Sequence[str]] | None,
        corpus: Corpus,
        trials: str | Path,
        enrolment: str | Path | None,
    ) -> _Voices:
        """Raises UserError naming the first model or file that is not there."""
        enrolled: Sequence[str | tuple[str]] = named.enrolment
        members: dict[tuple[str], Sequence[str]] = {}
        if models is not None:
            unknown = next((name for name in named.enrolment if name not in models), None)
            if unknown is not None:
                raise UserError(
                    f"{trials} names the model {unknown}, which {enrolment} does not enrol: "
                    "correct one of them"
                )
            # A model and an utterance may have one name.
            enrolled = [(name,) for name in named.enrolment]
            members = {(name,): models[name] for name in named.enrolment}
        sides = dict.fromkeys([*enrolled, *named.test])
        number = {side: i for i, side in enumerate(sides)}
        utterances = [[side] if isinstance(side, str) else members[side] for side in sides]
        wanted = [name for names in utterances for name in names]
        of_models = sum(len(names) for names in members.values())  # which come first
        rows = trial_lists.locate_names(wanted[of_models:], corpus, trials)
        if enrolment is not None and of_models:
            enrolled_rows = trial_lists.locate_names(wanted[:of_models], corpus, enrolment)
            rows = np.concatenate([enrolled_rows, rows])
        return cls(
            rows,
            np.repeat(np.arange(len(sides)), [len(names) for names in utterances]),
            np.array([number[side] for side in enrolled]),
            np.array([number[side] for side in named.test]),
            [side if isinstance(side, str) else side[0] for side in sides],
        )

    def speakers(self, corpus: Corpus, enrolment: str | Path | None) -> np.ndarray:
        """The speaker of each voice. Raises OtherSpeakers for a model of two."""
        speaker = corpus.speaker[self.utterance]
        first = speaker[np.searchsorted(self.voice, np.arange(len(self.names)))]
        wrong = speaker != first[self.voice]
        if wrong.any():
            model = self.names[self.voice[np.argmax(wrong)]]
            raise OtherSpeakers(
                f"{enrolment} enrols the model {model} with utterances of two folders, which are "
                "two speakers: correct it"
            )
        return first


def _cosines(embeddings: np.ndarray, enrolment: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(m,) float64, of pairs of L2-normalised embeddings (v, d)."""
    blocks = range(0, len(test), TRIALS_AT_ONCE)
    return np.concatenate(
        [
            np.einsum(
                "md,md->m",
                embeddings[enrolment[i : i + TRIALS_AT_ONCE]],
                embeddings[test[i : i + TRIALS_AT_ONCE]],
                dtype=np.float64,
            )
            for i in blocks
        ]
    )


def _leaves(figures: Mapping[str, Any]) -> list[float]:
    """The numbers of figures by name, in order."""
    return [
        leaf
        for value in figures.values()
        for leaf in (value.values() if isinstance(value, dict) else [value])
    ]


def _like(figures: Mapping[str, Any], leaves) -> dict[str, Any]:
    """Figures of the same names with other leaves."""
    return {
        name: {key: next(leaves) for key in value} if isinstance(value, dict) else next(leaves)
        for name, value in figures.items()
    }
