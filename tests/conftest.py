"""Eight fake devices on the CPU, and the corpora that the tests share."""

import atexit
import fcntl
import gc
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

# What one test compiles, others need not, in this process or another: before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="chns_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Compiling takes most of the time here, and what is compiled runs for moments: without LLVM's
# optimisations, and with the emitters of XLA that compile soonest.
if "XLA_FLAGS" not in os.environ:
    flags = ["--xla_backend_optimization_level=0"]
    if version("jaxlib").startswith("0.10."):  # a flag that a release does not know ends JAX
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)

# Each core has a worker; threads of k-means and t-SNE would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# In programs that a test starts too: sums of as many devices are the same, and their compilations.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Annotations hold at every call, but where text and options are read: there, where there is no
# array, small functions are called a million times. Their types are pyright's.
MODULES = {
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "chns_jax")])
}
CHECKED = [f"chns_jax.{name}" for name in sorted(MODULES - {"common", "config"})]
jaxtyping.install_import_hook(CHECKED, "shape_checker.check")

pytest.register_assert_rewrite("support")

from support import TINY, save_untrained, write_tone  # noqa: E402

from chns_jax.common import errors  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """What a module compiled leaves the memory with it; JAX would keep it to the end."""
    yield
    jax.clear_caches()
    gc.collect()


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
        if re.search(r"\b(chromium|ffmpeg|onnxruntime-web|torch)\b", why):
            report.outcome, report.longrepr = (
                "failed",
                f"CHNS_CI is set, so nothing may skip: {why}",
            )
    return report


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once("run", make): the folder that `make(folder)` filled, in the first of the workers
    that asked for it; the others wait. No test may change what is in it."""

    def share(name: str, make) -> Path:
        base = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            base = base.parent  # of all workers
        folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
        with open(base / f"shared-{name}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return share


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


@pytest.fixture(scope="session")
def tones(made_once) -> Path:
    """<speaker>/<recording>/<utterance>.flac: 12 speakers, two recordings of two utterances."""

    def write(root):
        for speaker in range(12):
            for utterance in range(4):
                path = root / f"s{speaker:02d}" / f"r{utterance // 2}" / f"u{utterance}.flac"
                seconds = 0.6 + 0.1 * utterance
                write_tone(path, seconds, hertz=90 + 20 * speaker, seed=10 * speaker + utterance)

    return made_once("tones", write)


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


@pytest.fixture(scope="module")
def built_once():
    """Trainings of a module that differ in folders alone share what they trace and compile."""
    from chns_jax.training import parts

    def without_folders(config):
        data = replace(
            config.data, root="", more_roots=(), trials=None, trials_root=None, cache="",
            held_out=0,
        )  # fmt: skip
        training = replace(config.training, start_from=None, checkpoint_every=1)
        return replace(config, out="", data=data, training=training)

    def once(make):
        kept = lru_cache(maxsize=None)(make)
        return lambda config, *others: kept(without_folders(config), *others)

    usual = parts.PARTS
    shared = usual._replace(build=once(usual.build), embedder=once(usual.embedder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PARTS", shared)
        yield


@pytest.fixture
def command(capfd, built_once):
    """command("train", *arguments): what a program said, given that it ended with `status`.

    In this process, where nothing is imported or begun anew: (output, errors).
    """

    def run(name: str, *arguments, status: int = 0) -> tuple[str, str]:
        main = importlib.import_module(f"chns_jax.{name}").main
        capfd.readouterr()
        try:
            main([str(argument) for argument in arguments])
            ended = 0
        except SystemExit as exit:
            ended = exit.code
        except Exception as error:
            ended = errors.report(error)
        said = capfd.readouterr()
        assert ended == status, said.err
        assert "Traceback" not in said.err, said.err
        return said.out, said.err

    return run


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A run folder whose encoder is that of the start, with its weights drawn at random."""
    return save_untrained(tmp_path_factory.mktemp("untrained"), 0)


@pytest.fixture(scope="module")
def loaded_once():
    """A checkpoint that several tests of a module give to commands is restored once, and its
    encoder is traced once."""
    from chns_jax.embedding import model

    kept, load = {}, model.load

    def load_once(run, checkpoint="last", **options):
        key = str(run), checkpoint, *options.items()
        if key not in kept:
            kept[key] = load(run, checkpoint, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "load", load_once)
        yield


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
