import os
import socket
from pathlib import Path

import pytest

from chns_jax.common.errors import UserError
from chns_jax.common.files import (
    UNFINISHED,
    check_file,
    check_spares,
    remove_leftovers,
    replacing,
    without_links,
)


def test_what_cannot_be_written_is_said_by_its_name(tmp_path):
    name = tmp_path / ("n" * 250)  # too long with what `replacing` adds
    with pytest.raises(UserError, match=f"^{name} cannot be written: .*: give another name"):
        check_file(name)
    with pytest.raises(UserError, match="^/dev/null is a device"):
        check_file("/dev/null")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        check_file(tmp_path / "file" / "x")
    check_file(tmp_path / "new" / "x")
    assert list((tmp_path / "new").iterdir()) == []


def test_no_output_overwrites_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").touch()
    (tmp_path / "link.txt").symlink_to("list.txt")
    (tmp_path / "data").mkdir()
    for output, other in [
        (tmp_path / "list.txt", "list.txt"), ("link.txt", "data/../list.txt"),
        ("data/wav.scp", "data"), ("new.html", tmp_path / "new.html"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"^{output} is read or written for something else"):
            check_spares(output, [None, other])
    check_spares("other.txt", [None, "list.txt", "data", "gone"])


def test_an_output_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "theirs").write_text("old")
    (tmp_path / "out.txt").symlink_to("theirs")
    check_file(tmp_path / "out.txt")
    with replacing(without_links(tmp_path / "out.txt")) as file:
        file.write("new")
    assert (tmp_path / "out.txt").is_symlink() and (tmp_path / "theirs").read_text() == "new"
    for name in ("/dev/stdout", "/proc/self/fd/9", "/sys/new"):
        with pytest.raises(UserError, match=f"^{name} is a device or the like"):
            check_file(name)


def test_a_run_that_no_option_names_keeps_its_files(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "link").symlink_to("run/calibration.json")
    for name in ("run/config.yaml", "run/checkpoints/1/x", "run/tables/x.npz", "link"):
        with pytest.raises(UserError, match="is the place of a run's own files"):
            check_file(tmp_path / name)
    check_file(tmp_path / "run" / "mine.npz")


def test_what_is_read_of_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "run" / "tables").mkdir(parents=True)
    for name in ("mine.npz", "tables/step_0000000.npz", "copy.npz", "a.wav"):
        (tmp_path / "run" / name).touch()
    os.link(tmp_path / "run" / "copy.npz", tmp_path / "linked.npz")  # one file by two names
    for name in ("tables/step_0000000.npz", "tables/new.npz", "calibration.json", "a.wav"):
        with pytest.raises(UserError, match="is read or written for something else"):
            check_spares(tmp_path / "run" / name, [tmp_path / "run"])
    with pytest.raises(UserError, match="is read or written for something else"):
        check_spares(tmp_path / "linked.npz", [tmp_path / "run" / "copy.npz"])
    check_spares(tmp_path / "run" / "mine.npz", [tmp_path / "run"])  # as written before


def test_nothing_follows_a_planted_link(tmp_path):
    names = set()
    for _ in range(2):
        with replacing(tmp_path / "a.txt"):
            names |= {path.name for path in tmp_path.iterdir()} - {"a.txt"}
    assert len(names) == 2  # so that nobody foresees them
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "out.txt").symlink_to("theirs")
    with replacing(tmp_path / "out.txt") as file:
        file.write("mine")
    assert (tmp_path / "theirs").read_text() == "kept"
    assert not (tmp_path / "out.txt").is_symlink()


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_name_that_was_foreseen_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0")
    (tmp_path / "theirs").write_text("kept")
    planted = tmp_path / f".a.txt.{socket.gethostname()}.{os.getpid()}.0{UNFINISHED}"
    planted.symlink_to("theirs")
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.txt") as file:
        file.write("mine")
    assert (tmp_path / "theirs").read_text() == "kept"


def test_a_home_folder_is_the_same_when_checked_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_file("~/a/x.txt")
    with replacing("~/a/x.txt") as file:
        file.write("x")
    assert (tmp_path / "a" / "x.txt").read_text() == "x" and not Path("~").exists()


def test_only_what_was_left_unfinished_is_removed(tmp_path):
    for name in (".notes.2024.md", ".thesis.1.tex.swp", "kept.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".old.2024").mkdir()
    by_another = f".x.{socket.gethostname()}.{os.getppid()}.0a{UNFINISHED}"  # who is alive
    (tmp_path / by_another).write_text("being written")
    mine = {path.name for path in tmp_path.iterdir()}
    with replacing(tmp_path / "table.csv") as file:  # killed in the middle: the rename never comes
        (unfinished,) = {path.name for path in tmp_path.iterdir()} - mine
        file.write("half")
    (tmp_path / "table.csv").rename(tmp_path / unfinished)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == mine


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_is_asked_for(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError) as raised, replacing(tmp_path / "folder") as file:
        file.write("x")
    assert raised.value.filename == str(tmp_path / "folder") and raised.value.filename2 is None
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
