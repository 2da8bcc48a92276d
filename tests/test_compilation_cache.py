import json

import jax
import pytest
from support import finish

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
    """Those of a first run are kept for a second, but for one cut short as by a kill while it was
    written."""
    digests, folder = [], tmp_path / "cache" / "compiled"

    def train(name):
        arguments = [*tiny, "--out", tmp_path / name]
        finish(program("train", *arguments, JAX_COMPILATION_CACHE_DIR=""))
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        digests.append(summary["parameters_sha256"])
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}

    made = train("cold")
    (step,) = (name for name in made if name.startswith("jit_train_step"))
    (folder / step).write_bytes((folder / step).read_bytes()[:1000])
    kept = train("warm")
    assert made.keys() - {step}
    assert {name for name in made if kept[name] != made[name]} == {step}
    assert digests[0] == digests[1]
