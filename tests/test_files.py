import pytest

from chns_jax.files import remove_leftovers, replacing


def test_only_what_was_left_unfinished_is_removed(tmp_path):
    for name in (".notes.2024.md", ".thesis.1.tex.swp", "kept.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".old.2024").mkdir()
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
