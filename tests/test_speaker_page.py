"""The page that compares voices: what is written, and what a visitor sees in Chromium."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper
from support import RATE, finish
from webdriver import chromium

from chns_jax import SpeakerEncoder, page
from chns_jax.common.errors import UserError
from chns_jax.embedding.buckets import cut, segments
from chns_jax.interop import onnx_digest
from chns_jax.reports import speaker_page
from chns_jax.scoring import calibration as calibrations
from chns_jax.scoring.calibration import Calibration

ROOT = Path(__file__).parents[1]
CALIBRATION = Calibration(
    scale=11.0, offset=-4.0, quality={"duration": 0.2}, threshold=1.5,
    set_for={"false_accept_rate": 0.01},
    scores={"checkpoint": "x", "segments": None, "norm": None},
    speakers=20, targets=50, nontargets=100, cllr=0.5, min_cllr=0.4,
)  # fmt: skip
METADATA = {
    "sample_rate": "16000",
    "output_dim": "20",
    "shortest_seconds": "0.2",
    "digest": "0123456789abcdef" * 4,
    "calibration": json.dumps(dataclasses.asdict(CALIBRATION)),
}


def speaker_onnx(path: Path, metadata: dict[str, str] = METADATA) -> Path:
    """A stand-in of what chns_jax.export writes: levels in 20 bands, centred."""
    time = np.arange(400) / RATE
    tones = np.sin(2 * np.pi * np.geomspace(100, 6000, 20)[:, None] * time) * np.hanning(400)
    constants = {
        "filters": tones.astype(np.float32)[:, None],
        "least": np.float32(1e-4),
        "second": np.array([1]),
        "third": np.array([2]),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "second"], ["rows"]),
        helper.make_node("Conv", ["rows", "filters"], ["bands"], strides=[160]),
        helper.make_node("Mul", ["bands", "bands"], ["power"]),
        helper.make_node("ReduceMean", ["power", "third"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "least"], ["above"]),
        helper.make_node("Log", ["above"], ["levels"]),
        helper.make_node("ReduceMean", ["levels", "second"], ["level"]),
        helper.make_node("Sub", ["levels", "level"], ["centred"]),
        helper.make_node("ReduceL2", ["centred", "second"], ["norm"]),
        helper.make_node("Div", ["centred", "norm"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "speaker",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["b", "s"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", 20])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx_digest.describe(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The npm package onnxruntime-web."""
    package = Path(os.environ.get("CHNS_ONNXRUNTIME_WEB", ROOT / "node_modules/onnxruntime-web"))
    if not package.is_dir():
        pytest.skip(
            f"no onnxruntime-web: npm install onnxruntime-web@{speaker_page.RUNTIME_VERSION}"
        )
    return package


@pytest.fixture
def package(tmp_path) -> Path:
    """What looks like the npm package."""
    (tmp_path / "npm" / "dist").mkdir(parents=True)
    for name in (speaker_page.GLUE, speaker_page.WASM):
        (tmp_path / "npm" / "dist" / name).write_text(name)
    return tmp_path / "npm"


def test_the_model_is_described():
    about = speaker_page.describe(METADATA)
    expected = {"scale": 11, "offset": -4, "duration": 0.2, "threshold": 1.5}
    assert about.pop("calibration") == {**expected, "set_for": {"false_accept_rate": 0.01}}
    assert about == {
        "sample_rate": RATE, "shortest": 3200, "longest": 960_000, "segment": None,
        "digest": METADATA["digest"],
    }  # fmt: skip
    without = {key: value for key, value in METADATA.items() if key != "calibration"}
    assert speaker_page.describe(without)["calibration"] is None
    scores = {**CALIBRATION.scores, "segments": 4.0}
    segmented = dataclasses.asdict(dataclasses.replace(CALIBRATION, scores=scores))
    about = speaker_page.describe({**METADATA, "calibration": json.dumps(segmented)})
    assert about["segment"] == 64_000


@pytest.mark.parametrize("key, value", [
    ("sample_rate", "x"), ("sample_rate", "1"), ("shortest_seconds", "inf"),
    ("shortest_seconds", "-1"), ("calibration", "{}"), ("calibration", "["), ("digest", None),
])  # fmt: skip
def test_other_metadata_are_refused(key, value):
    metadata = {k: v for k, v in {**METADATA, key: value}.items() if v is not None}
    with pytest.raises(UserError, match="the metadata of speaker.onnx are not those of a"):
        speaker_page.describe(metadata)


def test_a_model_that_was_changed_is_refused(command, tmp_path, package):
    """In one bit, be it of a weight, of a name or of the metadata."""
    path = speaker_onnx(tmp_path / "speaker.onnx")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    page = "page", path, "--out", tmp_path / "page", "--onnxruntime_web", package
    for place in [*rng.integers(len(whole), size=40), *range(len(whole) - 400, len(whole), 9)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        command(*page, status=2)
    assert not (tmp_path / "page" / "speaker.onnx").exists()
    path.write_bytes(whole)
    command(*page)


def test_norms_are_refused():
    norm = {"kind": "as-norm", "cohort": "x", "top": 3, "speakers": 9}
    made = dataclasses.replace(CALIBRATION, scores={**CALIBRATION.scores, "norm": norm})
    text = json.dumps(dataclasses.asdict(made))
    with pytest.raises(UserError, match="for --norm as-norm, whose impostors the page does not"):
        speaker_page.describe({**METADATA, "calibration": text})


def test_a_page_is_written_again_but_over_nothing_else(package, tmp_path):
    given = [str(speaker_onnx(tmp_path / "speaker.onnx")), "--onnxruntime_web", str(package)]
    out = tmp_path / "out"
    for _ in range(2):
        page.main([*given, "--out", str(out)])
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    web = {path.name for path in (ROOT / "chns_jax/reports/web").iterdir()}
    runtime = {f"onnxruntime/{name}" for name in (speaker_page.GLUE, speaker_page.WASM)}
    assert written == web | runtime | {"model.json", "speaker.onnx"}
    about = json.loads((out / "model.json").read_text())
    assert set(about["files"]) == {"speaker.onnx", f"onnxruntime/{speaker_page.WASM}"}
    for name, said in about["files"].items():
        data = (out / name).read_bytes()
        assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / "mine.txt").write_text("")
    with pytest.raises(UserError, match="holds other things than a page: give a new folder"):
        page.main([*given, "--out", str(out)])


def test_the_page_asks_nobody_else():
    """No file of the page names another host, and its policy lets none be asked."""
    for path in (ROOT / "chns_jax/reports/web").iterdir():
        assert not re.search(r"https?://|//\w", re.sub(r"// .*", "", path.read_text())), path
    policy = re.search('Content-Security-Policy" content="([^"]+)', (
        ROOT / "chns_jax/reports/web/index.html").read_text())[1]  # fmt: skip
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    assert set(rules["script-src"].split()) == {"'self'", "'wasm-unsafe-eval'"}


def test_one_version_of_the_runtime_is_named():
    named = f"onnxruntime-web@{speaker_page.RUNTIME_VERSION}"
    for path in (".ci/run", "docs/verification.md"):
        assert named in (ROOT / path).read_text(), path


def voice(path: Path, hertz: float, seconds: float = 3.0, seed: int = 0, level: float = 0.1):
    """A harmonic tone, louder in low bands for low voices, in noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    soundfile.write(path, (level * (wave + noise)).astype(np.float32), RATE)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Recordings to give: voices, and what is none."""
    folder = tmp_path_factory.mktemp("clips")
    for name, hertz in {"a1": 120, "a2": 121, "b1": 400}.items():
        voice(folder / f"{name}.wav", hertz, seed=len(name))
    voice(folder / "quiet.wav", 120, level=0.001)
    voice(folder / "short.wav", 120, 0.1)
    voice(folder / "brief.wav", 120, 0.9)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no audio\n")
    with soundfile.SoundFile(folder / "hours.flac", "w", 8000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.int16))
    return folder


@contextmanager
def served_by(server: subprocess.Popen):
    """The address that the command prints; it ends with the block, as it does by a signal."""
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), server.communicate()[1]
    try:
        yield address
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode == 128 + 15


@pytest.fixture(scope="module")
def served(runtime, tmp_path_factory):
    """The folder and the address of a page that the command serves."""
    folder = tmp_path_factory.mktemp("page")
    model = speaker_onnx(folder / "speaker.onnx")
    command = [
        sys.executable, "-m", "chns_jax.page", str(model), "--out", str(folder / "out"), "--serve",
        "--port", "0", "--onnxruntime_web", str(runtime),
    ]  # fmt: skip
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe)
    with served_by(server) as address:
        yield folder / "out", address


@pytest.fixture(scope="module")
def tab(served, clips):
    """A browser at the page, whose microphone hears a recording."""
    heard = f"--use-file-for-fake-audio-capture={clips / 'a1.wav'}"
    with chromium("--use-fake-ui-for-media-stream", heard) as opened:
        opened.open(served[1])
        opened.wait("#loading-text", "The model is ready.")
        yield opened


def embedding(model: Path, clip: Path) -> np.ndarray:
    waveform, _ = soundfile.read(clip, dtype="float32")
    session = onnxruntime.InferenceSession(str(model))
    return session.run(None, {"waveform": waveform[None]})[0][0]


def give(tab, place: str, clip: Path, says: str = "") -> str:
    """Choose a file in one of the page's places, and wait for what is said of it."""
    tab.type(f"#{place} input", str(clip))
    return tab.wait(f"#{place} .said", says or f"{clip.name}: ")


@pytest.mark.long
def test_two_recordings(tab, served, clips):
    for other, same in (("a2", True), ("b1", False)):
        one, two = clips / "a1.wav", clips / f"{other}.wav"
        assert "3.0 s" in give(tab, "first", one)
        give(tab, "second", two)
        said = tab.wait("#verdict", "speaker")
        assert said == ("One speaker" if same else "Different speakers")
        found = tab.run("return {...document.querySelector('#verdict').dataset}")
        model = served[0] / "speaker.onnx"
        cosine = float(embedding(model, one) @ embedding(model, two))
        llr = CALIBRATION.log_likelihood_ratios(
            np.array([cosine]), {"duration": np.log([3.0])}
        ).item()
        assert float(found["cosine"]) == pytest.approx(cosine, abs=1e-4)
        assert float(found["llr"]) == pytest.approx(llr, abs=1e-3)
        details = tab.text("#details")
        assert "The threshold is 1.50, set for accepting 1 % of other people." in details
        gauge = tab.run("return document.querySelector('.scale').getAttribute('aria-valuenow')")
        assert float(gauge) == pytest.approx(llr, abs=1e-3)
    assert tab.console() == []


@pytest.mark.long
def test_what_is_no_speech_is_said(tab, clips):
    for name, says in {
        "text.wav": "This file is no audio that the browser reads: give wav, flac, mp3 or ogg.",
        "empty.wav": "This file is empty: give a recording of speech.",
        "short.wav": "This has 0.10 s, too short to tell who speaks: give 0.2 s at least",
        "silent.wav": "This is silent: give a recording of speech.",
        "hours.flac": "This is 120 minutes long, more than 10: give a part of it.",
        "quiet.wav": "quiet.wav: 3.0 s. Too quiet: come nearer to the microphone.",
        "brief.wav": "brief.wav: 0.9 s. Too short to be sure: several seconds are better.",
    }.items():
        assert give(tab, "first", clips / name, re.escape(says)).startswith(says)
        assert tab.run("return document.querySelector('#first .said').className") == "said error"
    assert tab.console() == []


@pytest.mark.long
def test_who_speaks(tab, clips):
    assert give(tab, "somebody", clips / "a2.wav")
    assert tab.wait("#identified", ".") == "Nobody is enrolled yet."
    for name, clip in (("Ana <b>", "a1"), ("Ben", "b1")):
        give(tab, "enrolment", clips / f"{clip}.wav")
        tab.type("#name", f"{name}\ue007")  # Enter
        tab.wait("#enrol-said", f"{name} is enrolled.")
    assert tab.text("#identified") == "Ana <b>"
    rows = tab.text("#ranking tbody").splitlines()
    assert [row.split("\t")[0] for row in rows] == ["Ana <b>", "Ben"]
    tab.type("#name", "Cleo\ue007")
    assert tab.wait("#enrol-said", "first") == "Record somebody first, or choose a file."
    tab.click("#enrolled button")
    assert tab.text("#enrol-said") == "Ana <b> is removed."
    assert tab.wait("#identified", "Unknown")
    assert tab.console() == []


@pytest.mark.long
def test_a_recording(tab):
    tab.click("#first .record")
    tab.wait("#first .record", r"Stop \([1-9] s\)")
    tab.click("#first .record")
    assert tab.wait("#first .said", "Recorded: ")
    assert tab.text("#first .record") == "Record"
    assert tab.console() == []


@pytest.mark.long
def test_scores_are_those_of_the_command_line(tab):
    """scoring.js and Python, on the same vectors."""
    script = """return import("./scoring.js").then(scoring => {
      const [length, about] = arguments;
      const samples = Float32Array.from({length}, (_, i) => i);
      return scoring.parts(samples, about).map(part => [part.length, part[0], part.at(-1)]);
    })"""
    for length in (5, 10, 11, 99, 100, 101, 250):
        waveform = np.arange(length)
        for segment, pieces in (
            (None, cut(waveform, shortest=10, longest=100)), (40, segments(waveform, 40)),
        ):  # fmt: skip
            about = {"segment": segment, "shortest": 10, "longest": 100}
            expected = [[len(piece), piece[0], piece[-1]] for piece in pieces]
            assert tab.run(script, length, about) == expected
    script = """return import("./scoring.js").then(({compare}) => compare(...arguments))"""
    voices = [{"embedding": e, "seconds": s} for e, s in (([0.6, 0.8], 2), ([1, 0], 5))]
    told = speaker_page.describe(METADATA)["calibration"]
    found = tab.run(script, *voices, told)
    llr = 11 * 0.6 - 4 + 0.2 * math.log(2)
    assert found["cosine"] == pytest.approx(0.6) and found["same"]
    assert found["llr"] == pytest.approx(llr)
    assert tab.run(script, *voices, None)["llr"] is None


@pytest.mark.long
def test_everyone_can_use_it(tab):
    """Every control has a name, says what happens aloud, and nothing is wider than a phone."""
    nameless = tab.run("""
      return [...document.querySelectorAll("button, input, audio, canvas")].filter(x =>
        !(x.getAttribute("aria-label") || x.textContent.trim() || x.labels?.length)).length""")
    assert nameless == 0
    live = "verdict", "identified", "enrol-said", "loading-text"
    assert all(
        tab.run("return document.getElementById(arguments[0]).role", name) == "status"
        for name in live
    )
    tab.resize(360)
    assert tab.run("return document.documentElement.scrollWidth <= innerWidth")
    tab.resize(1200)


@pytest.mark.long
def test_the_network_is_refused(tab):
    asked = """return fetch("https://example.com/").then(() => "answered", error => error.name)"""
    assert tab.run(asked) == "TypeError"
    (said,) = [line for line in tab.console() if "example.com" in line and "connect-src" in line]
    assert "violates" in said


@pytest.mark.long
def test_a_refused_microphone_and_a_damaged_model(served, clips):
    folder, address = served
    with chromium("--deny-permission-prompts") as tab:
        tab.open(address)
        tab.wait("#loading-text", "ready")
        tab.click("#first .record")
        assert tab.wait("#first .said", "refused|There is no") == (
            "The microphone was refused: allow it in the browser's settings, or choose a file."
        )
        assert tab.console() == []
        model = folder / "speaker.onnx"
        data = bytearray(model.read_bytes())
        shutil.copy(model, model.with_suffix(".kept"))
        data[len(data) // 2] ^= 1
        for damaged in (bytes(data), bytes(data[:900])):
            model.write_bytes(damaged)
            tab.open(address)
            said = tab.wait("#loading-text", "damaged|ready")
            assert said == "speaker.onnx is damaged or was changed: write the page again."
            give(tab, "first", clips / "a1.wav", "speaker.onnx is damaged")
        model.unlink()
        tab.open(address)
        assert "speaker.onnx cannot be loaded" in tab.wait("#loading-text", "loaded: |ready")
        shutil.move(model.with_suffix(".kept"), model)


@pytest.mark.long
def test_a_run_scores_as_verify_does(untrained, runtime, program, tmp_path, clips):
    """A calibrated run's page, recordings of one speaker and of two, and `verify`; of real speech
    where there is some."""
    files = [clips / "a1.wav", clips / "a2.wav", clips / "b1.wav"]
    if folder := os.environ.get("CHNS_REAL_DATA"):
        root = Path(folder) / "librimini"
        one, other = sorted(path for path in root.iterdir() if path.is_dir())[:2]
        files = [*sorted(one.rglob("*.flac"))[:2], sorted(other.rglob("*.flac"))[0]]
    run = shutil.copytree(untrained, tmp_path / "run")
    scores = {**CALIBRATION.scores, "checkpoint": SpeakerEncoder.load(run).checkpoint}
    calibrations.save(run / "calibration.json", dataclasses.replace(CALIBRATION, scores=scores))
    encoder = SpeakerEncoder.load(run)
    server = program("page", run, "--serve", "--port", 0, "--onnxruntime_web", runtime)
    with served_by(server) as address, chromium() as tab:
        tab.open(address)
        give(tab, "first", files[0])
        for second in files[1:]:
            give(tab, "second", second)
            tab.wait("#verdict", "speaker")
            found = tab.run("return {...document.querySelector('#verdict').dataset}")
            expected = encoder.verify(files[0], second)
            assert float(found["cosine"]) == pytest.approx(expected.cosine, abs=1e-4)
            llr = expected.log_likelihood_ratio
            assert float(found["llr"]) == pytest.approx(llr, abs=1e-3)
            assert (tab.text("#verdict") == "One speaker") == expected.same_speaker
        assert tab.console() == []


@pytest.mark.long
def test_a_port_that_is_taken(served, runtime, program, tmp_path):
    folder, address = served
    port = address.rsplit(":", 1)[1].strip("/")
    given = [folder / "speaker.onnx", "--serve", "--port", port, "--onnxruntime_web", runtime]
    _, said = finish(program("page", *given), 2)
    assert said.startswith(f"error: --port {port} cannot be used: ")
