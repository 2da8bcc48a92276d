"""Eight fake devices on the CPU, and the corpora that the tests share."""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What one test compiles, others need not, in this process or another: before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="chns_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

GOLDEN = Path(__file__).parent / "golden"
RATE = 16_000


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is marked `long`, unless -m says so or a test is asked for by its name."""
    if "long" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where CHNS_CI is set, a test fails that would skip for want of one of these."""
    report = yield
    if report.skipped and os.environ.get("CHNS_CI") and isinstance(report.longrepr, tuple):
        why = report.longrepr[2]
        if re.search(r"\b(chromium|ffmpeg|torch)\b", why):
            report.outcome, report.longrepr = (
                "failed",
                f"CHNS_CI is set, so nothing may skip: {why}",
            )
    return report


@pytest.fixture(scope="session")
def golden():
    """golden("losses"): inputs and outputs of a reference implementation, as arrays by name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real speech."""
    folder = os.environ.get("CHNS_REAL_DATA")
    if not folder:
        pytest.skip("CHNS_REAL_DATA names no folder of real speech")
    return Path(folder)


def write_tone(
    path: Path, seconds: float, *, hertz: float, rate: int = RATE, seed: int = 0
) -> None:
    """A decaying harmonic tone in a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).normal(0, 0.3, len(time))
    soundfile.write(path, (0.1 * (tone + noise)).astype(np.float32), rate, subtype="PCM_16")


@pytest.fixture(scope="session")
def tones(tmp_path_factory) -> Path:
    """<speaker>/<recording>/<utterance>.flac: 12 speakers, two recordings of two utterances."""
    root = tmp_path_factory.mktemp("tones")
    for speaker in range(12):
        for utterance in range(4):
            path = root / f"s{speaker:02d}" / f"r{utterance // 2}" / f"u{utterance}.flac"
            seconds = 0.6 + 0.1 * utterance
            write_tone(path, seconds, hertz=90 + 20 * speaker, seed=10 * speaker + utterance)
    return root


TINY = [
    "--encoder.ecapa.channels", "[8,8,8,8,16]", "--encoder.ecapa.res2net_scale", "4",
    "--encoder.ecapa.se_channels", "4", "--encoder.ecapa.attention_channels", "4",
    "--encoder.embedding", "8", "--features.bands", "20", "--data.crop_seconds", "0.5",
    "--data.held_out", "3", "--sampler.speakers", "4", "--sampler.clusters", "3",
    "--sampler.utterances_per_speaker", "2", "--sampler.refresh_every", "4",
    "--optimizer.learning_rate", "0.01", "--training.steps", "14",
    "--training.checkpoint_every", "3", "--training.log_every", "1", "--validation.every", "7",
    "--training.devices", "1", "--data.threads", "2",
]  # fmt: skip


@pytest.fixture
def tiny(tones, tmp_path) -> list[str]:
    """Arguments of the smallest training run, on `tones`, to `tmp_path`/run."""
    where = ["--data.root", tones, "--data.cache", tmp_path / "cache", "--out", tmp_path / "run"]
    return [*TINY, *map(str, where)]


@pytest.fixture(scope="session")
def program():
    """program("train", *arguments): start `python -m chns_jax.train` as a user would."""

    def start(
        name: str,
        *arguments,
        largest_file_kb: int | None = None,
        folder: Path | None = None,
        **variables: str,
    ) -> subprocess.Popen:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            **variables,
        }
        command = [sys.executable, "-m", f"chns_jax.{name}", *map(str, arguments)]
        if largest_file_kb is not None:
            command = ["bash", "-c", f'ulimit -f {largest_file_kb}; exec "$@"', "bash", *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe
        )

    return start


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A run folder whose encoder is that of the start, with its weights drawn at random."""
    from functools import partial

    from chns_jax import config as configs
    from chns_jax.encoders import make_encoder
    from chns_jax.runs import checkpoint
    from chns_jax.training.optimizer import make_optimizer
    from chns_jax.training.step import init

    run = tmp_path_factory.mktemp("untrained")
    config = configs.load([*TINY, "--out", str(run)])
    (run / "config.yaml").write_text(configs.to_yaml(config))
    tx = make_optimizer(config.optimizer, config.training.steps)
    state = jax.jit(partial(init, config, make_encoder(config.encoder), tx, 9))()
    with checkpoint.open_manager(run / "checkpoints") as manager:
        checkpoint.save(manager, state, None, checkpoint.Progress(0, 0.0, "", ""), "", None)
    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """browser(page): its HTML after its scripts ran, given that nothing was wrong with it.

    Every figure is drawn, the console stays empty, and so no request to the network was tried,
    which the page's own policy would refuse there; a screenshot lies beside the page.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is on the PATH: apt-get install chromium")

    def look(page: Path) -> str:
        picture = page.with_suffix(".png")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
            "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000",
            "--window-size=1200,2400", f"--screenshot={picture}", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        assert picture.stat().st_size > 10_000
        figures = re.split('class="plotly-graph-div', done.stdout)[1:]
        assert all('class="main-svg"' in drawn for drawn in figures)
        assert all('data-title="Share' not in drawn for drawn in figures)  # that would upload it
        return done.stdout

    return look
