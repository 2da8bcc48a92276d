"""Audio -> int16 crops: only the crop is decoded. No jax here: data threads start fast.

A path is that of an audio file, or locates a record of a shard (`records.parse`).
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import stat
import subprocess
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import soxr

from chns_jax.common.errors import UserError
from chns_jax.corpus import records
from chns_jax.corpus.records import Record
from chns_jax.corpus.storage import is_url

EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a"})
# Codecs whose samples libsndfile holds as floats: they may be NaN, and may exceed 1.
FLOAT_SUBTYPES = frozenset({"FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III"})
RATES = 1000, 768_000  # hertz that speech may have
LARGEST_FLOAT = 16.0  # full scale is 1, which sums and filters exceed
LONGEST_SECONDS = 86_400  # a day: of a recording that is one utterance
MOST_SAMPLES = LONGEST_SECONDS * 48_000  # of all channels
MOST_CHANNELS = 128
BLOCK = 1 << 22  # samples decoded at once: a header may state more than there are
MOST_CHUNKS = 1000  # of a wav file, before its samples
# What may be in a .m4a: no playlist, which names other files, and nothing behind a URL.
FFMPEG_INPUT = ("-protocol_whitelist", "file", "-format_whitelist", "mov,aac,mp3,flac,wav,ogg")
STREAMED = 0x7FFFF000  # bytes; a wav that was piped states so many, or 0


class AudioError(Exception):
    """A file that cannot be used, and why: together one sentence."""

    def __init__(self, path: str, why: str):
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Header(NamedTuple):
    seconds: float
    rate: int


def read_header(path: str) -> Header:
    """Duration and sampling rate of a file, without decoding it. Raises AudioError, also for a wav
    file that is truncated."""
    try:
        _check_regular(path)
        if os.path.splitext(path)[1].lower() == ".m4a":
            return _ffprobe_header(path)
        _check_length(path)
        # Names may hold any bytes, of which the types of soundfile do not know.
        info = soundfile.info(os.fsencode(path))  # pyright: ignore[reportArgumentType]
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(
            path, f"is no audio that libsndfile reads: {_reason(error, path)}"
        ) from error
    if info.frames <= 0:
        raise AudioError(path, "holds no samples")
    return _believed(path, info.frames / max(1, info.samplerate), info.samplerate, info.channels)


def read_crop(path: str, position: float, samples: int, sample_rate: int) -> np.ndarray:
    """A mono crop (samples,) int16 at `sample_rate` hertz.

    `position` in [0, 1] is where the crop lies between the earliest and the latest possible one.
    A file that is shorter than the crop is repeated to fill it. Raises AudioError when the file
    cannot be decoded, is truncated, holds no samples, or has a `fault`.
    """
    crop = _decode(path, position, samples, sample_rate)
    return crop[:samples] if len(crop) >= samples else np.resize(crop, samples)


def read_whole(path: str, sample_rate: int) -> np.ndarray:
    """All samples (s,) int16, mono, at `sample_rate` hertz. Raises AudioError as `read_crop`."""
    return _decode(path, 0.0, None, sample_rate)


def to_int16(block: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """The mean of the channels of a block (s, channels), resampled and clipped: (s,) int16.

    `block` is int16, or float in [-1, 1].
    """
    if block.dtype != np.int16:
        block = block * 32768.0
    elif block.shape[1] == 1 and rate == sample_rate:
        return block[:, 0]
    mono = block.mean(axis=1, dtype=np.float32)
    if rate != sample_rate and len(mono):
        mono = soxr.resample(mono, rate, sample_rate)
    return np.clip(np.rint(mono), -32768, 32767).astype(np.int16)


def fault(block: np.ndarray) -> str | None:
    """What is wrong with samples that are floats; None when nothing is."""
    peak = np.abs(block).max(initial=0.0)  # NaN where there is one
    if not np.isfinite(peak):
        return "holds NaN or infinity"
    if peak > LARGEST_FLOAT:
        return "is far from [-1, 1]: divide it by its full scale"
    return None


def check(path: str, sample_rate: int) -> None:
    """Decode a whole file. Raises AudioError as `read_crop` does."""
    read_whole(path, sample_rate)


def exists(path: str) -> bool:
    """Whether there is such a file, or the shard of such a record; of a URL's it is assumed."""
    record = records.parse(path)
    if record is None:
        return os.path.exists(path)
    return is_url(record.shard) or os.path.exists(record.shard)


def _decode(path: str, position: float, samples: int | None, sample_rate: int) -> np.ndarray:
    """About `samples` samples (all: None) from `position`, or as many as there are."""
    record = records.parse(path)
    try:
        if record is None:
            _check_regular(path)
        if record is None and os.path.splitext(path)[1].lower() == ".m4a":
            crop = _ffmpeg_crop(path, position, samples, sample_rate)
        elif record is None:  # names may hold any bytes
            _check_length(path)
            crop = _libsndfile_crop(path, os.fsencode(path), position, samples, sample_rate)
        elif record.rate is None:
            file = io.BytesIO(records.read(record, 0, record.size))
            crop = _libsndfile_crop(path, file, position, samples, sample_rate)
        else:
            crop = _raw_crop(record, record.rate, position, samples, sample_rate)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(path, f"cannot be decoded: {_reason(error, path)}") from error
    if len(crop) == 0:
        raise AudioError(path, "holds no samples")
    return crop


def _window(
    frames: int, rate: int, position: float, samples: int | None, sample_rate: int
) -> tuple[int, int]:
    """First frame and number of frames, at `rate`, of a crop of `samples` at `sample_rate`."""
    if samples is None:
        return 0, frames
    wanted = math.ceil(samples * rate / sample_rate)
    spare = max(0, frames - wanted)
    return min(int(position * (spare + 1)), spare), min(wanted, frames)


def _libsndfile_crop(
    path: str, source: bytes | io.BytesIO, position: float, samples: int | None, sample_rate: int
) -> np.ndarray:
    with soundfile.SoundFile(source) as file:  # pyright: ignore[reportArgumentType]
        rate = file.samplerate
        _believed(path, file.frames / max(1, rate), rate, file.channels)
        first, wanted = _window(file.frames, rate, position, samples, sample_rate)
        if first:
            file.seek(first)
        is_float = file.subtype in FLOAT_SUBTYPES
        block = _read(file, wanted, "float32" if is_float else "int16")
    if len(block) < wanted:
        raise AudioError(path, f"is truncated: {len(block)} samples where {wanted} should be")
    wrong = fault(block) if is_float else None
    if wrong:
        raise AudioError(path, wrong)
    return to_int16(block, rate, sample_rate)


def _read(file: soundfile.SoundFile, wanted: int, dtype: Literal["int16", "float32"]) -> np.ndarray:
    """As many samples (s, channels) as there are, `wanted` at most."""
    at_once = BLOCK // file.channels
    blocks = [file.read(min(wanted, at_once), dtype=dtype, always_2d=True)]
    while len(blocks[-1]) == at_once:
        left = wanted - at_once * len(blocks)
        blocks.append(file.read(min(left, at_once), dtype=dtype, always_2d=True))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _believed(path: str, seconds: float, rate: int, channels: int = 1) -> Header:
    """What a header states. Raises AudioError when no recording of speech is so."""
    lowest, highest = RATES
    if not lowest <= rate <= highest:
        raise AudioError(path, f"states {rate} hertz, where speech has {lowest} to {highest}")
    if channels > MOST_CHANNELS:
        raise AudioError(path, f"states {channels} channels, more than {MOST_CHANNELS}")
    if not (seconds <= LONGEST_SECONDS and seconds * rate * channels <= MOST_SAMPLES):
        raise AudioError(path, f"states {seconds / 3600:,.0f} hours, too many: cut it into parts")
    return Header(seconds, rate)


def _check_regular(path: str) -> None:
    """Raises AudioError for what is not there, and for a pipe, a socket or a device, which are not
    opened; and OSError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(path, "does not exist") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(mode):
        raise AudioError(path, "is a pipe, a socket or a device, and no file")


def _check_length(path: str) -> None:
    """Raises AudioError for a wav file that ends before its samples do, and OSError; libsndfile
    reads what there is."""
    if os.path.splitext(path)[1].lower() != ".wav":
        return
    with open(path, "rb", buffering=0) as file:
        if file.read(12)[:4] != b"RIFF":
            return
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                missing = file.tell() + size - os.fstat(file.fileno()).st_size
                if missing > 0 and size < STREAMED:
                    raise AudioError(path, f"is truncated: {missing} of {size} bytes are missing")
            if head[:4] == b"data" or len(head) < 8:
                return
            file.seek(size + size % 2, os.SEEK_CUR)
    raise AudioError(path, f"has {MOST_CHUNKS} chunks and no samples")


def _raw_crop(
    record: Record, rate: int, position: float, samples: int | None, sample_rate: int
) -> np.ndarray:
    first, wanted = _window(record.size // 2, rate, position, samples, sample_rate)
    raw = records.read(record, 2 * first, 2 * (first + wanted))
    return to_int16(np.frombuffer(raw, "<i2")[:, None], rate, sample_rate)


def _ffprobe_header(path: str) -> Header:
    fields = "format=duration:stream=sample_rate"
    answer = _run_ffmpeg(
        path, "ffprobe", *FFMPEG_INPUT, "-select_streams", "a:0", "-show_entries", fields,
        "-of", "json", f"file:{path}",
    )  # fmt: skip
    try:
        found = json.loads(answer)
        seconds, rate = float(found["format"]["duration"]), int(found["streams"][0]["sample_rate"])
    except (ValueError, KeyError, IndexError) as error:
        raise AudioError(path, "holds no audio that ffmpeg reads") from error
    if seconds <= 0:
        raise AudioError(path, "holds no samples")
    return _believed(path, seconds, rate)


def _ffmpeg_crop(path: str, position: float, samples: int | None, sample_rate: int) -> np.ndarray:
    window = ("-t", str(LONGEST_SECONDS))
    if samples is not None:
        seconds = samples / sample_rate
        start = position * max(0.0, _ffprobe_header(path).seconds - seconds)
        window = ("-ss", f"{start:.6f}", "-t", f"{seconds:.6f}")
    raw = _run_ffmpeg(
        path, "ffmpeg", *FFMPEG_INPUT, *window, "-i", f"file:{path}",
        "-map", "0:a:0", "-ac", "1", "-ar", str(sample_rate), "-f", "s16le", "-",
    )  # fmt: skip
    return np.frombuffer(raw, dtype="<i2")


def _run_ffmpeg(path: str, program: str, *arguments: str) -> bytes:
    if shutil.which(program) is None:
        raise UserError(
            f"{path} is m4a, which needs {program}: install ffmpeg or convert the file to FLAC"
        )
    command = [program, "-v", "error", *arguments]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1].removeprefix(f"file:{path}: ") if said else program
        raise AudioError(path, f"cannot be decoded: {reason}")
    return done.stdout


def _reason(error: Exception, path: str) -> str:
    """What libsndfile or the system said, without the path that it repeats."""
    if isinstance(error, FileNotFoundError) or not exists(path):
        return "the file does not exist"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    reason = getattr(error, "strerror", None) or str(error)
    return reason.rsplit(": ", 1)[-1].rstrip(".")
