"""Who is trained on, and who validates: never the same speakers."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import BUILTIN_VOICES, Config, Data
from chns_jax.corpus import trials as trial_lists
from chns_jax.corpus.corpus import Broken, Corpus, join
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.trials import Trials

VOICES_VERSION = 2  # part of the cache's name: raise it whenever the voices sound different


class Split(NamedTuple):
    training: Corpus
    validation: Corpus | None  # what the trials' rows are of
    trials: dict[str, Trials]  # by the lists' names; the first is the main one
    broken: tuple[Broken, ...]  # files that could not be read


def make_split(config: Config) -> Split:
    """Index the corpora of a config and divide their speakers.

    Speakers named in `data.trials`, or `data.held_out` drawn ones, are taken out of training, and
    so is everyone with a single utterance, who has no positive. Held-out built-in voices make two
    lists, the second of impostors of one family. Raises UserError when nobody is left, or when the
    trials name a file that is not there.
    """
    data = config.data
    roots = [_root(config), *data.more_roots]
    _check_roots(roots)
    main, *others = (open_corpus(root, data.cache) for root in roots)
    everyone = join([main, *others])
    if everyone.broken and not len(everyone):
        path, why = everyone.broken[0].path, everyone.broken[0].why
        raise UserError(
            f"none of the {len(everyone.broken)} files of {main.roots[0]} can be used: "
            f"{path} first: {why}"
        )
    validation, trials, withheld = None, {}, np.array([], dtype=str)
    if data.trials:
        paths = data.trial_lists
        lists = dict(zip(trial_lists.list_names(paths), paths, strict=True))
        named = {name: trial_lists.read(path) for name, path in lists.items()}
        validation = open_corpus(data.trials_root, data.cache) if data.trials_root else main
        trials = {
            name: trial_lists.locate(named[name], validation, path) for name, path in lists.items()
        }
        withheld = validating_speakers(validation, trials)
    elif data.held_out:
        withheld = _draw_held_out(main, data.held_out, config.training.seed)
        validation = main.select(np.isin(main.speakers, withheld))
        trials = make_trials(validation, config)
    lonely = np.diff(everyone.speaker_start) < 2
    if lonely.any():
        warnings.warn(
            f"{lonely.sum()} speakers with a single utterance are left out of training, as they "
            f"have no positive: {everyone.speakers[np.argmax(lonely)]} first",
            stacklevel=2,
        )
    kept = ~lonely & ~np.isin(everyone.speakers, withheld)
    if not kept.any():
        raise UserError(
            f"no speaker of {everyone.roots[0]} is left to train on: of {len(everyone.speakers)}, "
            f"{len(withheld)} validate and {lonely.sum()} have a single utterance"
        )
    return Split(everyone.select(kept), validation, trials, everyone.broken)


def open_main(config: Config) -> Corpus:
    """The corpus of `data.root`; the built-in one is written first where it is missing."""
    return open_corpus(_root(config), config.data.cache)


def validating_speakers(validation: Corpus, trials: Mapping[str, Trials]) -> np.ndarray:
    """Names of the speakers of any of the lists."""
    rows = trial_lists.utterances_of(trials.values())
    return validation.speakers[np.unique(validation.speaker[rows])]


def draw_speakers(corpus: Corpus, count: int, seed: int) -> np.ndarray:
    """Names of `count` speakers."""
    return generator(seed, Purpose.HELD_OUT).choice(corpus.speakers, count, replace=False)


def make_trials(held_out: Corpus, config: Config) -> dict[str, Trials]:
    """Trials of all held-out speakers; of built-in voices also with impostors of one family, where
    two are of one."""
    make = partial(
        trial_lists.make, held_out, max_trials=config.validation.max_trials,
        seed=config.training.seed,
    )  # fmt: skip
    made = {"all": make()}
    if config.data.root == BUILTIN_VOICES:
        from chns_jax.corpus.voices import families_of

        family = families_of(config.data.voices.seed, held_out.speakers)
        if len(np.unique(family)) < len(family):
            made["same_family"] = make(impostors=trial_lists.sharing(family))
    return made


def corpus_digest(training: Corpus, trials: Mapping[str, Trials]) -> str:
    """Of who is trained on and what validates: names and durations, labels and rows."""
    arrays = [training.names.text, training.names.end, training.seconds]
    for some in trials.values():
        arrays += [some.labels, some.enrolment, some.test]
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def voices_folder(data: Data) -> Path:
    """Where the built-in corpus is kept."""
    voices = data.voices
    about = f"{voices.seed}-{voices.speakers}x{voices.utterances}x{voices.seconds:g}"
    return Path(data.cache).expanduser() / f"voices-{VOICES_VERSION}-{about}"


def _root(config: Config) -> str | Path:
    """The folder of `data.root`; the built-in corpus is written first where it is missing."""
    if config.data.root != BUILTIN_VOICES:
        return config.data.root
    from chns_jax.corpus.synthetic import write_corpus

    voices = config.data.voices
    return write_corpus(
        voices_folder(config.data),
        seed=voices.seed,
        speakers=voices.speakers,
        utterances=voices.utterances,
        seconds=voices.seconds,
    )


def _draw_held_out(corpus: Corpus, count: int, seed: int) -> np.ndarray:
    if count >= len(corpus.speakers):
        raise UserError(
            f"data.held_out {count} leaves nobody to train on: "
            f"{corpus.roots[0]} has {len(corpus.speakers)} speakers"
        )
    return draw_speakers(corpus, count, seed)


def _check_roots(roots: Sequence[str | Path]) -> None:
    """Raises UserError for a folder that is given twice."""
    there = [os.path.realpath(os.path.expanduser(root)) for root in roots]
    for i, root in enumerate(there):
        if root in there[:i]:
            raise UserError(f"data.more_roots has {roots[i]}, which is given already: leave it out")
