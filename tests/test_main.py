"""One name for all commands, and what is in the package that is installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_docs import COMMANDS as FILES

from chns_jax import __main__ as commands
from chns_jax import config as configs
from chns_jax.common import packaged
from chns_jax.common.errors import UserError

ROOT = Path(__file__).parents[1]


def test_every_command_is_listed_with_what_it_does(monkeypatch, capsys):
    assert set(commands.COMMANDS) == {path.stem for path in FILES}
    monkeypatch.setattr(sys, "argv", ["chns-jax"])
    commands.main()
    lines = capsys.readouterr().out.splitlines()
    assert "  compare    Compare trained runs on trial lists, with intervals" in lines
    assert len(lines) == 4 + len(commands.COMMANDS)
    assert all(line.split(maxsplit=1)[1] for line in lines[4:])


@pytest.mark.parametrize(
    "name, message",
    [
        ("trian", "no command trian: did you mean train"),
        ("x", "no command x: chns-jax alone lists"),
    ],
)
def test_a_command_that_is_none(name, message):
    with pytest.raises(UserError, match=message):
        commands._list_commands([name])


def test_a_command_has_the_arguments_after_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chns-jax", "verify", "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: chns-jax verify [-h] [--model")


def test_the_package_holds_every_folder():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "chns_jax").rglob("__init__.py")
    }
    assert set(tool["packages"]) == folders | {"chns_jax.box", "chns_jax.configs"}


@pytest.mark.long
def test_what_is_installed_runs_in_an_empty_folder(tmp_path):
    """An sdist, the wheel that is made of it, and that wheel where there is no checkout."""
    built, installed, empty = (tmp_path / name for name in ("built", "installed", "empty"))
    empty.mkdir()
    run = lambda *command, **options: subprocess.run(  # noqa: E731
        [sys.executable, "-m", *map(str, command)], check=True, capture_output=True, text=True,
        **options,
    )  # fmt: skip
    run("build", "--outdir", built, ROOT)
    (wheel,) = built.glob("*.whl")
    run("pip", "install", "--no-deps", "--target", installed, wheel)
    environment = {"PYTHONPATH": str(installed), "PATH": "", "HOME": str(tmp_path)}
    environment |= {
        name: value for name, value in os.environ.items() if name[:4] in ("JAX_", "XLA_")
    }
    small = ("--encoder.ecapa.res2net_scale", 1, "--training.devices", 1)
    run(
        "chns_jax", "train", "--config", "debug", "--out", "run", *small, cwd=empty, env=environment
    )
    assert (empty / "run" / "summary.json").exists()


def test_configs_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load(["--config", "chns"]) == configs.load(
        ["--config", str(ROOT / "configs" / "chns.yaml")]
    )
    assert packaged.find("lab/folder") == str(ROOT / "configs" / "lab" / "folder.yaml")
    assert packaged.find("lab/folder", packaged.STUDY).endswith("folder.study.yaml")
    (tmp_path / "chns").mkdir()  # a folder is no config
    assert packaged.find("chns").endswith("chns.yaml")
    (tmp_path / "supcon").write_text("training: {steps: 7}\n")
    assert configs.load(["--config", "supcon"]).training.steps == 7
    assert packaged.find("gone.yaml") == "gone.yaml" and packaged.find("a/b") == "a/b"
    with pytest.raises(UserError, match="chsn is neither a file nor one of aams.*, lab/voices$"):
        configs.load(["--config", "chsn"])
