"""Audio files -> int16 crops: only the crop is decoded. No jax here: data threads start fast."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from chns_jax.errors import UserError

EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a"})
# Codecs whose samples libsndfile holds as floats: they may be NaN, and may exceed 1.
FLOAT_SUBTYPES = frozenset({"FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III"})


class AudioError(Exception):
    """A file that cannot be used, and why: together one sentence."""

    def __init__(self, path: str, why: str):
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Header(NamedTuple):
    seconds: float
    rate: int


def read_header(path: str) -> Header:
    """Duration and sampling rate of a file, without decoding it. Raises AudioError."""
    if os.path.splitext(path)[1].lower() == ".m4a":
        return _ffprobe_header(path)
    try:
        info = soundfile.info(os.fsencode(path))  # names may hold any bytes
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(
            path, f"is no audio that libsndfile reads: {_reason(error, path)}"
        ) from error
    if info.frames <= 0:
        raise AudioError(path, "holds no samples")
    return Header(info.frames / info.samplerate, info.samplerate)


def read_crop(path: str, position: float, samples: int, sample_rate: int) -> np.ndarray:
    """A mono crop (samples,) int16 at `sample_rate` hertz.

    `position` in [0, 1] is where the crop lies between the earliest and the latest possible one.
    A file that is shorter than the crop is repeated to fill it. Raises AudioError when the file
    cannot be decoded, is truncated, holds no samples, or holds NaN or infinity.
    """
    is_m4a = os.path.splitext(path)[1].lower() == ".m4a"
    crop = (_ffmpeg_crop if is_m4a else _libsndfile_crop)(path, position, samples, sample_rate)
    if len(crop) == 0:
        raise AudioError(path, "holds no samples")
    return crop[:samples] if len(crop) >= samples else np.resize(crop, samples)


def read(path: str, sample_rate: int) -> np.ndarray:
    """A whole file, mono (s,) int16 at `sample_rate` hertz. Raises AudioError as `read_crop`."""
    is_m4a = os.path.splitext(path)[1].lower() == ".m4a"
    waveform = (_ffmpeg_crop if is_m4a else _libsndfile_crop)(path, 0.0, None, sample_rate)
    if len(waveform) == 0:
        raise AudioError(path, "holds no samples")
    return waveform


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


def check(path: str, sample_rate: int) -> None:
    """Decode a whole file. Raises AudioError as `read_crop` does."""
    samples = math.ceil(read_header(path).seconds * sample_rate)
    read_crop(path, 0.0, samples, sample_rate)


def _libsndfile_crop(
    path: str, position: float, samples: int | None, sample_rate: int
) -> np.ndarray:
    """A crop; the whole file for no `samples`."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            wanted = file.frames
            if samples is not None:
                wanted = min(math.ceil(samples * file.samplerate / sample_rate), file.frames)
            spare = file.frames - wanted
            if spare:
                file.seek(min(int(position * (spare + 1)), spare))
            is_float = file.subtype in FLOAT_SUBTYPES
            block = file.read(wanted, dtype="float32" if is_float else "int16", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(path, f"cannot be decoded: {_reason(error, path)}") from error
    if len(block) < wanted:
        raise AudioError(path, f"is truncated: {len(block)} samples where {wanted} should be")
    if is_float and not np.isfinite(block).all():
        raise AudioError(path, "holds NaN or infinity")
    return to_int16(block, rate, sample_rate)


def _ffprobe_header(path: str) -> Header:
    fields = "format=duration:stream=sample_rate"
    answer = _run_ffmpeg(
        path, "ffprobe", "-select_streams", "a:0", "-show_entries", fields, "-of", "json", path
    )
    try:
        found = json.loads(answer)
        header = Header(float(found["format"]["duration"]), int(found["streams"][0]["sample_rate"]))
    except (ValueError, KeyError, IndexError) as error:
        raise AudioError(path, "holds no audio that ffmpeg reads") from error
    if header.seconds <= 0:
        raise AudioError(path, "holds no samples")
    return header


def _ffmpeg_crop(path: str, position: float, samples: int | None, sample_rate: int) -> np.ndarray:
    """A crop; the whole file for no `samples`."""
    where: list[str] = []
    if samples is not None:
        seconds = samples / sample_rate
        start = position * max(0.0, _ffprobe_header(path).seconds - seconds)
        where = ["-ss", f"{start:.6f}", "-t", f"{seconds:.6f}"]
    raw = _run_ffmpeg(
        path, "ffmpeg", *where, "-i", path,
        "-ac", "1", "-ar", str(sample_rate), "-f", "s16le", "-",
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
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(path, f"cannot be decoded: {reason[-1] if reason else program}")
    return done.stdout


def _reason(error: Exception, path: str) -> str:
    """What libsndfile said, without the path that it repeats."""
    if not os.path.exists(path):
        return "the file does not exist"
    return str(error).rsplit(": ", 1)[-1].rstrip(".")
