import pytest

from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import AudioError
from chns_jax.corpus.skipped import Skipped


def good(path):
    pass


def bad(path):
    raise AudioError(path, "is bad")


def test_files_are_listed_once_and_limited(tmp_path):
    skipped = Skipped(tmp_path / "skipped.txt", 200, good)
    assert not (tmp_path / "skipped.txt").exists()
    skipped.record({"/x/a": "is bad"})
    skipped.record({"/x/b": "is worse", "/x/a": "is bad"})
    skipped.limit()
    assert (tmp_path / "skipped.txt").read_text() == "/x/a\tis bad\n/x/b\tis worse\n"
    skipped.record({"/x/c d": "is bad"})
    with pytest.raises(UserError, match="3 of 200 files .* such as /x/a, which is bad"):
        skipped.limit()


def test_the_list_is_appended_to(tmp_path, monkeypatch):
    """Each file costs a line: rewritten whole for each, 10,000 broken ones cost hours."""
    skipped, path = Skipped(tmp_path / "skipped.txt", 10**6, good), tmp_path / "skipped.txt"
    skipped.record({"/x/a": "is bad"})
    there = path.stat().st_ino
    monkeypatch.setattr("os.fsync", lambda _: pytest.fail("synced"))
    skipped.record({"/x/a": "is bad", "/x/b": "is bad"})
    assert path.stat().st_ino == there and len(path.read_text().splitlines()) == 2


def test_a_line_that_a_kill_cut_off(tmp_path):
    """It may name a folder, which is there and cannot be decoded."""
    folder, broken = tmp_path / "s1", tmp_path / "s1" / "x\u2028\x85.wav"
    folder.mkdir()
    broken.touch()
    path = tmp_path / "skipped.txt"
    path.write_text(f"{broken}\tis bad\n{folder}")
    assert Skipped(path, 9, bad).why == {str(broken): "is bad"}
    assert path.read_text() == f"{broken}\tis bad\n"


def test_what_an_earlier_start_listed_is_checked_again(tmp_path):
    names = {name: tmp_path / name for name in ("broken", "repaired", "removed")}
    Skipped(tmp_path / "skipped.txt", 9, good).record({str(p): "is bad" for p in names.values()})
    names["broken"].touch()
    names["repaired"].touch()

    def check(path):
        if not path.endswith("repaired"):
            bad(path)

    assert Skipped(tmp_path / "skipped.txt", 9, check).why == {str(names["broken"]): "is bad"}
