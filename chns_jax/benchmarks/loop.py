"""The whole training loop, against the slower of its device and its loader."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from chns_jax.benchmarks.measure import QUICK, Row, Sizes, below
from chns_jax.config import Config
from chns_jax.corpus import synthetic

LEAST_SHARE = 0.95  # of the rate of the slower one
MOST_WAITING = 5.0  # per cent of the time
POOL = {True: (4, 3, 1.0), False: (24, 4, 8.0)}  # speakers, utterances of each, seconds


def loop(sizes: Sizes) -> Iterator[Row]:
    """A rehearsal with the mobile ECAPA-TDNN, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = rehearsed(sizes, Path(folder))
    rate = {who: report[f"{who}_utterances_per_second"] for who in ("loop", "host", "device")}
    slower = min(("host", "device"), key=rate.__getitem__)
    other = {"host": "its loader alone", "device": "its device alone"}[slower]
    share = rate["loop"] / rate[slower]
    yield Row(
        "training loop", rate["loop"], "utterances/s", other, rate[slower], share,
        f">= {LEAST_SHARE:g}", share >= LEAST_SHARE,
    )  # fmt: skip
    waiting = 100 * report["share_of_time_waiting_for_data"]
    yield below("training loop, waiting for data", waiting, "%", MOST_WAITING)
    where = "beside training" if report["refresh_is_beside_training"] else "between steps"
    yield Row(f"refresh {where}", report["seconds_of_a_refresh"], "s")
    yield Row("training loop, peak memory of the host", report["host_peak_gb"], "GB")
    if report["device_peak_gb"] is not None:
        yield Row("training loop, peak memory of the device", report["device_peak_gb"], "GB")
    first = sum(
        report[f"seconds_{part}"]
        for part in ("to_import", "until_the_first_step", "of_the_first_step")
    )
    yield Row("from the command to the end of the first step", first, "s")


def rehearsed(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """What `python -m chns_jax.rehearse` reports. Raises CalledProcessError."""
    speakers, utterances, seconds = POOL[sizes is QUICK]
    pool = synthetic.write_corpus(
        folder / "voices", seed=0, speakers=speakers, utterances=utterances, seconds=seconds,
        processes=1,
    )  # fmt: skip
    half = max(1, sizes.loop_steps // 2)
    # On a CPU, a refresh beside training takes the cores of what is measured.
    ahead = 0 if jax.default_backend() == "cpu" else max(1, half // 2)
    options = {
        **dict(zip(("speakers", "recordings", "utterances"), sizes.loop_corpus, strict=True)),
        "pool": pool, "steps": sizes.loop_steps, "feed_seconds": sizes.feed_seconds,
        "validation_utterances": 40, "trials": 80, "out": folder / "run", "data.cache": folder,
        "data.crop_seconds": (sizes.frames - 1) * Config().features.hop_ms / 1000,
        "encoder.ecapa.channels": list(sizes.channels),
        "encoder.ecapa.res2net_scale": sizes.res2net_scale,
        "sampler.speakers": sizes.rows["ecapa_tdnn"] // 2, "sampler.utterances_per_speaker": 2,
        "sampler.clusters": sizes.clusters, "sampler.start_step": half,
        "sampler.refresh_ahead": ahead, "training.devices": 1,
    }  # fmt: skip
    command = [sys.executable, "-m", "chns_jax.rehearse"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return json.loads(done.stdout)
