import os
import zipfile

import numpy as np
import pytest

from chns_jax.common import arrays
from chns_jax.common.arrays import Damaged


def npy(header: str, content: bytes = b"") -> bytes:
    """A .npy that states whatever `header` does."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def stating(shape: str, descr: str = "<f8") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_reads_them(tmp_path, save):
    rng = np.random.default_rng(0)
    made = {
        "a": rng.normal(size=(3, 2)).astype(np.float32), "columns": np.asfortranarray(np.eye(2, 3)),
        "number": np.array(3), "text": np.array(["é", "zz"]), "none": np.zeros((0, 3)),
        "nobody": np.array([], str), "": np.array(""), "big": np.arange(4, dtype=">i4"),
    }  # fmt: skip
    save(tmp_path / "x.npz", **made)
    found = arrays.load(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as expected:
        assert found.keys() == dict(expected).keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "member",
    [
        npy(stating("(1310720000000,)")),  # 10 TB
        npy(stating("(9223372036854775807, 9223372036854775807)")),
        npy(stating("(-1,)"), b"12345678"),
        npy(stating("(4611686018427387904,)", "|V0")),
        npy(stating("(2,)"), b"12345678"),
        npy(stating("(1,)"), b"12345678 and more"),
        npy(stating("(1,)", "|O"), b"12345678"),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"12345678"),
        npy("(" * 5000),
        npy("__import__('os').abort()"),
        b"no array",
        b"",
    ],
)
def test_what_is_no_plain_array_is_never_made(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(Damaged, match="is no .npz of plain arrays"):
        arrays.load(tmp_path / "x.npz")


def test_members_larger_than_their_file_are_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", zeros=np.zeros(1 << 20))
    assert os.path.getsize(tmp_path / "x.npz") < 20_000
    with pytest.raises(Damaged):
        arrays.load(tmp_path / "x.npz")


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", tmp_path):
        with pytest.raises(Damaged, match="is no file"):
            arrays.load(path)
    with pytest.raises(FileNotFoundError):
        arrays.load(tmp_path / "gone.npz")


def test_what_is_needed_is_there_and_of_its_kind():
    held = {"a": np.zeros(3), "b": np.zeros((2, 2), int)}
    assert arrays.need(held, "a", "f", 1) is held["a"]
    for name, kinds, axes, message in [
        ("c", "f", 1, "lacks c"),
        ("a", "iu", 1, r"holds a as float64 of shape \(3,\)"),
        ("b", "iu", 1, r"holds b as int64 of shape \(2, 2\)"),
    ]:
        with pytest.raises(Damaged, match=message):
            arrays.need(held, name, kinds, axes)
