"""Train a speaker encoder with CHNS: `python -m chns_jax.train --config configs/chns.yaml`.

This file is the whole job, from top to bottom: run folder, corpus, encoder, rounds and steps,
summary. Everything random in it is a function of (seed, step, slot), so that a run which is killed
and started again ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chns_jax import config as configs
from chns_jax.common.errors import UserError, run
from chns_jax.config import Config

if TYPE_CHECKING:
    from chns_jax.training.parts import Parts


def main(argv: list[str]) -> None:
    config = configs.load(argv, description=str(__doc__).splitlines()[0])
    from chns_jax.devices import processes  # imports JAX, for which mistakes do not wait

    with ExitStack() as opened, processes.joined(config.hosts):
        train(config, opened)


def train(config: Config, opened: ExitStack, parts: Parts | None = None) -> None:
    """Train as `config` says, in its run folder; go on where a run of this config stopped.

    `parts` are those that take time, the usual ones when not given.
    """
    import jax

    from chns_jax.common.console import say
    from chns_jax.common.files import replacing
    from chns_jax.common.progress import progress_bar
    from chns_jax.corpus.audio import check
    from chns_jax.corpus.noise import find_noise
    from chns_jax.corpus.reader import Reader
    from chns_jax.corpus.retry import ReadError
    from chns_jax.corpus.rirs import make_rirs
    from chns_jax.corpus.skipped import Skipped
    from chns_jax.corpus.speeds import with_speeds
    from chns_jax.corpus.split import corpus_digest, make_split, validating_speakers
    from chns_jax.devices import processes
    from chns_jax.devices.compilation_cache import keep_compiled
    from chns_jax.devices.sharding import make_mesh, replicated
    from chns_jax.reports.training_plot import training_picture
    from chns_jax.runs import checkpoint
    from chns_jax.runs.checkpoint import Progress
    from chns_jax.runs.folder import RunFolder, check_kept, claim, is_complete
    from chns_jax.runs.state import sha256
    from chns_jax.sampling import clusters as tables
    from chns_jax.sampling import plan, rounds
    from chns_jax.sampling.forecast import forecast
    from chns_jax.sampling.pipeline import training_batches
    from chns_jax.scoring.mfcc_baseline import mfcc_eer
    from chns_jax.training import validate
    from chns_jax.training.finetuning import check_unheard, start_from
    from chns_jax.training.logs import Journal, Pace, RunLog, is_due, records
    from chns_jax.training.measured_negatives import negatives_of
    from chns_jax.training.parts import PARTS
    from chns_jax.training.refresh import Refresh
    from chns_jax.training.stopping import stop_signals

    parts = parts or PARTS
    sampler, seed, steps = config.sampler, config.training.seed, config.training.steps

    # ------------------------------------------------------------------ run folder
    folder = RunFolder(Path(config.out).expanduser())
    if is_complete(folder, config):
        say(f"{folder.path} is complete: {folder.summary.read_text()}")
        return

    mesh = make_mesh(config.training.devices)  # what is wrong with devices waits for no corpus

    # ------------------------------------------------------------------ corpus
    corpus, validation, trials, broken = make_split(config)
    names = hashlib.sha256(os.fsencode("\0".join(corpus.speakers))).hexdigest()
    corpus = with_speeds(corpus, config.data.speeds)
    plan.check(sampler, corpus)
    starts = config.training.start_from and not folder.is_begun()  # going on needs no parent
    if starts and validation is not None:
        check_unheard(config, validating_speakers(validation, trials))
    start_table = tables.load(sampler.table, corpus.speakers) if sampler.table else None
    opened.enter_context(claim(folder, config))
    sample_rate = config.features.sample_rate
    noise = find_noise(config.augment.noise, sample_rate)
    reader = Reader(corpus, sample_rate, config.data.threads)
    skipped = Skipped(
        processes.own_file(folder.skipped),
        len(corpus) + len(broken),
        partial(check, sample_rate=sample_rate),
    )
    skipped.record({file.path: file.why for file in broken})
    skipped.limit()
    opened.callback(lambda: skipped.record(reader.skipped))
    trial_reader = None
    if validation is not None:
        trial_reader = Reader(validation, sample_rate, reader.threads)
    round_length = rounds.length(sampler, config.training, len(corpus))
    say(
        f"training on {len(corpus.speakers)} speakers, {len(corpus)} utterances, "
        f"{corpus.seconds.sum() / 3600:.1f} hours; "
        f"validating on {' and '.join(str(len(each.labels)) for each in trials.values()) or 'no'} "
        "trials"
    )

    # ------------------------------------------------------------------ encoder and state
    if config.training.compilation_cache is not None:
        keep_compiled(Path(config.data.cache, config.training.compilation_cache).expanduser())
    training = parts.build(config, len(corpus.speakers), mesh)
    rirs = make_rirs(config.augment.reverberation, sample_rate, seed)
    rirs = jax.device_put(rirs, replicated(mesh))
    embedder = parts.embedder(config, mesh)
    # Several hosts never refresh beside training, and have no first device in common.
    one_device = make_mesh(1) if sampler.refresh_ahead else mesh
    embedder_beside = embedder if one_device == mesh else parts.embedder(config, one_device)
    of_corpus = {"reader": reader, "sampler": sampler, "samples": config.crop_samples, "seed": seed}
    refresh = Refresh(
        partial(parts.make_table, embedder, **of_corpus),
        partial(parts.make_table, embedder_beside, **of_corpus),
    )
    opened.callback(refresh.close)

    # ------------------------------------------------------------------ restore
    manager = opened.enter_context(
        checkpoint.open_manager(folder.checkpoints, config.training.keep)
    )
    data = corpus_digest(corpus, trials)
    processes.check_same(data, "utterances or trials", "data.root and data.trials")
    table, progress = None, Progress(round=0, seconds=0.0, speakers=names, data=data)
    configs.check_unedited(config, checkpoint.latest_config(manager), folder.path)
    restored = checkpoint.restore(manager, training.shapes)
    if restored is not None:
        state, table, progress, copied = restored
        if progress.data != data:
            raise UserError(
                f"{folder.path} was begun with other utterances or trials than the {len(corpus)} "
                f"utterances of {len(corpus.speakers)} training speakers that {corpus.roots[0]} "
                "has now: put them back, or give another --out"
            )
        if copied is not None:
            refresh.begin(copied, progress.round)
        say(f"going on from step {int(state.step)}")
    else:
        state = training.init()
        if config.training.start_from:
            state = start_from(config, state, names)
    step = saved = int(state.step)
    log = opened.enter_context(closing(RunLog(folder, step)))
    eer_at = {r["step"]: r["eer"] for r in records(folder.metrics) if "eer" in r}
    stopped, agreement = opened.enter_context(stop_signals()), processes.Agreement(mesh)
    bar = opened.enter_context(progress_bar(what="training", unit="step", total=steps, done=step))
    pace = Pace(2 * sampler.speakers)
    journal = Journal(config, corpus, folder, log, bar, pace)
    started = time.perf_counter() - progress.seconds
    results = {}  # of the last validation, by list
    before = step, table, progress, refresh.variables  # a step, and what its round began with

    def save(table, progress, variables, eer=None) -> None:
        nonlocal saved
        check_kept(folder)
        parts.save(manager, state, table, progress, configs.to_yaml(config), eer, refresh=variables)
        saved = step
        pace.restart()

    def owes_validation() -> bool:
        return bool(trials) and is_due(step, config.validation.every, steps)

    def save_position(kind, error, trace) -> None:
        """Where speech cannot be read, keep the steps until then."""
        if isinstance(error, ReadError) and step > saved and not owes_validation():
            journal.read(all=True)
            began = step == before[0]  # the round, which will begin again
            save(*before[1:] if began else (table, progress, refresh.variables))
            manager.wait_until_finished()
            say(f"stopped after step {step}, which is saved")

    opened.push(save_position)

    # ------------------------------------------------------------------ rounds and steps
    while step < steps:
        before = step, table, progress, refresh.variables
        if rounds.begins(step, sampler, round_length):
            foreseen = {}
            if step == sampler.start_step and start_table is not None:
                table = start_table
            else:
                table, voiceprints = refresh.table(state.evaluated, progress.round)
                expected = forecast(voiceprints, table, sampler, seed=seed, step=step)
                foreseen = expected._asdict()
                for line in expected.lines(sampler) if progress.round == 0 else ():
                    say(line)
            progress = progress._replace(round=progress.round + 1)
            if processes.is_first():
                tables.save(folder.table(step), table, corpus.speakers)
            log.write(step, round=progress.round, smallest_cluster=int(table.sizes.min()),
                      largest_cluster=int(table.sizes.max()), **foreseen)  # fmt: skip
            pace.restart()

        refresh_step = rounds.refresh(step, sampler, round_length, steps)
        batches = training_batches(
            reader, sampler, table, samples=config.read_samples, seed=seed, first_step=step,
            end_step=rounds.end(step, sampler, round_length, steps), noise=noise,
            held=training.held,
        )  # fmt: skip
        clustered = table is not None and config.training.batch_statistics != "all"
        with closing(batches):
            for batch in pace.waiting_for(batches):
                if step == refresh_step:
                    refresh.begin(state.evaluated, progress.round)
                state, metrics = training.update(state, training.put(batch), rirs, clustered)
                step += 1
                stop = agreement(stopped)
                journal.add(step, metrics, table)
                skipped.record(reader.skipped)
                skipped.limit()

                validates = owes_validation()
                checkpoints = is_due(step, config.training.checkpoint_every, steps)
                saves = validates or checkpoints or stop > 0
                journal.read(all=saves)
                if not saves:
                    continue
                eer = None
                if validates:
                    results = parts.validate(embedder, state.evaluated, trial_reader, trials,
                                             samples=config.segment_samples)  # fmt: skip
                    logged = validate.scalars(results)
                    eer = eer_at[step] = logged["eer"]
                    log.write(step, **logged)
                    say(f"step {step}: {validate.in_words(results)}")
                progress = progress._replace(seconds=time.perf_counter() - started)
                save(table, progress, refresh.variables, eer)
                if stop and step < steps:
                    manager.wait_until_finished()
                    check_kept(folder)
                    say(f"stopped after step {step}, {parts.stopped}")
                    sys.exit(128 + stop)

    # ------------------------------------------------------------------ summary
    manager.wait_until_finished()
    check_kept(folder)
    if trials and not results:  # killed between the last checkpoint and here
        results = parts.validate(embedder, state.evaluated, trial_reader, trials,
                                 samples=config.segment_samples)  # fmt: skip
    bar.close()
    best = min(eer_at, key=eer_at.__getitem__, default=None)
    result = next(iter(results.values()), {})
    by_list = {name: each["eer"] for name, each in results.items()}
    summary = {
        "step": steps,
        "eer": result.get("eer"),
        **({"eer_by_list": by_list} if len(by_list) > 1 else {}),
        "min_dcf": result.get("min_dcf"),
        "best_step": best,
        "best_eer": None if best is None else eer_at[best],
        "seconds": progress.seconds,
        "utterances_per_second": 2 * sampler.speakers * steps / progress.seconds,
        "parameters_sha256": sha256(state.evaluated),
    }
    composed: dict[str, tables.SpeakerClusters | None] = {"random batches": None}
    if table is not None:
        composed = {"CHNS batches": table, **composed}
    negatives = {
        name: negatives_of(embedder, state.evaluated, reader, config, made_of)
        for name, made_of in composed.items()
    }
    if not processes.is_first():
        return
    if config.validation.floor and trial_reader is not None:
        summary["floor_eer"] = mfcc_eer(trial_reader, next(iter(trials.values())))
    training_picture(
        folder.picture, eer_at=eer_at, baseline_eer=summary.get("floor_eer"), negatives=negatives
    )
    with replacing(folder.summary) as file:
        file.write(json.dumps(summary, indent=1) + "\n")
    say(json.dumps(summary))
    if stopped:  # after the last step; what comes after this run, as in a study, is not begun
        sys.exit(128 + stopped[0])


if __name__ == "__main__":
    run(main)
