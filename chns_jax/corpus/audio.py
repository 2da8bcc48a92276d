"""Audio -> int16 crops: only the crop is decoded. No jax here: data threads start fast.

A path is that of an audio file, or locates a record of a shard (`records.parse`).
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import soundfile
import soxr

from chns_jax.common.errors import UserError
from chns_jax.corpus import records
from chns_jax.corpus.records import Record
from chns_jax.corpus.retry import LASTING, retried
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
STREAMED_AT_ONCE = 1 << 20  # samples of all channels, of a file that is read in blocks
MOST_CHUNKS = 1000  # of a wav file, before its samples
OGG = frozenset({".ogg", ".oga", ".opus"})
LARGEST_PAGE = 27 + 255 + 255 * 255  # bytes of Ogg, RFC 3533
FIRST_PAGES = 4096  # bytes that hold the first page of each stream of it, of some tens each
# What may be in a .m4a: no playlist, which names other files, and nothing behind a URL.
FFMPEG_INPUT = ("-protocol_whitelist", "file", "-format_whitelist", "mov,aac,mp3,flac,wav,ogg")
STREAMED = 0x7FFFF000  # bytes; a wav that was piped states so many, or 0
UNKNOWN_FRAMES = 1 << 62  # libsndfile gives more for a FLAC that was piped
Source = bytes | io.IOBase  # what libsndfile reads: a path, or an open file
Found = TypeVar("Found")


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
    file that is truncated, and ReadError."""
    try:
        return retried(partial(_header_once, path), path)
    except (soundfile.SoundFileError, *LASTING) as error:
        raise AudioError(
            path, f"is no audio that libsndfile reads: {_reason(error, path)}"
        ) from error


def read_crop(path: str, position: float, samples: int, sample_rate: float) -> np.ndarray:
    """A mono crop (samples,) int16 at `sample_rate` hertz, which may be no integer.

    `position` in [0, 1] is where the crop lies between the earliest and the latest possible one.
    A file that is shorter than the crop is repeated to fill it. Raises AudioError when the file
    cannot be decoded, is truncated, holds no samples, has a `fault`, or is not there; and ReadError
    when it could not be read again and again.
    """
    crop = _decode(path, position, samples, sample_rate)
    return crop[:samples] if len(crop) >= samples else np.resize(crop, samples)


def read_whole(path: str, sample_rate: int) -> np.ndarray:
    """All samples (s,) int16, mono, at `sample_rate` hertz. Raises as `read_crop` does."""
    return _decode(path, 0.0, None, sample_rate)


def read_blocks(path: str, sample_rate: int) -> Iterator[np.ndarray]:
    """What `read_whole` returns, to one step of int16, as blocks (s,) that follow each other, so
    that the memory does not grow with the file. Raises AudioError as `read_whole` does, also for
    faults of reading that may pass."""
    try:
        _check_regular(path)
        if os.path.splitext(path)[1].lower() == ".m4a":
            yield from _ffmpeg_blocks(path, sample_rate)
        else:
            yield from _libsndfile_blocks(path, sample_rate)
    except (soundfile.SoundFileError, EOFError, OSError) as error:
        raise AudioError(path, f"cannot be decoded: {_reason(error, path)}") from error


def to_int16(block: np.ndarray, rate: int, sample_rate: float) -> np.ndarray:
    """The mean of the channels of a block (s, channels), resampled and clipped: (s,) int16.

    `block` is int16, or float in [-1, 1].
    """
    if block.dtype == np.int16 and block.shape[1] == 1 and rate == sample_rate:
        return block[:, 0]
    mono = _mono(block)
    if rate != sample_rate and len(mono):
        mono = soxr.resample(mono, rate, sample_rate)
    return _clipped(mono)


def _mono(block: np.ndarray) -> np.ndarray:
    """(s,) float32 in the units of int16, of a block (s, channels)."""
    if block.dtype != np.int16:
        block = block * 32768.0
    return block.mean(axis=1, dtype=np.float32)


def _clipped(mono: np.ndarray) -> np.ndarray:
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
    """Decode a whole file. Raises as `read_crop` does."""
    read_whole(path, sample_rate)


def exists(path: str) -> bool:
    """Whether there is such a file, or the shard of such a record; of a URL's it is assumed."""
    where = _file_of(path)
    return is_url(where) or os.path.exists(where)


def check_folder(path: str) -> None:
    """Raises OSError when a file is missing with all that its folder held, as where a disk is not
    mounted."""
    folder = os.path.dirname(_file_of(path)) or "."
    if not exists(path) and not (os.path.isdir(folder) and os.listdir(folder)):
        raise OSError(errno.ESTALE, "its folder is gone or empty")


def _file_of(path: str) -> str:
    record = records.parse(path)
    return path if record is None else record.shard


def _header_once(path: str) -> Header:
    _check_regular(path)
    if os.path.splitext(path)[1].lower() == ".m4a":
        return _ffprobe_header(path)
    # Names may hold any bytes, of which the types of soundfile do not know.
    info = _of_file(path, soundfile.info)  # pyright: ignore[reportArgumentType]
    if info.frames <= 0:
        raise AudioError(path, "holds no samples")
    return _believed(path, info.frames / max(1, info.samplerate), info.samplerate, info.channels)


def _decode(path: str, position: float, samples: int | None, sample_rate: float) -> np.ndarray:
    """About `samples` samples (all: None) from `position`, or as many as there are."""
    try:
        crop = retried(partial(_decode_once, path, position, samples, sample_rate), path)
    except (soundfile.SoundFileError, EOFError, *LASTING) as error:
        raise AudioError(path, f"cannot be decoded: {_reason(error, path)}") from error
    if len(crop) == 0:
        raise AudioError(path, "holds no samples")
    return crop


def _decode_once(path: str, position: float, samples: int | None, sample_rate: float) -> np.ndarray:
    record = records.parse(path)
    if record is None:
        _check_regular(path)
    if record is None and os.path.splitext(path)[1].lower() == ".m4a":
        return _ffmpeg_crop(path, position, samples, sample_rate)

    def crop(source: Source) -> np.ndarray:
        return _libsndfile_crop(path, source, position, samples, sample_rate)

    if record is None:
        return _of_file(path, crop)
    if record.rate is None:
        return crop(io.BytesIO(records.read(record, 0, record.size)))
    return _raw_crop(record, record.rate, position, samples, sample_rate)


def _window(
    frames: int, rate: int, position: float, samples: int | None, sample_rate: float
) -> tuple[int, int]:
    """First frame and number of frames, at `rate`, of a crop of `samples` at `sample_rate`."""
    if samples is None:
        return 0, frames
    wanted = math.ceil(samples * rate / sample_rate)
    spare = max(0, frames - wanted)
    return min(int(position * (spare + 1)), spare), min(wanted, frames)


class _Watched(io.FileIO):
    """A file that keeps the system's fault, which libsndfile hides: it decodes other samples."""

    fault: OSError | None = None

    def readinto(self, buffer) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.fault = error
            return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            self.fault = error
            return 0


def _of_file(path: str, read: Callable[[Source], Found]) -> Found:
    """What `read` makes of a file by libsndfile. Raises OSError where reading it failed."""
    kind = os.path.splitext(path)[1].lower()
    with _Watched(path) as file:
        try:
            _check_complete(path, kind, file)
            return read(file)
        except soundfile.SoundFileError:
            if kind != ".mp3" or file.fault is not None:
                raise
        finally:
            if file.fault is not None:
                raise file.fault
    return read(os.fsencode(path))  # only by its name is an mp3 known that begins with other bytes


def _libsndfile_crop(
    path: str, source: Source, position: float, samples: int | None, sample_rate: float
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


def _libsndfile_blocks(path: str, sample_rate: int) -> Iterator[np.ndarray]:
    with _Watched(path) as watched:
        _check_complete(path, os.path.splitext(path)[1].lower(), watched)
        with _opened(path, watched) as file:
            rate, stated, done = file.samplerate, file.frames, 0
            _believed(path, stated / max(1, rate), rate, file.channels)
            is_float = file.subtype in FLOAT_SUBTYPES
            resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
            at_once = STREAMED_AT_ONCE // file.channels
            while done < stated:
                wanted = min(at_once, stated - done)
                block = _read(file, wanted, "float32" if is_float else "int16")
                if watched.fault is not None:
                    raise watched.fault
                done += len(block)
                if len(block) < wanted:
                    raise AudioError(path, f"is truncated: {done} samples where {stated} should be")
                wrong = fault(block) if is_float else None
                if wrong:
                    raise AudioError(path, wrong)
                if rate == sample_rate:
                    yield to_int16(block, rate, rate)
                else:
                    yield _clipped(resampler.resample_chunk(_mono(block), last=done == stated))
    if not done:
        raise AudioError(path, "holds no samples")


def _opened(path: str, watched: _Watched) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(watched)  # pyright: ignore[reportArgumentType]
    except soundfile.SoundFileError:
        if os.path.splitext(path)[1].lower() != ".mp3" or watched.fault is not None:
            raise
    # As in `_of_file`.
    return soundfile.SoundFile(os.fsencode(path))  # pyright: ignore[reportArgumentType]


def _believed(path: str, seconds: float, rate: int, channels: int = 1) -> Header:
    """What a header states. Raises AudioError when no recording of speech is so."""
    lowest, highest = RATES
    if not lowest <= rate <= highest:
        raise AudioError(path, f"states {rate} hertz, where speech has {lowest} to {highest}")
    if channels > MOST_CHANNELS:
        raise AudioError(path, f"states {channels} channels, more than {MOST_CHANNELS}")
    if seconds * rate >= UNKNOWN_FRAMES:
        raise AudioError(path, "does not say how long it is: write it to a file again")
    if not (seconds <= LONGEST_SECONDS and seconds * rate * channels <= MOST_SAMPLES):
        raise AudioError(path, f"states {seconds / 3600:,.0f} hours, too many: cut it into parts")
    return Header(seconds, rate)


def _check_regular(path: str) -> None:
    """Raises AudioError for what is not there, for a pipe, a socket or a device, which are not
    opened, and for what is called raw, of which libsndfile asks what it is; and OSError."""
    if os.path.splitext(path)[1].lower() == ".raw":
        raise AudioError(path, "is raw, and so says neither its rate nor its type: convert it")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(path, "does not exist") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise AudioError(path, f"cannot be followed: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(mode):
        raise AudioError(path, "is a pipe, a socket or a device, and no file")


def _check_complete(path: str, kind: str, file: io.RawIOBase) -> None:
    """Raises AudioError for a file that was cut off, of which libsndfile reads what there is, and
    OSError. The file is at its start afterwards."""
    if kind == ".wav":
        _check_length(path, file)
    elif kind in OGG:
        _check_last_page(path, file)
    file.seek(0)


def _check_last_page(path: str, file: io.RawIOBase) -> None:
    """Raises AudioError for an Ogg file that ends within a page, or in a stream that follows the
    first, which libsndfile does not read."""
    size = os.fstat(file.fileno()).st_size
    begun = _first_streams(file.read(FIRST_PAGES) or b"")
    file.seek(max(0, size - LARGEST_PAGE))
    ends = file.read(LARGEST_PAGE) or b""
    at = ends.rfind(b"OggS")
    page = ends[at:]
    if at < 0:
        return  # not Ogg, which is said elsewhere
    segments = page[26] if len(page) > 26 else 0
    missing = 27 + segments + sum(page[27 : 27 + segments]) - len(page)
    if missing > 0:
        raise AudioError(path, "is truncated: its last page is not whole")
    if begun and page[14:18] not in begun:
        raise AudioError(path, "holds one recording after another: join them by ffmpeg")


def _first_streams(begins: bytes) -> set[bytes]:
    """Serial numbers of the streams with which an Ogg file begins: each has a page, before any has
    a second one."""
    at, found = 0, set()
    while begins[at : at + 4] == b"OggS" and len(begins) > at + 27 and begins[at + 5] & 2:
        found.add(begins[at + 14 : at + 18])
        segments = begins[at + 26]
        at += 27 + segments + sum(begins[at + 27 : at + 27 + segments])
    return found


def _check_length(path: str, file: io.RawIOBase) -> None:
    """Raises AudioError for a wav file that ends before its samples do."""
    if (file.read(12) or b"")[:4] != b"RIFF":
        return
    for _ in range(MOST_CHUNKS):
        head = file.read(8) or b""
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
    record: Record, rate: int, position: float, samples: int | None, sample_rate: float
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


def _ffmpeg_crop(path: str, position: float, samples: int | None, sample_rate: float) -> np.ndarray:
    window = ("-t", str(LONGEST_SECONDS))
    if samples is not None:
        seconds = samples / sample_rate
        start = position * max(0.0, _ffprobe_header(path).seconds - seconds)
        window = ("-ss", f"{start:.6f}", "-t", f"{seconds:.6f}")
    raw = _run_ffmpeg(
        path, "ffmpeg", *FFMPEG_INPUT, *window, "-i", f"file:{path}",
        "-map", "0:a:0", "-ac", "1", "-ar", str(round(sample_rate)), "-f", "s16le", "-",
        whole=samples is None,
    )  # fmt: skip
    return np.frombuffer(raw, dtype="<i2")


def _ffmpeg_blocks(path: str, sample_rate: int) -> Iterator[np.ndarray]:
    _check_installed(path, "ffmpeg")
    command = [
        "ffmpeg", "-v", "error", *FFMPEG_INPUT, "-t", str(LONGEST_SECONDS), "-i", f"file:{path}",
        "-map", "0:a:0", "-ac", "1", "-ar", str(sample_rate), "-f", "s16le", "-",
    ]  # fmt: skip
    found = False
    with tempfile.TemporaryFile() as said:  # a pipe could be full
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as program:
            assert program.stdout is not None
            try:
                while raw := program.stdout.read(2 * STREAMED_AT_ONCE):
                    found = True
                    yield np.frombuffer(raw, dtype="<i2")
            finally:
                program.kill()  # where nobody takes the rest
        said.seek(0)
        *_, reason = [b"", *said.read(1 << 16).strip().splitlines()]
    if reason or not found:
        why = reason.decode(errors="replace").removeprefix(f"file:{path}: ")
        raise AudioError(path, f"cannot be decoded: {why}" if why else "holds no samples")


def _check_installed(path: str, program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(
            f"{path} is m4a, which needs {program}: install ffmpeg or convert the file to FLAC"
        )


def _run_ffmpeg(path: str, program: str, *arguments: str, whole: bool = False) -> bytes:
    _check_installed(path, program)
    command = [program, "-v", "error", *arguments]
    run = partial(subprocess.run, command, capture_output=True, stdin=subprocess.DEVNULL)

    def failed(done):
        # Of a file that is cut off, ffmpeg decodes what there is, says so, and ends well.
        return done.returncode or (whole and done.stderr)

    done = run()
    if failed(done):  # that of a file which can be read, twice
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass
        done = run()
    if failed(done):
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
    if "not a regular file" in reason:  # which it is: libsndfile says so of an mp3 without a frame
        return "it is no mp3"
    if "psf_" in reason:  # libsndfile's own functions, of a file that ends in its header
        return "it is cut off or damaged"
    return reason.rsplit(": ", 1)[-1].rstrip(".")
