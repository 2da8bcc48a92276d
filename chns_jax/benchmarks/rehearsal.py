"""The training loop at its full size before there is the corpus: what it takes of this machine."""

from __future__ import annotations

import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from chns_jax.benchmarks import large_corpus
from chns_jax.benchmarks.large_corpus import Pool, Size
from chns_jax.benchmarks.measure import device_gb, peak_gb
from chns_jax.benchmarks.sleeping import SleepingDevice, SleepingEmbedder, sleeping_build
from chns_jax.common.console import say
from chns_jax.config import Config, Hosts
from chns_jax.corpus.noise import find_noise
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.speeds import with_speeds
from chns_jax.embedding.embedder import Embedder
from chns_jax.runs import checkpoint
from chns_jax.runs.folder import RunFolder
from chns_jax.sampling import plan, rounds
from chns_jax.sampling.pipeline import training_batches
from chns_jax.training.build import Build, build
from chns_jax.training.logs import is_due, records
from chns_jax.training.parts import PARTS, Parts

FEED_WARM_UP = 5  # batches: until memory is used again
FORWARD_SHARE = 1 / 3  # of a training step's time
DEVICE_REPEATS = 3
DAY = 24 * 3600


class Rehearsal(NamedTuple):
    """What is rehearsed."""

    training: Size
    validation: Size
    trials: int
    pool: str | Pool  # folder of the speech that is heard again and again, or built-in voices
    steps: int
    step_seconds: float | None  # None: the step is real; else it is a sleep
    embed_seconds: float | None = None  # of a batch of crops; None: in proportion to the step
    feed_seconds: float = 10.0  # for which reading is measured alone


def rehearse(config: Config, about: Rehearsal, train: Callable[..., None]) -> dict[str, Any]:
    """Run `train` of chns_jax.train for a few steps; returns what it took, as a JSON object.

    Its run folder is made beside that of the config, and removed. Raises UserError as training
    does.
    """
    shortened = _shortened(config, about)
    if not isinstance(about.pool, Pool):
        say(f"the speech of {about.pool} stands for all")
    say(f"measuring how fast {config.data.threads} threads read")
    fed, opened_in = _feed(shortened, about.feed_seconds)
    watch = Watch()
    beside = Path(config.out).expanduser().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=beside) as folder:
        run = replace(shortened, out=str(Path(folder) / "run"))
        began = time.perf_counter()
        with ExitStack() as opened:
            train(run, opened, watch.parts(run, about))
        whole = time.perf_counter() - began
        logged = list(records(RunFolder(Path(run.out)).metrics))
        peak = peak_gb()  # of the host, before anything else is measured
        on_device = device_gb()
        device = watch.device_rate() if about.step_seconds is None else None
    rows = 2 * config.sampler.speakers
    step = watch.seconds_per_step()
    waited = sum(record.get("data_wait_seconds", 0.0) for record in logged)
    took = {name: statistics.median(values) for name, values in watch.took.items()}
    start = watch.updates[0].asked - began
    return {
        "steps": about.steps,
        "batch_utterances": rows,
        "training_utterances": about.training.utterances,
        "step_is_a_sleep_of": about.step_seconds,
        "host_utterances_per_second": fed,
        "device_utterances_per_second": device or rows / (about.step_seconds or math.inf),
        "loop_utterances_per_second": rows / step,
        "seconds_per_step": step,
        "main_thread_cpu_seconds_per_step": watch.cpu_per_step(),
        "share_of_time_waiting_for_data": waited / (about.steps * step),
        "seconds_to_open_the_corpus": opened_in,
        "seconds_until_the_first_step": start,
        "seconds_of_the_first_step": watch.first_step,
        "seconds_of_a_refresh": took.get("refresh", took.get("refresh beside training")),
        "refresh_is_beside_training": "refresh beside training" in took,
        "seconds_of_a_checkpoint": took["checkpoint"],
        "seconds_of_a_validation": took["validation"],
        "seconds_of_the_rehearsal": whole,
        "host_peak_gb": peak,
        "device_peak_gb": on_device,
        "days_of_the_config": days(config, about.training.utterances, step, start, took),
    }


def days(
    config: Config, utterances: int, step_seconds: float, start: float, took: dict[str, float]
) -> float:
    """Of all steps of a config, with what stops them: seconds of a "refresh", a "checkpoint" and a
    "validation", as far as `took` has them."""
    sampler, steps = config.sampler, config.training.steps
    at_all_speeds = utterances * (1 + len(config.data.speeds))
    length = rounds.length(sampler, config.training, at_all_speeds)
    refreshes = sum(rounds.begins(step, sampler, length) for step in range(steps))
    validates = [is_due(step, config.validation.every, steps) for step in range(1, steps + 1)]
    saves = [
        validated or is_due(step, config.training.checkpoint_every, steps)
        for step, validated in enumerate(validates, start=1)
    ]
    counts = {"refresh": refreshes, "validation": sum(validates), "checkpoint": sum(saves)}
    pauses = sum(count * took.get(name, 0.0) for name, count in counts.items())
    return (start + steps * step_seconds + pauses) / DAY


class Update(NamedTuple):
    """When training asked for a step, and what it had taken of its thread's processor by then."""

    asked: float
    cpu: float


class Watch:
    """Times the parts of a run."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.first_step = 0.0  # seconds
        self.took: dict[str, list[float]] = {}
        self._pauses: list[tuple[Update, Update]] = []  # of the thread that trains
        self._again: Callable[[], Any] = lambda: None

    def parts(self, config: Config, about: Rehearsal) -> Parts:
        """Those of training, timed; with a device that sleeps, if it is to."""
        make_build: Callable[[Config, int, Mesh], Build] = build
        make_embedder: Callable[[Config, Mesh], Embedder] = Embedder
        sleep = about.step_seconds
        if sleep is not None:
            device, rows = SleepingDevice(), 2 * config.sampler.speakers
            per_row = FORWARD_SHARE * sleep / rows

            def sleeping_embedder(config: Config, mesh: Mesh) -> Embedder:
                embedder = SleepingEmbedder(config, mesh, device)
                seconds = about.embed_seconds
                embedder.seconds = per_row * embedder.rows if seconds is None else seconds
                return embedder

            def build_sleeping(config: Config, speakers: int, mesh: Mesh) -> Build:
                return sleeping_build(build(config, speakers, mesh), config, device, sleep)

            make_build, make_embedder = build_sleeping, sleeping_embedder

        return Parts(
            build=lambda *arguments: self._timed_build(make_build(*arguments)),
            embedder=make_embedder,
            make_table=self._timed("refresh", PARTS.make_table),
            validate=self._timed("validation", PARTS.validate),
            save=self._timed("checkpoint", checkpoint.save),
            stopped="and nothing of the rehearsal is kept",
        )

    def seconds_per_step(self) -> float:
        """Of the steps after the first, without refreshes, checkpoints and validations."""
        return self._per_step(lambda update: update.asked)

    def cpu_per_step(self) -> float:
        """Seconds of its processor that the thread that trains takes for a step."""
        return self._per_step(lambda update: update.cpu)

    def device_rate(self) -> float:
        """Utterances a second that the device takes where it never waits."""
        rows = self._again()
        seconds = []
        for _ in range(DEVICE_REPEATS):
            began = time.perf_counter()
            self._again()
            seconds.append(time.perf_counter() - began)
        return rows / statistics.median(seconds)

    def _per_step(self, of: Callable[[Update], float]) -> float:
        first, last = self.updates[min(1, len(self.updates) - 1)], self.updates[-1]
        paused = sum(
            of(end) - of(begin)
            for begin, end in self._pauses
            if first.asked <= begin.asked and end.asked <= last.asked
        )
        if first == last:  # there are two steps at most
            return self.first_step
        return (of(last) - of(first) - paused) / (len(self.updates) - 2)

    def _timed(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **keys):
            begin = _now()
            result = function(*arguments, **keys)
            end = _now()
            beside = threading.current_thread() is not threading.main_thread()
            what = f"{name} beside training" if beside else name
            self.took.setdefault(what, []).append(end.asked - begin.asked)
            if not beside:
                self._pauses.append((begin, end))
            return result

        return call

    def _timed_build(self, built: Build) -> Build:
        def update(state, batch, *others):
            self.updates.append(_now())
            state, metrics = built.update(state, batch, *others)
            if len(self.updates) == 1:
                jax.block_until_ready(metrics["loss"])
                self.first_step = time.perf_counter() - self.updates[0].asked
            last = [state]

            def again() -> int:
                last[0], metrics = built.update(last[0], batch, *others)
                jax.block_until_ready(metrics["loss"])
                return len(batch["labels"])

            self._again = again
            return state, metrics

        return built._replace(update=update)


def _now() -> Update:
    return Update(time.perf_counter(), time.thread_time())


def _shortened(config: Config, about: Rehearsal) -> Config:
    """The config for so few steps, of an index of that size, that everything happens once: a
    refresh and a checkpoint halfway, a validation at the end."""
    about.training.check()  # before the pool, which takes a minute
    cache = Path(config.data.cache).expanduser()
    pool = large_corpus.make_pool(cache, config.features.sample_rate, about.pool)
    training = large_corpus.make_corpus(cache, pool, about.training)
    validation = large_corpus.make_corpus(
        cache, pool, about.validation, first_speaker=about.training.speakers
    )
    trials = validation.with_name(f"{validation.name}-{about.trials}.txt")
    if not trials.exists():
        large_corpus.write_trials(trials, open_corpus(validation, cache), about.trials)
    half, steps = max(1, about.steps // 2), about.steps
    return replace(
        config,
        data=replace(
            config.data, root=str(training), more_roots=(), trials=str(trials),
            trials_root=str(validation), held_out=0,
        ),
        sampler=replace(
            config.sampler, table=None, start_step=min(config.sampler.start_step, half)
        ),
        training=replace(
            config.training, steps=steps, start_from=None,
            checkpoint_every=min(config.training.checkpoint_every, half),
        ),
        validation=replace(config.validation, floor=False),
        hosts=Hosts(),
    )  # fmt: skip


def _feed(config: Config, least: float) -> tuple[float, float]:
    """Utterances a second that the host reads when nobody makes it wait, and the seconds in which
    it opened the corpus; reads for `least` seconds."""
    began = time.perf_counter()
    corpus = with_speeds(open_corpus(config.data.root, config.data.cache), config.data.speeds)
    opened_in = time.perf_counter() - began
    plan.check(config.sampler, corpus)
    sample_rate = config.features.sample_rate
    batches = training_batches(
        Reader(corpus, sample_rate, config.data.threads), replace(config.sampler, kind="random"),
        None, seed=config.training.seed, samples=config.read_samples, first_step=0, end_step=10**6,
        noise=find_noise(config.augment.noise, sample_rate),
    )  # fmt: skip
    with closing(batches):
        for _ in range(FEED_WARM_UP):
            next(batches)
        read, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < least or not read:
            read += len(next(batches)["labels"])
    return read / seconds, opened_in
