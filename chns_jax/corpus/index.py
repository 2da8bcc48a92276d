"""The corpus in a folder, from the headers of its files; kept between runs."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common import arrays
from chns_jax.common.errors import NO_SPACE, UserError
from chns_jax.common.files import replacing
from chns_jax.common.progress import progress_bar
from chns_jax.corpus import kaldi, listing
from chns_jax.corpus.audio import EXTENSIONS, AudioError, read_header
from chns_jax.corpus.corpus import Broken, Corpus, Packer, Strings, consecutive
from chns_jax.corpus.listing import File

CACHE_FORMAT = 3
HEADER_THREADS = 16
HEADER_CHUNK = 4096
PLAIN = {  # arrays of a `_Found`, and their kinds
    "speakers": "U", "speaker": "i", "recording": "i", "size": "i", "time": "i",
    "stated": "f", "seconds": "f", "rate": "i",
}  # fmt: skip


def check_folder(root: str | Path) -> str:
    """The absolute path of a folder of speech. Raises UserError when there is none."""
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        wrong = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"the folder {root} {wrong}: give the folder of your speech")
    return root


def index_folder(root: str | Path, cache: str | Path) -> Corpus:
    """The corpus in the folder or Kaldi data folder `root`.

    Durations come from headers and are kept in folder `cache`; only files that are new, or whose
    size or time changed, are opened again. Files that cannot be read are listed in `broken`.
    Raises UserError when there is no such folder or no audio in it.
    """
    root = check_folder(root)
    is_kaldi = os.path.isfile(os.path.join(root, "wav.scp"))
    found = _Found.of((kaldi if is_kaldi else listing).utterances(root))
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


def cache_file(root: str, cache: str | Path) -> Path:
    """Where the index of `root` is kept."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Path(cache).expanduser() / f"index-{digest}.npz"


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
    def of(cls, found: Iterable[File]) -> _Found:
        speakers: list[str] = []
        # Arrays and not lists: a million files are listed in tens of megabytes.
        speaker, recording, size, time = (array("q") for _ in range(4))
        seconds = array("d")
        last_recording: str | None = None
        names, files = Packer(), Packer()
        for file in progress_bar(found, what="listing files", unit="file"):
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
            names.add(file.name)
            if file.file is not file.name:
                files.add(file.file)
        named, filed = names.strings(), files.strings()
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
        broken = zip(np.flatnonzero(~good).tolist(), self.reasons, strict=True)
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
    bar = progress_bar(what="reading headers", unit="file", total=len(unknown))
    with bar, ThreadPoolExecutor(HEADER_THREADS) as pool:
        for start in range(0, len(unknown), HEADER_CHUNK):
            chunk = unknown[start : start + HEADER_CHUNK].tolist()
            for row, answer in zip(chunk, pool.map(header, chunk), strict=True):
                if isinstance(answer, str):
                    seconds[row] = -1
                    reasons.append(answer)
                else:
                    seconds[row], rate[row] = answer
            bar.update(len(chunk))
    return replace(found, seconds=seconds, rate=rate, reasons=Strings.of(reasons))


def _save(path: Path, found: _Found) -> None:
    kept: dict[str, Any] = {"format": np.array(CACHE_FORMAT)}
    for field, value in vars(found).items():
        if isinstance(value, Strings):
            if field == "files" and found.files is found.names:
                continue
            kept[f"{field}.text"], kept[f"{field}.end"] = value.text, value.end
        else:
            kept[field] = value
    try:
        with replacing(path, "wb") as file:
            np.savez(file, **kept)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise UserError(
            f"{path.name} cannot be kept in the cache {path.parent}: {error.strerror}: give "
            "another folder for it"
        ) from error


def _load(path: Path) -> _Found | None:
    """The index kept at `path`; None when there is none that is whole and of this version."""
    try:
        held = arrays.load(path)
        if int(arrays.need(held, "format", "i", 0)) != CACHE_FORMAT:
            return None
        fields: dict[str, Any] = {
            field: Strings.held(held, f"{field}.")
            for field in ("names", "files", "reasons")
            if f"{field}.text" in held
        }
        fields.setdefault("files", fields["names"])
        fields |= {name: arrays.need(held, name, kind, 1) for name, kind in PLAIN.items()}
        found = _Found(**fields)
    except (OSError, KeyError, TypeError, arrays.Damaged):
        return None
    rows = (value for name, value in vars(found).items() if name not in ("speakers", "reasons"))
    is_whole = (
        all(len(value) == len(found.names) for value in rows)
        and np.isfinite(found.seconds).all()
        and len(found.reasons) == np.count_nonzero(found.seconds <= 0)
    )
    return found if is_whole else None
