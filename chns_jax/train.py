"""Train a speaker encoder with CHNS: `python -m chns_jax.train --config configs/chns.yaml`.

This file is the whole job, from top to bottom: run folder, corpus, encoder, rounds and steps,
summary. Everything random in it is a function of (seed, step, slot), so that a run which is killed
and started again ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from chns_jax import checkpoint, hosts
from chns_jax import config as configs
from chns_jax.checkpoint import Progress
from chns_jax.compilation_cache import keep_compiled
from chns_jax.config import Config, Hosts
from chns_jax.corpus import rooms
from chns_jax.corpus.audio import check
from chns_jax.corpus.index import Corpus
from chns_jax.corpus.noise import find_noise
from chns_jax.corpus.skipped import Skipped
from chns_jax.embedding import Encode, make_encode, make_table
from chns_jax.encoders import make_encoder
from chns_jax.errors import UserError, run
from chns_jax.files import remove_leftovers, replacing
from chns_jax.finetuning import start_from
from chns_jax.logs import Pace, RunLog, progress_bar, records, say
from chns_jax.optimizer import make_optimizer
from chns_jax.refresh import begin
from chns_jax.sampling import clusters, hardness, plan, rounds
from chns_jax.sampling.clusters import Table, unit
from chns_jax.sampling.pipeline import Reader, training_batches
from chns_jax.scoring.floor import floor_eer
from chns_jax.scoring.plots import training_picture
from chns_jax.sharding import check_divides, held, make_mesh, put, replicated, split
from chns_jax.split import digest, make_split
from chns_jax.step import TrainState, init, sha256, train_step
from chns_jax.validate import validate

PICTURE_ROWS = 256
BEGUN = {"checkpoints": "[0-9]*", "tables": "*.npz"}  # files of a run that has learnt something


def main(argv: list[str]) -> None:
    config = configs.load(argv, description=__doc__.splitlines()[0])
    with ExitStack() as opened, hosts.joined(config.hosts):
        train(config, opened)


def train(config: Config, opened: ExitStack) -> None:
    """Train as `config` says, in its run folder; go on where a run of this config stopped."""
    sampler, seed, steps = config.sampler, config.training.seed, config.training.steps

    # ------------------------------------------------------------------ run folder
    out = Path(config.out).expanduser()
    if is_complete(out, config):
        say(f"{out} is complete: {(out / 'summary.json').read_text()}")
        return

    # ------------------------------------------------------------------ corpus
    corpus, validation, trials, broken = make_split(config)
    plan.check(sampler, corpus)
    start_table = clusters.load(sampler.table, corpus.speakers) if sampler.table else None
    claim(out, config)
    sample_rate = config.features.sample_rate
    noise = find_noise(config.augment.noise, sample_rate)
    reader = Reader(corpus, sample_rate, config.data.threads)
    skipped = Skipped(
        hosts.own_file(out / "skipped.txt"),
        len(corpus) + len(broken),
        partial(check, sample_rate=sample_rate),
    )
    skipped.record({file.path: file.why for file in broken})
    skipped.limit()
    opened.callback(lambda: skipped.record(reader.skipped))
    trial_reader = Reader(validation, sample_rate, reader.threads) if trials else None
    round_length = rounds.length(sampler, config.training, len(corpus))
    say(
        f"training on {len(corpus.speakers)} speakers, {len(corpus)} utterances, "
        f"{corpus.seconds.sum() / 3600:.1f} hours; "
        f"validating on {len(trials.labels) if trials else 'no'} trials"
    )

    # ------------------------------------------------------------------ encoder and state
    if config.training.compilation_cache is not None:
        keep_compiled(Path(config.data.cache, config.training.compilation_cache).expanduser())
    mesh = make_mesh(config.training.devices)
    check_divides(mesh, sampler.speakers, config.training.micro_batch)
    encoder = make_encoder(
        config.encoder, dtype=config.training.compute, remat=config.training.remat
    )
    tx = make_optimizer(config.optimizer, steps)
    speakers = len(corpus.speakers)
    state = jax.jit(partial(init, config, encoder, tx, speakers), out_shardings=replicated(mesh))()
    update = jax.jit(
        partial(
            train_step, config=config, encoder=encoder, tx=tx, speakers=speakers,
            mesh=mesh if mesh.size > 1 else None,
        ),
        in_shardings=(replicated(mesh), split(mesh), replicated(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )  # fmt: skip
    responses = rooms.make_responses(config.augment.reverberation, sample_rate, seed)
    responses = jax.device_put(responses, replicated(mesh))
    embedder = make_encoder(config.encoder)
    encode = make_encode(config, embedder, mesh)
    # Several hosts never refresh beside training, and have no first device in common.
    one_device = make_mesh(1) if sampler.refresh_ahead else mesh
    encode_beside = encode if one_device == mesh else make_encode(config, embedder, one_device)

    def new_table(encode: Encode, variables: dict) -> Table:
        """The clusters of the next round."""
        return make_table(
            encode, variables, reader, sampler,
            samples=config.crop_samples, seed=seed, round=progress.round,
        )  # fmt: skip

    def judge(state: TrainState) -> dict:
        """EER and minDCF on the validation trials."""
        samples = config.segment_samples
        return validate(encode, state.variables, trial_reader, trials, samples=samples)

    # ------------------------------------------------------------------ restore
    manager = opened.enter_context(
        checkpoint.open_manager(out / "checkpoints", config.training.keep)
    )
    names = hashlib.sha256(os.fsencode("\0".join(corpus.speakers))).hexdigest()
    data = digest(corpus, trials)
    hosts.check_same(data, "utterances or trials", "data.root and data.trials")
    table, progress = None, Progress(round=0, seconds=0.0, speakers=names, data=data)
    refresh = None  # for the next round, beside training
    opened.callback(lambda: refresh and refresh.close())
    restored = checkpoint.restore(manager, state)
    if restored is not None:
        state, table, progress, copied = restored
        if progress.data != data:
            raise UserError(
                f"{out} was begun with other utterances or trials than the {len(corpus)} "
                f"utterances of {len(corpus.speakers)} training speakers that {corpus.roots[0]} "
                "has now: put them back, or give another --out"
            )
        if copied is not None:
            refresh = begin(new_table, encode_beside, copied)
        say(f"going on from step {int(state.step)}")
    elif config.training.start_from:
        state = start_from(config, state, names)
    step = int(state.step)
    log = opened.enter_context(closing(RunLog(out, step)))
    eer_at = {r["step"]: r["eer"] for r in records(out / "metrics.jsonl") if "eer" in r}
    stopped, agreement = opened.enter_context(stop_signals()), hosts.Agreement(mesh)
    bar = opened.enter_context(progress_bar(step, steps))
    pace = Pace(2 * sampler.speakers)
    started = time.perf_counter() - progress.seconds
    late: deque = deque()  # metrics not read yet: the device must never wait for the host
    result = None

    # ------------------------------------------------------------------ rounds and steps
    while step < steps:
        if rounds.begins(step, sampler, round_length):
            if step == sampler.start_step and start_table is not None:
                table = start_table
            elif refresh is not None:
                table, refresh = refresh.table.result(), None
            else:
                table = new_table(encode, state.variables)
            progress = progress._replace(round=progress.round + 1)
            if hosts.is_first():
                clusters.save(out / "tables" / f"step_{step:07d}.npz", table, corpus.speakers)
            log.write(step, round=progress.round, smallest_cluster=int(table.sizes.min()),
                      largest_cluster=int(table.sizes.max()))  # fmt: skip
            pace.restart()

        batches = training_batches(
            reader, sampler, table, samples=config.read_samples, seed=seed, first_step=step,
            end_step=rounds.end(step, sampler, round_length, steps), noise=noise,
            held=held(mesh, 2 * sampler.speakers),
        )  # fmt: skip
        refresh_step = rounds.refresh(step, sampler, round_length, steps)
        with closing(batches):
            for batch, waited in timed(batches):
                if step == refresh_step and refresh is None:
                    refresh = begin(new_table, encode_beside, state.variables)
                state, metrics = update(state, put(mesh, batch), responses)
                step += 1
                stop = agreement(stopped)
                late.append((step, metrics, table))
                pace.waited(waited)
                skipped.record(reader.skipped)
                skipped.limit()

                validates = trials is not None and is_due(step, config.validation.every, steps)
                checkpoints = is_due(step, config.training.checkpoint_every, steps)
                saves = validates or checkpoints or stop > 0
                while len(late) > (0 if saves else 1):
                    at, metrics, of_round = late.popleft()
                    if not math.isfinite(metrics["loss"]):  # waits until the device has made it
                        bad = plan.plan(seed, at - 1, sampler, corpus, of_round)
                        raise bad_batch(out, corpus, at, bad.utterances)
                    pace.step()
                    bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
                    bar.update()
                    if is_due(at, config.training.log_every, steps):
                        z = np.asarray(metrics.pop("z"))
                        labels = plan.plan(seed, at - 1, sampler, corpus, of_round).labels
                        log.write(
                            at, **{name: float(value) for name, value in metrics.items()},
                            **pace.scalars(),
                            same_cluster_share=plan.same_cluster_share(labels, of_round),
                            **hardness.summary(z, labels),
                        )  # fmt: skip
                if not saves:
                    continue
                eer = None
                if validates:
                    result = judge(state)
                    eer = eer_at[step] = result["eer"]
                    costs = {f"min_dcf_{p}": cost for p, cost in result["min_dcf"].items()}
                    log.write(step, eer=eer, **costs)
                    say(f"step {step}: EER {100 * eer:.2f} %")
                progress = progress._replace(seconds=time.perf_counter() - started)
                checkpoint.save(
                    manager, state, table, progress, configs.to_yaml(config), eer,
                    refresh=refresh and refresh.variables,
                )  # fmt: skip
                pace.restart()
                if stop and step < steps:
                    manager.wait_until_finished()
                    say(f"stopped after step {step}, which is saved: the same command goes on")
                    sys.exit(128 + stop)

    # ------------------------------------------------------------------ summary
    manager.wait_until_finished()
    if trials is not None and result is None:  # killed between the last checkpoint and here
        result = judge(state)
    bar.close()
    best = min(eer_at, key=eer_at.get, default=None)
    summary = {
        "step": steps,
        "eer": result and result["eer"],
        "min_dcf": result and result["min_dcf"],
        "best_step": best,
        "best_eer": eer_at.get(best),
        "seconds": progress.seconds,
        "utterances_per_second": 2 * sampler.speakers * steps / progress.seconds,
        "parameters_sha256": sha256(state.variables),
    }
    composed = {"CHNS batches": table} if table is not None else {}
    composed["random batches"] = None
    negatives = {
        name: negatives_of(encode, state, reader, config, made_of)
        for name, made_of in composed.items()
    }
    if not hosts.is_first():
        return
    if config.validation.floor and trials is not None:
        summary["floor_eer"] = floor_eer(trial_reader, trials)
    training_picture(
        out / "training.png", eer_at=eer_at, floor_eer=summary.get("floor_eer"), negatives=negatives
    )
    with replacing(out / "summary.json") as file:
        file.write(json.dumps(summary, indent=1) + "\n")
    say(json.dumps(summary))


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens `every` steps (0: only at the end) happens after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def bad_batch(out: Path, corpus: Corpus, step: int, utterances: np.ndarray) -> UserError:
    """What to raise when the loss of a step is no number; its batch is written down."""
    if hosts.is_first():
        with replacing(out / "bad_batch.txt") as file:
            file.writelines(f"{corpus.path(row)}\n" for row in utterances)
    return UserError(
        f"the loss is no finite number at step {step}, whose utterances {out / 'bad_batch.txt'} "
        "lists: lower optimizer.learning_rate or raise loss.min_temperature"
    )


def negatives_of(
    encode: Encode, state: TrainState, reader: Reader, config: Config, table: Table | None
) -> np.ndarray:
    """Cosines of the negatives in a few batches past the last step, in inference mode."""
    steps, rows = config.training.steps, 2 * config.sampler.speakers
    batches = training_batches(
        reader, config.sampler, table, samples=config.crop_samples, seed=config.training.seed,
        first_step=steps, end_step=steps + max(1, PICTURE_ROWS // rows),
    )  # fmt: skip
    cosines = []
    with closing(batches):
        for batch in batches:
            parts = np.split(batch["audio"], range(encode.rows, rows, encode.rows))
            z = unit(np.concatenate([encode(state.variables, part) for part in parts]))
            cosines.append(hardness.negative_cosines(z, batch["labels"]))
    return np.concatenate(cosines)


def is_complete(out: Path, config: Config) -> bool:
    """Whether `out` holds this run, finished. Raises UserError for a run of another config."""
    if not is_begun(out):
        return False
    check_config(out, config)
    return (out / "summary.json").exists()


def is_begun(out: Path) -> bool:
    """Whether something was learnt in `out`; until then, another config may have the folder."""
    return any(next((out / part).glob(what), None) for part, what in BEGUN.items())


def check_config(out: Path, config: Config) -> None:
    """Raises UserError when `out` has another config."""
    changed = configs.differences(config, configs.load(["--config", str(out / "config.yaml")]))
    if changed:
        raise UserError(
            f"{out} holds a run of another config, which differs in {', '.join(changed)}: "
            "give another --out, or the config of that run"
        )


def claim(out: Path, config: Config) -> None:
    """Make the run folder, and put the complete config into it; all hosts must see it."""
    if hosts.is_first():
        make_folder(out, config)
    hosts.meet("the run folder is made")
    if not hosts.is_first():
        hosts.check_seen(out / "config.yaml")
        check_config(out, config)  # that of host 0 must be that of all


def make_folder(out: Path, config: Config) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"the run folder {out} is a file: give another --out") from None
    remove_leftovers(out)
    if not is_begun(out):
        with replacing(out / "config.yaml") as file:
            file.write(configs.to_yaml(replace(config, hosts=Hosts())))  # what, not where


def timed(batches: Iterator) -> Iterator[tuple]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.perf_counter() - asked


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the first SIGTERM or SIGINT; a second one acts as usual."""
    caught: list[int] = []

    def catch(number, frame):
        caught.append(number)
        signal.signal(number, usual[number])

    usual = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run(main)
