"""Bad input of every command, row by row of bad_input.txt: one sentence, and nothing changes."""

import hashlib
import importlib
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import jax
import numpy as np
import pytest
import soundfile
from support import TINY, write_tone
from test_command_line import COMMANDS

from chns_jax.common import console, errors
from chns_jax.common.errors import UserError
from chns_jax.reports import speaker_page

ROWS = Path(__file__).with_name("bad_input.txt")


class Row(NamedTuple):
    line: str
    status: int
    sentence: str


def rows() -> list[Row]:
    lines = [line for line in ROWS.read_text().splitlines() if line and line[0] != "#"]
    said = [below.strip().partition(" ") for below in lines[1::2]]
    return [
        Row(line, int(status), sentence)
        for line, (status, _, sentence) in zip(lines[::2], said, strict=True)
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tones, untrained) -> dict[str, str]:
    """What {names} in the rows are: files in a folder that no command may change, and {out}."""
    folder = tmp_path_factory.mktemp("bad") / "in"
    folder.mkdir()
    for name in ("folder", "empty", "gallery", "foreign", "own", "journal", "mine", "emptied"):
        (folder / name).mkdir()
    pair, other = "s00/r0/u0.flac s00/r1/u2.flac", "s00/r0/u0.flac s01/r0/u0.flac"
    for name, text in {
        "gallery/a.json": "{",
        "foreign/package.json": '{"version": 1}',
        "file": "",
        "mine/index.html": "mine",
        "mine/table.md": "mine",
        "emptied/config.yaml": "augment: {noise: {probability: 0.5}}\n",
        "twice.csv": "id,gender,gender\ns00,f,m\n",
        "quoted.csv": 'speaker,x\ns00,f\ns01,"f\ns02,f\n',
        "raw.raw": "no header",
        "text.wav": "no audio\n",
        "listed.txt": "gone.wav\n",
        "config.yaml": "training: {steps: 5}\n",
        "own/config.yaml": "# mine\ntraining: {steps: 5}\n",
        "journal/metrics.jsonl": "{}\n",
        "study.yaml": "baseline: random\nseeds: [0]\narms: {random: {sampler.kind: random}}\n",
        "meta.csv": "id,gender\ns00,f\n",
        "trials.txt": f"1 {pair}\n0 {other}\n",
        "targets.txt": f"1 {pair}\n",
        "strangers.txt": f"1 {pair}\n0 s00/r0/u0.flac x/y/z.flac\n",
        "nested.yaml": "out: " + "[" * 3000 + "]" * 3000,
        "sections.yaml": "out: " + "{a: " * 3000 + "}" * 3000,
        "aliases.yaml": "out: &a [x]\ndata:\n" + "".join(f"  k{i}: [*a, *a]\n" for i in range(15)),
        "large.yaml": "a: b\n" * 30_000,
        "deep.yaml": "base: base0.yaml\n",
        **{f"base{i}.yaml": f"base: base{i + 1}.yaml\n" for i in range(30)},
    }.items():
        (folder / name).write_text(text)
    for name, data in {
        "utf16.yaml": "training: {steps: 5}\n".encode("utf-16"),
        "wide.lst": "a.wav\n".encode("utf-16"),
        "latin1.yaml": "out: café\n".encode("latin-1"),
        "binary.yaml": bytes(range(256)),
        "zeros.yaml": bytes(9),
        "npz.npz": b"PK\3\4",
        "weights.safetensors": b"\xff" * 64,
        "broken_model.onnx": b"\xff" * 64,
        "noise.wav": np.random.default_rng(0).bytes(500),
    }.items():
        (folder / name).write_bytes(data)
    write_tone(folder / "wav.wav", 0.5, hertz=100)
    write_tone(folder / "one" / "s" / "r" / "u.wav", 0.5, hertz=100)
    (folder / "cut.wav").write_bytes((folder / "wav.wav").read_bytes()[:900])
    soundfile.write(folder / "silent.wav", np.zeros(9000), 16_000)
    soundfile.write(folder / "short.wav", np.ones(9), 16_000)
    soundfile.write(folder / "nan.wav", np.full(9000, np.nan), 16_000, subtype="FLOAT")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    for name, text, weights in (
        ("wired", "data: {root: /etc}\n", b""),
        ("based", "base: ../config.yaml\n", b""),
        ("hollow", "", b"\xff" * 9),
        ("worded", "", b"\2" + bytes(7) + b"{}"),
    ):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(text)
        (folder / name / "model.safetensors").write_bytes(weights)
    shutil.copytree(folder / "hollow", folder / "linked")
    (folder / "linked" / "model.safetensors").unlink()
    (folder / "linked" / "model.safetensors").symlink_to(folder / "weights.safetensors")
    (folder / "npm" / "dist").mkdir(parents=True)
    for name in (speaker_page.GLUE, speaker_page.WASM):
        (folder / "npm" / "dist" / name).touch()
    (folder / "headless" / "checkpoints" / "5").mkdir(parents=True)
    config = (untrained / "config.yaml").read_text()
    for run, text in {
        "run": config,
        "edited": config.replace("speechbrain", "kaldi"),
        "broken": "training: [\n",
        "changed": config.replace("builtin:voices", str(tones)),
    }.items():
        shutil.copytree(untrained, folder / run)
        (folder / run / "config.yaml").write_text(text)
    out = folder.parent / "out"
    where = ["--data.root", tones, "--data.cache", out / "cache", "--out", out / "r"]
    return {
        **{path.stem: str(path) for path in folder.iterdir()},
        "gone": str(folder / "gone"),
        "tones": str(tones),
        "out": str(out),
        "here": str(folder.parent),
        "keys": str(folder.parent / "keys.yaml"),
        "bytes": "'x\udcff'",
        "digits": "9" * 5000,
        "lines": "'x\n\x1b[31my'",
        "tiny": shlex.join(map(str, [*TINY, *where])),
    }


def fill(text: str, places: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: places[name[1]], text)


def ended(line: str, capfd, monkeypatch) -> tuple[int, str]:
    """Status and standard error of a command, begun as a user begins it, but in this process."""
    command, *arguments = shlex.split(line)
    main = importlib.import_module(f"chns_jax.{command}").main
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    monkeypatch.setattr(os, "_exit", sys.exit)
    capfd.readouterr()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)
            patch.setattr(errors, "_first_to_leave", Lock())
            errors.run(main)
        status = 0
    except SystemExit as exit:
        status = int(exit.code or 0)
    return status, capfd.readouterr().err


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files in a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"  # of a training that ended
    }


def test_every_row_ends_with_its_sentence(places, loaded_once, capfd, monkeypatch):
    before, wrong = contents(Path(places["run"]).parent), []
    for row in rows():
        line = fill(row.line, places)
        if row.line.startswith("keys "):
            text = re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "a": "\a"}.get(
                found[1], found[1]), line.removeprefix("keys "))  # fmt: skip
            Path(places["keys"]).write_text(text)
            line = f"train --config {places['keys']}"
        status, said = ended(line, capfd, monkeypatch)
        *_, last = said.splitlines() or [""]
        sentence = fill(row.sentence, places)
        is_one = "Traceback" not in said and said.count("error: ") == 1
        if status != row.status or not last.startswith(f"error: {sentence}") or not is_one:
            wrong.append(f"{row.line}\n    {row.status} {row.sentence}\n  but {status} {said}")
    assert not wrong, "\n".join(wrong)
    assert contents(Path(places["run"]).parent) == before


@pytest.mark.parametrize("error", [RuntimeError("no backend\n..."), AssertionError()])
@pytest.mark.parametrize(
    "line",
    [
        "verify {wav} {wav} --model {edited}",
        "bench --rows plans",
        "train {tiny} --data.root {gone}",
    ],
)
def test_a_platform_without_devices_is_named(line, error, places, capfd, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    status, said = ended(fill(line, places), capfd, monkeypatch)
    assert status == 2
    *_, last = said.splitlines()
    assert last.startswith("error: JAX finds no device for JAX_PLATFORMS=")


def test_a_variable_of_progress_bars_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "abc")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="^TQDM_MININTERVAL in the environment: .*'abc'"):
        console.load_tqdm()


def test_every_command_has_rows():
    commands = [row.line.split()[0] for row in rows()]
    assert len(commands) >= 150
    assert {*commands} - {"keys"} == {*COMMANDS}
    assert all(commands.count(command) >= 4 for command in COMMANDS)
