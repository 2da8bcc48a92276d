"""What several test modules use: recordings, the smallest runs, and programs that end."""

import time
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from chns_jax import config as configs
from chns_jax.config import (
    Config,
    Ecapa,
    Encoder,
    Features,
    Optimizer,
    ReDimNet2,
    Sampler,
    Training,
)
from chns_jax.devices.sharding import make_mesh, replicated
from chns_jax.encoders import make_encoder
from chns_jax.runs import checkpoint
from chns_jax.training import build as training_build
from chns_jax.training.logs import records

RATE = 16_000


def write_tone(
    path: Path, seconds: float, *, hertz: float, rate: int = RATE, seed: int = 0
) -> None:
    """A decaying harmonic tone in a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).normal(0, 0.3, len(time))
    soundfile.write(path, (0.1 * (tone + noise)).astype(np.float32), rate, subtype="PCM_16")


def pairs_of_tones(speakers: int) -> list[str]:
    """Lines of a trial list: every pair of the utterances of the first of the fixture `tones`."""
    names = [f"s{s:02d}/r{u // 2}/u{u}.flac" for s in range(speakers) for u in range(4)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in pairs]


TINY = [
    "--encoder.ecapa.channels", "[8,8,16]", "--encoder.ecapa.kernel_sizes", "[5,3,1]",
    "--encoder.ecapa.dilations", "[1,2,1]", "--encoder.ecapa.res2net_scale", "2",
    "--encoder.ecapa.se_channels", "4", "--encoder.ecapa.attention_channels", "4",
    "--encoder.embedding", "8", "--features.bands", "20", "--data.crop_seconds", "0.5",
    "--data.held_out", "3", "--sampler.speakers", "4", "--sampler.clusters", "3",
    "--sampler.utterances_per_speaker", "2", "--sampler.refresh_every", "4",
    "--optimizer.learning_rate", "0.01", "--training.steps", "14",
    "--training.checkpoint_every", "3", "--training.log_every", "1", "--validation.every", "7",
    "--training.devices", "1", "--data.threads", "2",
]  # fmt: skip


def finish(process, status=0):
    """Output of a program, which must end with `status` and without a traceback."""
    output, errors = process.communicate(timeout=900)  # of a busy machine
    assert process.returncode == status, errors
    assert "Traceback" not in errors, errors
    return output, errors


def wait_for(process, holds, what, seconds=120):
    started = time.monotonic()
    while not holds():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() - started < seconds, f"waited in vain for {what}"
        time.sleep(0.002)


def step_of(run):
    steps = [record["step"] for record in records(run / "metrics.jsonl") if "loss" in record]
    return max(steps, default=0)


SHALLOW = Encoder(
    embedding=8,
    ecapa=Ecapa(
        channels=(8, 16, 16), kernel_sizes=(5, 3, 1), dilations=(1, 2, 1), res2net_scale=2,
        se_channels=4, attention_channels=4,
    ),
)  # fmt: skip
REDIMNET2 = Encoder(
    kind="redimnet2",
    embedding=8,
    redimnet2=ReDimNet2(
        channels=4, frequency_strides=(2,), time_strides=(3,), blocks=(1,), expansions=(1.5,),
        reductions=(20,), head="2d", head_channels=3, group_norm=4,
    ),
)  # fmt: skip
CONFIG = Config(
    features=Features(bands=20),
    encoder=SHALLOW,
    sampler=Sampler(speakers=8),
    optimizer=Optimizer(learning_rate=0.003),
    training=Training(steps=40, seed=1),
)
LABELS = np.tile(np.arange(8), 2).astype(np.int32)


def audio(seed=0, rows=16, samples=4000):
    """Rows i and i + 8 are trembling tones of one pitch."""
    rng, time = np.random.default_rng(seed), np.arange(samples) / 16_000
    pitch = np.tile(200 * 1.3 ** np.arange(rows // 2), 2)[:, None]
    wave = np.sin(2 * np.pi * (pitch * time + rng.random((rows, 1))))
    tremble = 1 + np.sin(2 * np.pi * 9 * time)
    return (3000 * (wave * tremble + rng.normal(0, 0.1, wave.shape))).astype(np.int16)


RIRS = np.eye(3, 50, dtype=np.float32) + 0.3 * np.eye(3, 50, 20, dtype=np.float32)


@lru_cache
def first_state(config, speakers=8):
    """Before the first step, made on one device."""
    return training_build.build(config, speakers, make_mesh(1)).init()


@lru_cache
def build(config=CONFIG, devices=1):
    """Mesh, encoder, first state, and the step, which leaves the state that it is given."""
    mesh = make_mesh(devices)
    made = training_build.build(config, 8, mesh)

    def step(state, batch, clustered=False):
        mine = jax.tree.map(lambda rows: rows[made.held], batch)
        copied = jax.tree.map(jnp.copy, state)  # it is overwritten
        return made.update(copied, made.put(mine), RIRS, clustered)

    state = jax.device_put(first_state(config), replicated(mesh))
    training = config.training
    encoder = make_encoder(config.encoder, dtype=training.compute, remat=training.remat)
    return mesh, encoder, state, step


def save_untrained(run, seed):
    """Make a run folder of the encoder with which training with TINY begins; returns it."""
    run.mkdir(exist_ok=True)
    config = configs.load([*TINY, "--training.seed", str(seed), "--out", str(run)])
    text = configs.to_yaml(config)
    (run / "config.yaml").write_text(text)
    state = first_state(config, speakers=9)
    with checkpoint.open_manager(run / "checkpoints") as manager:
        checkpoint.save(manager, state, None, checkpoint.Progress(0, 0.0, "", ""), text, None)
    return run
