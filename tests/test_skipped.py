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


def test_what_an_earlier_start_listed_is_checked_again(tmp_path):
    names = {name: tmp_path / name for name in ("broken", "repaired", "removed")}
    Skipped(tmp_path / "skipped.txt", 9, good).record({str(p): "is bad" for p in names.values()})
    names["broken"].touch()
    names["repaired"].touch()

    def check(path):
        if not path.endswith("repaired"):
            bad(path)

    assert Skipped(tmp_path / "skipped.txt", 9, check).why == {str(names["broken"]): "is bad"}
