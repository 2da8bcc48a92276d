import json

import jax
import pytest

from chns_jax.devices.compilation_cache import keep_compiled


@pytest.fixture
def no_cache():
    """JAX without a folder for compiled programs, before and after."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_cannot_be_made_is_said(no_cache, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        keep_compiled(folder)
        assert jax.config.jax_compilation_cache_dir is None
        said = capsys.readouterr()
        assert f"compiled programs are not kept in {folder}" in said.out + said.err


def test_the_environments_folder_wins(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.long
def test_compiled_programs_kept_or_broken_give_the_same_bytes(program, tiny, tmp_path):
    """Cold, warm, and with entries cut short as by a kill while they were written."""
    digests, kept, folder = [], [], tmp_path / "cache" / "compiled"
    for run in ("cold", "warm", "broken"):
        if run == "broken":
            for entry in folder.glob("*-cache"):
                entry.write_bytes(entry.read_bytes()[:1000])
        arguments = [*tiny, "--out", tmp_path / run]
        process = program("train", *arguments, JAX_COMPILATION_CACHE_DIR="")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        entries = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
        assert any(name.startswith("jit_train_step") for name in entries), entries
        kept.append(entries)
        summary = json.loads((tmp_path / run / "summary.json").read_text())
        digests.append(summary["parameters_sha256"])
    assert len(set(digests)) == 1
    assert kept[1] == kept[0]  # nothing was compiled again
