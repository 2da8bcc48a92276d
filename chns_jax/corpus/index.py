"""What speakers, recordings and utterances there are, as arrays; cached between runs."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from chns_jax.corpus.audio import EXTENSIONS, AudioError, read_header
from chns_jax.errors import UserError
from chns_jax.files import replacing

CACHE_FORMAT = 2
HEADER_THREADS = 16
HEADER_CHUNK = 4096


class Strings(Sequence[str]):
    """Immutable strings in two arrays: a million paths are no million Python objects."""

    def __init__(self, text: np.ndarray, end: np.ndarray):
        self.text, self.end = text, end

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        text, end = bytearray(), []
        for string in strings:
            text += os.fsencode(string)
            end.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(end, np.int64))

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, i: int) -> str:
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

    def __len__(self) -> int:
        return len(self.speaker)

    def path(self, utterance: int) -> str:
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
        )


def index(root: str | Path, cache: str | Path) -> Corpus:
    """The corpus in folder `root`: <speaker>/<recording>/<utterance>.<ext>,
    <speaker>/<utterance>.<ext> (each file a recording of its own), a Kaldi data folder, or one
    that `chns_jax.prepare` wrote, which may be an fsspec URL.

    Durations come from headers and are kept in folder `cache`; only files that are new, or whose
    size or time changed, are opened again. Files that cannot be read are listed in `broken`.
    Raises UserError when there is no such folder or no audio in it.
    """
    from chns_jax.corpus import shards  # which imports this module

    if shards.is_prepared(root):
        return shards.load(root)
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        wrong = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"the folder {root} {wrong}: give the folder of your speech")
    is_kaldi = os.path.isfile(os.path.join(root, "wav.scp"))
    found = _Found.of((_kaldi if is_kaldi else _walk)(root))
    if not len(found.names) and is_kaldi:
        raise UserError(f"{root}/wav.scp lists no utterances")
    if not len(found.names):
        raise UserError(
            f"the folder {root} holds no audio ({', '.join(sorted(EXTENSIONS))}) "
            "in <speaker>/<utterance> or <speaker>/<recording>/<utterance>"
        )
    cached_at = cache_file(root, cache)
    known = _load(cached_at)
    if known is None or not known.same_files(found):
        known = _read_headers(root, found, known)
        _save(cached_at, known)
    return known.corpus(root)


def join(corpora: Sequence[Corpus]) -> Corpus:
    """One corpus of several roots. Raises UserError when two hold a speaker of the same name."""
    joined = corpora[0]
    for other in corpora[1:]:
        twice = np.intersect1d(joined.speakers, other.speakers)
        if len(twice):
            raise UserError(
                f"speaker {twice[0]} is both in {joined.roots[0]} and in {other.roots[0]}: "
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


def cache_file(root: str, cache: str | Path) -> Path:
    """Where the index of `root` is kept."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Path(cache).expanduser() / f"index-{digest}.npz"


class _File(NamedTuple):
    speaker: str
    recording: str | None  # None: the file is a recording of its own
    name: str
    file: str
    size: int
    time: int  # nanoseconds
    seconds: float | None = None  # known without opening the file


@dataclass(frozen=True)
class _Found:
    """What a root holds, before or after headers were read; sorted as a Corpus is."""

    speakers: np.ndarray
    names: Strings
    files: Strings
    speaker: np.ndarray
    recording: np.ndarray
    size: np.ndarray
    time: np.ndarray
    stated: np.ndarray  # seconds that utt2dur gives, NaN where it does not
    seconds: np.ndarray  # -1 where the file is broken, NaN before its header is read
    rate: np.ndarray
    reasons: Strings  # why each broken file is broken, in order of rows

    @classmethod
    def of(cls, found: Iterable[_File]) -> _Found:
        speakers: list[str] = []
        # Arrays and not lists: a million files are listed in tens of megabytes.
        speaker, recording, size, time = (array("q") for _ in range(4))
        seconds = array("d")
        last_recording: str | None = None
        names, files = bytearray(), bytearray()
        name_end, file_end = array("q"), array("q")
        for file in tqdm(found, desc="listing files", unit="file", disable=None, leave=False):
            if not speakers or speakers[-1] != file.speaker:
                speakers.append(file.speaker)
                last_recording = None
            same = file.recording is not None and file.recording == last_recording
            recording.append(recording[-1] + (not same) if recording else 0)
            last_recording = file.recording
            speaker.append(len(speakers) - 1)
            size.append(file.size)
            time.append(file.time)
            seconds.append(np.nan if file.seconds is None else file.seconds)
            names += os.fsencode(file.name)
            name_end.append(len(names))
            if file.file is not file.name:
                files += os.fsencode(file.file)
                file_end.append(len(files))
        named = Strings(np.frombuffer(bytes(names), np.uint8), np.array(name_end, np.int64))
        filed = Strings(np.frombuffer(bytes(files), np.uint8), np.array(file_end, np.int64))
        return cls(
            speakers=np.array(speakers, dtype=str),
            names=named,
            files=filed if len(filed) else named,
            speaker=np.array(speaker, np.int32),
            recording=np.array(recording, np.int32),
            size=np.array(size, np.int64),
            time=np.array(time, np.int64),
            stated=np.array(seconds, np.float32),
            seconds=np.array(seconds, np.float32),
            rate=np.zeros(len(speaker), np.int32),
            reasons=Strings.of([]),
        )

    def same_files(self, other: _Found) -> bool:
        """Whether `other` lists the same files, unchanged, of the same speakers and recordings."""
        pairs = [
            (self.names.text, other.names.text), (self.names.end, other.names.end),
            (self.files.text, other.files.text), (self.size, other.size), (self.time, other.time),
            (self.speakers, other.speakers), (self.speaker, other.speaker),
            (self.recording, other.recording),
        ]  # fmt: skip
        return np.array_equal(self.stated, other.stated, equal_nan=True) and all(
            np.array_equal(mine, theirs) for mine, theirs in pairs
        )

    def corpus(self, root: str) -> Corpus:
        """Without the broken files, and without speakers who have no others."""
        good = self.seconds > 0
        broken = zip(np.flatnonzero(~good), self.reasons, strict=True)
        names = self.names.select(good)
        present = np.zeros(len(self.speakers), bool)
        present[self.speaker[good]] = True
        return Corpus(
            roots=(root,),
            speakers=self.speakers[present],
            names=names,
            files=names if self.files is self.names else self.files.select(good),
            root=np.zeros(int(good.sum()), np.uint8),
            speaker=consecutive(self.speaker[good]),
            recording=consecutive(self.recording[good]),
            seconds=self.seconds[good],
            rate=self.rate[good],
            broken=tuple(
                Broken(self.names[row], os.path.join(root, self.files[row]), why)
                for row, why in broken
            ),
        )


def _walk(root: str) -> Iterator[_File]:
    """Audio files under <root>/<speaker>/, sorted by speaker, recording and name."""
    for speaker in sorted(os.listdir(root)):
        if not speaker.startswith(".") and os.path.isdir(os.path.join(root, speaker)):
            yield from _walk_speaker(root, speaker, speaker, None)


def _walk_speaker(root: str, speaker: str, folder: str, recording: str | None) -> Iterator[_File]:
    with os.scandir(os.path.join(root, folder)) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        name = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.is_symlink() and leads_up(entry.path):
                continue
            yield from _walk_speaker(root, speaker, name, name)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            try:
                stat = entry.stat()
                yield _File(speaker, recording, name, name, stat.st_size, stat.st_mtime_ns)
            except FileNotFoundError:  # a link to nowhere: reading it will say so
                yield _File(speaker, recording, name, name, 0, 0)


def leads_up(link: str) -> bool:
    """Whether a link leads to a folder that it lies in, so that following it would never end."""
    here, there = (os.path.join(os.path.realpath(p), "") for p in (os.path.dirname(link), link))
    return here.startswith(there)


def _kaldi(root: str) -> Iterator[_File]:
    """Utterances of a Kaldi data folder, sorted by speaker.

    Kaldi does not say which utterances are of one recording. Where an utterance's name is
    <speaker><separator><recording><separator><utterance>, as in VoxCeleb's recipe, the middle is
    taken for it; otherwise every utterance is a recording of its own.
    """
    if os.path.exists(os.path.join(root, "segments")):
        raise UserError(f"{root}/segments is not supported: cut the recordings into files first")
    paths = read_wav_scp(root, "wav.scp")
    if os.path.isfile(os.path.join(root, "utt2spk")):
        speakers = _kaldi_table(root, "utt2spk")
    elif os.path.isfile(os.path.join(root, "spk2utt")):
        listed = _kaldi_table(root, "spk2utt")
        speakers = {name: speaker for speaker, names in listed.items() for name in names.split()}
    else:
        raise UserError(f"{root} has neither utt2spk nor spk2utt: add one, to name the speakers")
    has_durations = os.path.isfile(os.path.join(root, "utt2dur"))
    durations = _kaldi_table(root, "utt2dur") if has_durations else {}
    files = []
    for name, path in paths.items():
        if name not in speakers:
            raise UserError(f"{root}/utt2spk does not name the speaker of {name}: add the line")
        speaker = speakers[name]
        middle = name.removeprefix(speaker).strip("-_/").replace("_", "-").replace("/", "-")
        recording = middle.rpartition("-")[0] if name.startswith(speaker) else ""
        try:
            stat = os.stat(os.path.join(root, path))
            size, time = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, time = 0, 0
        seconds = _stated_seconds(root, name, durations[name]) if name in durations else None
        if size == 0:
            seconds = None  # no duration makes a missing or empty file usable
        files.append(_File(speaker, recording or None, name, path, size, time, seconds))
    yield from sorted(files, key=lambda file: (file.speaker, file.recording or "", file.name))


def read_wav_scp(root: str, table: str) -> dict[str, str]:
    """The path of each utterance that a Kaldi `wav.scp` lists, as it is written.

    Raises UserError for a line without a path, or with a command.
    """
    paths = _kaldi_table(root, table)
    for name, path in paths.items():
        if path.endswith("|"):
            raise UserError(
                f"{os.path.join(root, table)} reads {name} from a command, which is not "
                "supported: write its output to a file and list that"
            )
    return paths


def _stated_seconds(root: str, name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{root}/utt2dur has no number of seconds for {name}: {text}")
    return seconds


def _kaldi_table(root: str, table: str) -> dict[str, str]:
    rows = {}
    path = os.path.join(root, table)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            key, _, value = line.strip().partition(" ")
            if not key:
                continue
            if not value.strip():
                raise UserError(
                    f"{root}/{table} line {number} has no second column: {line.strip()}"
                )
            rows[key] = value.strip()
    return rows


def _read_headers(root: str, found: _Found, known: _Found | None) -> _Found:
    """`found` with durations and rates, from `known` where a file has not changed since."""
    seconds, rate = found.seconds.copy(), found.rate.copy()
    if known is not None:
        row_of = {name: row for row, name in enumerate(known.names)}
        for row, name in enumerate(found.names):
            old = row_of.get(name)
            unchanged = (
                old is not None
                and known.rate[old] > 0  # its header was read
                and (known.size[old], known.time[old]) == (found.size[row], found.time[row])
                and known.files[old] == found.files[row]
            )
            if unchanged and np.isnan(seconds[row]):
                seconds[row], rate[row] = known.seconds[old], known.rate[old]
    reasons = []

    def header(row: int):
        try:
            return read_header(os.path.join(root, found.files[row]))
        except AudioError as error:
            return error.why

    unknown = np.flatnonzero(np.isnan(seconds))
    bar = tqdm(total=len(unknown), desc="reading headers", unit="file", disable=None, leave=False)
    with bar, ThreadPoolExecutor(HEADER_THREADS) as pool:
        for start in range(0, len(unknown), HEADER_CHUNK):
            chunk = unknown[start : start + HEADER_CHUNK]
            for row, answer in zip(chunk, pool.map(header, chunk), strict=True):
                if isinstance(answer, str):
                    seconds[row] = -1
                    reasons.append(answer)
                else:
                    seconds[row], rate[row] = answer
            bar.update(len(chunk))
    return replace(found, seconds=seconds, rate=rate, reasons=Strings.of(reasons))


def _save(path: Path, found: _Found) -> None:
    arrays = {"format": np.array(CACHE_FORMAT)}
    for field, value in vars(found).items():
        if isinstance(value, Strings):
            if field == "files" and found.files is found.names:
                continue
            arrays[f"{field}.text"], arrays[f"{field}.end"] = value.text, value.end
        else:
            arrays[field] = value
    with replacing(path, "wb") as file:
        np.savez(file, **arrays)


def _load(path: Path) -> _Found | None:
    """The index kept at `path`; None when there is none, or it is not one of this version."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if int(arrays["format"]) != CACHE_FORMAT:
                return None
            strings = {
                field: Strings(arrays[f"{field}.text"], arrays[f"{field}.end"])
                for field in ("names", "files", "reasons")
                if f"{field}.text" in arrays
            }
            strings.setdefault("files", strings["names"])
            plain = "speakers speaker recording size time stated seconds rate".split()
            return _Found(**strings, **{field: arrays[field] for field in plain})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def consecutive(ascending: np.ndarray) -> np.ndarray:
    """Ascending integers renumbered 0, 1, 2, ... without gaps."""
    if not len(ascending):
        return ascending.astype(np.int32)
    return np.cumsum(np.diff(ascending, prepend=ascending[0]) > 0).astype(np.int32)
