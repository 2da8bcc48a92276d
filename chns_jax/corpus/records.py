"""One record of an ArrayRecord shard: where it lies, and its bytes by one range read.

A shard is a Riegeli file (github.com/google/riegeli, doc/riegeli_records_file_format.md): blocks
of 64 KiB, each of which begins with a header of 24 bytes that is no part of what the file holds.
A record of its own chunk, not compressed, lies in one piece between these headers, so that a crop
is read from where it begins, without the reader of ArrayRecord and without an open file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from chns_jax.corpus import storage

EXTENSION = ".array_record"
WRITER_OPTIONS = "uncompressed,group_size:1"  # a record is a chunk: its bytes, as they are
BLOCK, BLOCK_HEADER = 1 << 16, 24
CHUNK_HEADER = struct.Struct("<8xQ8xQ8x")  # bytes of data; type in the lowest byte, then records
SIGNATURE_CHUNK = 40  # what every file begins with
LOCATION = re.compile(rf"(.+{re.escape(EXTENSION)}):(\d+)\+(\d+)(?:@(\d+))?", re.DOTALL)


class Record(NamedTuple):
    """Where an utterance lies. As text: `<shard>:<first>+<size>`, with `@<rate>` if it is raw."""

    shard: str
    first: int  # byte, not counting block headers
    size: int  # bytes
    rate: int | None  # hertz of raw int16 samples, little-endian; None: an audio file

    def __str__(self) -> str:
        rate = "" if self.rate is None else f"@{self.rate}"
        return f"{self.shard}:{self.first}+{self.size}{rate}"


def parse(path: str) -> Record | None:
    """The record that `path` locates; None when it is the path of a file."""
    found = LOCATION.fullmatch(path)
    if found is None:
        return None
    shard, first, size, rate = found.groups()
    return Record(shard, int(first), int(size), None if rate is None else int(rate))


def names_file(path: str) -> bool:
    """Whether `path`, as somebody wrote it, may be that of a file: shards have an index of their
    own, which is checked, and no name holds a zero."""
    return parse(path) is None and "\0" not in path


def read(record: Record, start: int, end: int) -> bytes:
    """Bytes `start` to `end` - 1 of a record. Raises OSError, and EOFError when the shard is too
    short."""
    return _read(record.shard, record.first + start, record.first + end)


def find(shard: str, sizes: list[int]) -> Iterator[int]:
    """Where each record of a shard begins, given all records' sizes in order.

    Raises ValueError when the shard is laid out in another way.
    """
    at = SIGNATURE_CHUNK
    for size in sizes:
        held, kind = CHUNK_HEADER.unpack(_read(shard, at, at + CHUNK_HEADER.size))
        overhead = held - size  # a byte for "not compressed", one for a length, then the size
        if kind != 1 << 8 | ord("r") or not 3 <= overhead <= 2 + 10:
            raise ValueError(f"{shard} has no record of {size} bytes at {at}")
        at += CHUNK_HEADER.size + held
        yield at - size


def _read(shard: str, first: int, end: int) -> bytes:
    if first >= end:
        return b""
    begin = _in_file(first)
    raw = memoryview(storage.read(shard, begin, _in_file(end - 1) + 1))  # slices are no copies
    pieces, at = [], 0
    while at < len(raw):
        into = (begin + at) % BLOCK
        pieces.append(raw[at : at + BLOCK - into])
        at += BLOCK - into + BLOCK_HEADER
    content = b"".join(pieces)
    if len(content) < end - first:
        raise EOFError(f"the shard ends {end - first - len(content)} bytes too early")
    return content


def _in_file(byte: int) -> int:
    block, into = divmod(byte, BLOCK - BLOCK_HEADER)
    return block * BLOCK + BLOCK_HEADER + into
