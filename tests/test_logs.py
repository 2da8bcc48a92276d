import pytest

from chns_jax.common.errors import UserError
from chns_jax.training.logs import records

LINE = '{"step": 1, "loss": 2.5}\n'


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    assert list(records(tmp_path / "gone.jsonl")) == []
    for cut in ("", '{"step": 2, "lo', "\0\0\0", "7"):
        (tmp_path / "metrics.jsonl").write_text(LINE + cut)
        assert list(records(tmp_path / "metrics.jsonl")) == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize(
    "line", ["{", "7", "[]", "{}", '{"step": "2"}', "[" * 5000], ids=lambda line: line[:14]
)
def test_a_line_that_no_run_wrote_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f"{LINE}{line}\n{LINE}")
    with pytest.raises(UserError, match="metrics.jsonl is damaged in line 2: remove the lines"):
        list(records(tmp_path / "metrics.jsonl"))


def test_other_bytes_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff" + LINE.encode())
    with pytest.raises(UserError, match="metrics.jsonl is not text in UTF-8"):
        list(records(tmp_path / "metrics.jsonl"))
