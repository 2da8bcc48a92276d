import pytest

from chns_jax.common import console, progress
from chns_jax.common.progress import Lines, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which a test sets, in place of the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_it_is_a_line_now_and_then(clock, capsys):
    seen = []
    for item in progress_bar(range(4000), what="listing files", unit="file"):
        seen.append(item)
        clock[0] += 0.015
    assert seen == list(range(4000))
    assert capsys.readouterr().err == "listing files: 2,000 files\nlisting files: 4,000 files\n"


def test_a_line_says_what_is_left_by_what_was_done_here(clock, capsys):
    with progress_bar(what="training", unit="step", total=1_500, done=1_000) as bar:
        bar.set_postfix_str("loss 0.500", refresh=False)
        bar.update()
        assert capsys.readouterr().err == ""
        clock[0] = 40.0
        bar.update(99)
        bar.update()
    assert capsys.readouterr().err == "training: 1,100 of 1,500 steps, loss 0.500, 02:40 left\n"


def test_at_a_terminal_it_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_bar(what="packing", unit="utterance", total=10, done=4) as bar:
        assert not isinstance(bar, Lines)
        bar.update(3)
        bar.refresh()
    said = capsys.readouterr().err
    assert "packing" in said and "7/10" in said
    assert said.endswith("\r")  # it leaves nothing behind


def test_nothing_is_said_where_another_process_says_it(clock, monkeypatch, capsys):
    monkeypatch.setattr(console, "_speaks", True)  # as it is again after this test
    console.be_silent()
    for terminal in (True, False):
        monkeypatch.setattr(progress.sys.stderr, "isatty", lambda terminal=terminal: terminal)
        bar = progress_bar(what="training", unit="step", total=10)
        clock[0] += 100
        bar.update(5)
        bar.close()
    assert capsys.readouterr().err == ""
