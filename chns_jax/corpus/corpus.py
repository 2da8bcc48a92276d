"""What speakers, recordings and utterances there are, as arrays."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from chns_jax.common import arrays
from chns_jax.common.errors import UserError


class Strings(Sequence[str]):
    """Immutable strings in two arrays: a million paths are no million Python objects."""

    def __init__(self, text: np.ndarray, end: np.ndarray):
        self.text, self.end = text, end

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        packer = Packer()
        for string in strings:
            packer.add(string)
        return packer.strings()

    @classmethod
    def held(cls, held: Mapping[str, np.ndarray], prefix: str = "") -> Strings:
        """Those of a file, under <prefix>text and <prefix>end. Raises Damaged."""
        text = arrays.need(held, f"{prefix}text", "u", 1)
        end = arrays.need(held, f"{prefix}end", "i", 1)
        lengths = np.diff(end, prepend=0)
        if text.itemsize != 1 or lengths.min(initial=0) < 0 or lengths.sum() != len(text):
            raise arrays.Damaged(f"holds no strings under {prefix}end")
        return cls(text, end)

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, i: int | np.integer) -> str:
        start = self.end[i - 1] if i else 0
        return os.fsdecode(self.text[start : self.end[i]].tobytes())

    def select(self, kept: np.ndarray) -> Strings:
        """The strings where `kept`, a boolean array, is true."""
        length = np.diff(self.end, prepend=0)
        return Strings(self.text[np.repeat(kept, length)], np.cumsum(length[kept]))

    def followed_by(self, other: Strings) -> Strings:
        shift = self.end[-1] if len(self) else 0
        both = np.concatenate([self.text, other.text])
        return Strings(both, np.concatenate([self.end, other.end + shift]))


class Packer:
    """Strings on their way into `Strings`, one after another."""

    def __init__(self) -> None:
        self._text, self._end = bytearray(), array("q")

    def add(self, string: str) -> None:
        self._text += os.fsencode(string)
        self._end.append(len(self._text))

    def strings(self) -> Strings:
        return Strings(np.frombuffer(bytes(self._text), np.uint8), np.array(self._end, np.int64))


class Broken(NamedTuple):
    """A file that cannot be used."""

    name: str
    path: str
    why: str


@dataclass(frozen=True)
class Corpus:
    """Utterances, sorted by speaker and recording. One row of every array is one utterance."""

    roots: tuple[str, ...]
    speakers: np.ndarray  # (n,) str: names of the speakers, distinct
    names: Strings  # what a trial list calls the utterance
    files: Strings  # path, relative to its root unless absolute
    root: np.ndarray  # (u,) uint8: index into roots
    speaker: np.ndarray  # (u,) int32, ascending
    recording: np.ndarray  # (u,) int32, ascending
    seconds: np.ndarray  # (u,) float32
    rate: np.ndarray  # (u,) int32, hertz; 0 where utt2dur gave the duration
    broken: tuple[Broken, ...] = ()  # files left out
    speed: np.ndarray | None = None  # (u,) float64: how fast each is played; None: all as they are

    def __len__(self) -> int:
        return len(self.speaker)

    def path(self, utterance: int | np.integer) -> str:
        """The file of an utterance."""
        return os.path.join(self.roots[self.root[utterance]], self.files[utterance])

    @cached_property
    def speaker_start(self) -> np.ndarray:
        """(n + 1,): speaker i's utterances are rows speaker_start[i] : speaker_start[i + 1]."""
        return np.searchsorted(self.speaker, np.arange(len(self.speakers) + 1))

    @cached_property
    def recording_start(self) -> np.ndarray:
        """(u,): the first row of the recording that each utterance is from."""
        return np.searchsorted(self.recording, self.recording, side="left")

    @cached_property
    def recording_end(self) -> np.ndarray:
        """(u,): one past the last row of the recording that each utterance is from."""
        return np.searchsorted(self.recording, self.recording, side="right")

    def rows(self, names: Iterable[str]) -> dict[str, int]:
        """Row of each of `names` that this corpus has."""
        wanted = set(names)
        return {name: row for row, name in enumerate(self.names) if name in wanted}

    def evenly_spaced(self, per_speaker: int) -> np.ndarray:
        """Rows (v,), ascending: of each speaker `per_speaker` utterances at most, evenly spaced
        from the first to the last."""
        per_speaker = min(per_speaker, int(np.diff(self.speaker_start).max(initial=0)))
        first, last = self.speaker_start[:-1, None], self.speaker_start[1:, None] - 1
        taken = np.minimum(last - first + 1, per_speaker)
        step = (last - first) / np.maximum(taken - 1, 1)
        rows = first + np.rint(np.arange(per_speaker) * step).astype(np.int64)
        return rows[np.arange(per_speaker) < taken]

    def select(self, speakers: np.ndarray) -> Corpus:
        """The corpus of those speakers alone where `speakers`, (n,) bool, is true."""
        return self.only(speakers[self.speaker])

    def only(self, kept: np.ndarray) -> Corpus:
        """The corpus of those utterances alone where `kept`, (u,) bool, is true."""
        present = np.zeros(len(self.speakers), bool)
        present[self.speaker[kept]] = True
        names = self.names.select(kept)
        return replace(
            self,
            speakers=self.speakers[present],
            names=names,
            files=names if self.files is self.names else self.files.select(kept),
            root=self.root[kept],
            speaker=consecutive(self.speaker[kept]),
            recording=consecutive(self.recording[kept]),
            seconds=self.seconds[kept],
            rate=self.rate[kept],
            speed=None if self.speed is None else self.speed[kept],
        )


def join(corpora: Sequence[Corpus]) -> Corpus:
    """One corpus of several roots. Raises UserError when two hold a speaker of the same name."""
    joined = corpora[0]
    for other in corpora[1:]:
        twice = np.intersect1d(joined.speakers, other.speakers)
        if len(twice):
            of_them = joined.speaker == np.flatnonzero(joined.speakers == twice[0])[0]
            root = joined.roots[joined.root[np.argmax(of_them)]]
            raise UserError(
                f"speaker {twice[0]} is both in {root} and in {other.roots[0]}: "
                "rename one, or put both folders' recordings of the speaker under one root"
            )
        joined = Corpus(
            roots=joined.roots + other.roots,
            speakers=np.concatenate([joined.speakers, other.speakers]),
            names=joined.names.followed_by(other.names),
            files=joined.files.followed_by(other.files),
            root=np.concatenate([joined.root, other.root + np.uint8(len(joined.roots))]),
            speaker=np.concatenate([joined.speaker, other.speaker + len(joined.speakers)]),
            recording=np.concatenate(
                [joined.recording, other.recording + joined.recording[-1] + 1]
            ),
            seconds=np.concatenate([joined.seconds, other.seconds]),
            rate=np.concatenate([joined.rate, other.rate]),
            broken=joined.broken + other.broken,
        )
    return joined


def consecutive(ascending: np.ndarray) -> np.ndarray:
    """Ascending integers renumbered 0, 1, 2, ... without gaps."""
    if not len(ascending):
        return ascending.astype(np.int32)
    return np.cumsum(np.diff(ascending, prepend=ascending[0]) > 0).astype(np.int32)
