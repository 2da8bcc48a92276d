"""Arrays of .npz files that anybody may have written: nothing is allocated that a file lacks."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.lib import format as npy

MOST_TIMES = 100  # what a file may hold of its own size, compressed
END = 22  # bytes of a zip's last record, which says how many members there are
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Damaged(Exception):
    """What a file of arrays is not, after "it"."""


def load(source: str | os.PathLike | io.BufferedIOBase) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, which are not to be written to.

    Raises Damaged when it holds anything but plain arrays, whole, and OSError when it cannot be
    read.
    """
    if isinstance(source, str | os.PathLike):
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise Damaged("is no file")
        with open(source, "rb") as file:
            return load(file)
    size = source.seek(0, os.SEEK_END)
    source.seek(-min(size, END), os.SEEK_END)
    end = source.read(END)  # where NumPy writes no comment
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            if end.startswith(b"PK\5\6") and int.from_bytes(end[10:12], "little") != len(members):
                raise ValueError("its list of members is cut short")
            if sum(member.file_size for member in members) > MOST_TIMES * size:
                raise ValueError("its members are too large for it")
            return {
                member.filename.removesuffix(".npy"): _array(archive.read(member))
                for member in members
            }
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy raise many for what is not theirs
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise Damaged("is no .npz of plain arrays, or cut off or changed") from error


def need(arrays: Mapping[str, np.ndarray], name: str, kinds: str, axes: int) -> np.ndarray:
    """The array of a name: of a dtype whose kind is among `kinds` ("iu", "f"), with so many axes.

    Raises Damaged when there is no such array.
    """
    if name not in arrays:
        raise Damaged(f"lacks {name}")
    found = arrays[name]
    if found.dtype.kind not in kinds or found.ndim != axes:
        raise Damaged(f"holds {name} as {found.dtype} of shape {found.shape}")
    return found


def _array(member: bytes) -> np.ndarray:
    """The array of a .npy. Raises ValueError and others when it is none, or not whole."""
    file = io.BytesIO(member)
    shape, in_columns, dtype = HEADERS[npy.read_magic(file)](file)
    elements = math.prod(shape)
    if dtype.kind not in "biufcSUV" or dtype.fields or dtype.subdtype or min(shape, default=0) < 0:
        raise ValueError("it is no plain array")
    at = file.tell()
    # Elements may be of no bytes, but not any number of them.
    if elements * dtype.itemsize != len(member) - at or elements > len(member):
        raise ValueError("it is not as large as it says")
    order = "F" if in_columns else "C"
    return np.ndarray(shape, dtype, buffer=member, offset=at, order=order)
