"""The main job: run as a user runs it where it is killed or must end as a program, and else in this
process."""

import errno
import json
import os
import shutil
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import soundfile
from support import TINY, finish, pairs_of_tones, step_of, wait_for, write_tone

from chns_jax import config as configs
from chns_jax.common import locks
from chns_jax.common.errors import UserError
from chns_jax.corpus import retry
from chns_jax.corpus.open import open_corpus
from chns_jax.reports import training_plot
from chns_jax.runs import folder
from chns_jax.sampling import pipeline
from chns_jax.training import stopping
from chns_jax.training.logs import records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def finished(program, tones, made_once):
    """A run from start to end: its folder and its arguments, without --out."""

    def options(folder):
        where = ["--data.root", tones, "--data.cache", folder / "cache"]
        return [*TINY, *where, "--validation.floor", "true"]

    def train(folder):
        finish(program("train", *options(folder), "--out", folder / "run"))

    folder = made_once("finished", train)
    return folder / "run", options(folder)


def test_a_run_folder_holds_what_it_should(finished, tones):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 14 and 0 <= summary["eer"] <= 1 and 0 <= summary["floor_eer"] <= 1
    assert set(summary["min_dcf"]) == {"0.01", "0.05"}
    assert summary["seconds"] > 0 and summary["utterances_per_second"] > 0
    assert len(summary["parameters_sha256"]) == 64
    lines = list(records(run / "metrics.jsonl"))
    scalars = [line for line in lines if "loss" in line]
    assert [line["step"] for line in scalars] == list(range(1, 15))
    for key in (
        "temperature", "learning_rate", "utterances_per_second", "data_wait_seconds",
        "same_cluster_share", "negative_cosine_mean", "negative_cosine_p95",
    ):  # fmt: skip
        assert all(np.isfinite(line[key]) for line in scalars), key
    assert [line["step"] for line in lines if "eer" in line] == [7, 14]
    rounds = [line for line in lines if "round" in line]
    assert [line["step"] for line in rounds] == [0, 4, 8, 12]
    for line in rounds:
        assert line["nearest_random"] == 3 / 8 and 0 < line["nearest_chns"] <= 1
        assert line["voiceprint_cosine_random"] < line["voiceprint_cosine_chns"] < 1
        assert (line["speakers_over_batch"], line["cluster_over_batch"]) == (9 / 4, 3 / 4)
    kept = {int(path.name) for path in (run / "checkpoints").iterdir()}
    assert 14 in kept and len(kept) <= 3
    assert (run / "training.png").read_bytes()[:4] == b"\x89PNG"
    (events,) = (run / "tensorboard").iterdir()
    written = events.read_bytes()
    assert written.count(b"learning_rate") == 14 and b"brain.Event:2" in written
    assert not list(run.glob(".*")), "a file that was being written is left"


def test_tables_hold_the_training_speakers(finished):
    run, _ = finished
    tables = sorted((run / "tables").iterdir())
    assert [path.name for path in tables] == [f"step_{s:07d}.npz" for s in (0, 4, 8, 12)]
    with np.load(tables[-1]) as table:
        assert len(table["speakers"]) == 9 and table["cluster"].max() < 3


def digest(run):
    return json.loads((run / "summary.json").read_text())["parameters_sha256"]


def test_a_complete_run_is_left_as_it_is(finished, command):
    run, arguments = finished
    before = (run / "metrics.jsonl").read_bytes()
    _, errors = command("train", *arguments, "--out", run)
    assert "is complete" in errors and (run / "metrics.jsonl").read_bytes() == before


def test_killed_and_stopped_it_goes_on_to_the_same_bytes(finished, program, command, tmp_path):
    """SIGKILL in the step before a refresh, and SIGTERM after one; by the config in the run folder,
    which so runs again."""
    run, _ = finished
    expected, out = json.loads((run / "summary.json").read_text()), tmp_path / "run"
    arguments = ["--config", run / "config.yaml", "--out", out]
    process = program("train", *arguments)
    wait_for(process, lambda: step_of(out) >= 7, "the step before a refresh")
    process.kill()
    process.communicate()
    process = program("train", *arguments)
    table = out / "tables" / "step_0000012.npz"
    wait_for(process, table.exists, "the step after a refresh")
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process, 128 + signal.SIGTERM)
    assert "going on from step" in errors and "which is saved" in errors
    assert not (out / "summary.json").exists()
    command("train", *arguments)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["parameters_sha256"] == expected["parameters_sha256"]
    assert summary["eer"] == expected["eer"]

    def comparable(folder):
        lines = records(folder / "metrics.jsonl")
        timed = ("utterances_per_second", "data_wait_seconds")
        return [{k: v for k, v in line.items() if k not in timed} for line in lines]

    assert comparable(out) == comparable(run)


JOINT = [
    "--loss.joint", "sphereface2", "--loss.sub_centres", "2", "--loss.aam_margin_grows", "[1,4]",
    "--data.speeds", "[0.9]", "--optimizer.kind", "sgd", "--optimizer.decay", "exponential",
    "--optimizer.last_learning_rate", "0.001", "--training.average_decay", "0.9",
]  # fmt: skip
CLASSES = [
    "--loss.kind", "aam_softmax", "--loss.top_k", "3", "--loss.aam_margin_grows", "[1,4]",
    "--training.micro_batch", "4", "--training.average_decay", "0.5", "--training.devices", "2",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("keys", [JOINT, CLASSES], ids=["joint", "classes"])
def test_the_recipe_ends_with_the_same_bytes(command, tiny, tmp_path, monkeypatch, keys):
    """Stopped after each of three steps, in which the margin grows and clusters are made."""
    arguments = [*tiny, *keys, "--training.steps", "6"]
    command("train", *arguments, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "stop_signals", lambda: nullcontext([signal.SIGTERM]))
        for _ in range(3):
            command("train", *arguments, "--out", tmp_path / "parts", status=128 + signal.SIGTERM)
    assert step_of(tmp_path / "parts") == 3
    command("train", *arguments, "--out", tmp_path / "parts")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    lines = [line for line in records(tmp_path / "parts" / "metrics.jsonl") if "loss" in line]
    margins = [line["margin"] for line in lines]
    assert margins[:2] == [0, 0] and margins == sorted(margins)
    assert margins[4:] == pytest.approx([0.2, 0.2])
    with np.load(tmp_path / "parts" / "tables" / "step_0000004.npz") as table:
        speakers = list(table["speakers"])
    assert len(speakers) == (18 if keys is JOINT else 9)
    assert [name for name in speakers if name.endswith("/x0.9")] == speakers[9:]


@pytest.mark.long
def test_a_refresh_beside_training_is_begun_again(command, tones, tmp_path):
    """At step 9 the refresh for step 10 is under way, with the encoder of step 7."""
    run = tmp_path / "run"
    arguments = [*TINY, "--data.root", tones, "--data.cache", tmp_path / "cache", "--out", run]
    arguments += ["--sampler.start_step", 2, "--sampler.refresh_ahead", 3, "--training.keep", 9]
    command("train", *arguments)
    tables = sorted((run / "tables").iterdir())
    assert [path.name for path in tables] == [f"step_{s:07d}.npz" for s in (2, 6, 10)]
    expected = tables[-1].read_bytes(), digest(run)
    for path in (run / "summary.json", tables[-1]):
        path.unlink()
    for path in (run / "checkpoints").iterdir():
        if int(path.name) > 9:
            shutil.rmtree(path)
    command("train", *arguments)
    assert (tables[-1].read_bytes(), digest(run)) == expected


@pytest.mark.long
def test_a_run_that_cannot_read_saves_its_position(finished, command, tmp_path, monkeypatch):
    """In the middle of a round, and as one begins, which then begins again."""
    run, arguments = finished
    out, plan = tmp_path / "run", pipeline.plan
    for stop in (5, 8):

        def plan_until(seed, step, *of_what, stop=stop):
            if step == stop:
                raise retry.ReadError(
                    "a.flac cannot be read: when it can, the same command goes on"
                )
            return plan(seed, step, *of_what)

        monkeypatch.setattr(pipeline, "plan", plan_until)
        _, errors = command("train", *arguments, "--out", out, status=2)
        assert f"stopped after step {stop}, which is saved" in errors
        assert errors.splitlines()[-1].startswith("error: a.flac cannot be read")
    monkeypatch.setattr(pipeline, "plan", plan)
    command("train", *arguments, "--out", out)
    assert digest(out) == digest(run)


def test_a_run_folder_that_is_removed(finished, command, tmp_path, monkeypatch):
    _, arguments = finished
    out, plan = tmp_path / "run", pipeline.plan

    def remove(seed, step, *of_what):
        if step == 5 and out.exists():
            out.rename(tmp_path / "away")
        return plan(seed, step, *of_what)

    monkeypatch.setattr(pipeline, "plan", remove)
    _, errors = command("train", *arguments, "--out", out, status=2)
    assert f"error: {out} was removed" in errors.splitlines()[-1]


def test_two_trainings_do_not_share_a_folder(finished, command, tmp_path, monkeypatch):
    run, arguments = finished
    out = folder.RunFolder(tmp_path / "run")
    config = configs.load([str(a) for a in (*arguments, "--out", out.path)])
    with folder.claim(out, config):
        _, errors = command("train", *arguments, "--out", out.path, status=2)
        assert f"error: another training is at work in {out.path}" in errors

        def flock(file, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
        with folder.claim(out, config):  # on a file system without locks
            pass
    out.lock.unlink()
    os.mkfifo(out.lock)
    with pytest.raises(UserError, match="lock is no regular file: remove it"):
        folder.claim(out, config).__enter__()


def test_another_config_for_a_run_is_refused(finished, command):
    run, arguments = finished
    changed = ["--sampler.hard_ratio", "0.25", "--training.seed", "3"]
    _, errors = command("train", *arguments, "--out", run, *changed, status=2)
    assert "differs in sampler.hard_ratio, training.seed" in errors


def test_a_folder_where_nothing_was_learnt_takes_another_config(tmp_path):
    first, other = (
        configs.load(["--config", "configs/debug.yaml", "--training.seed", seed]) for seed in "12"
    )
    for config in (first, other):
        assert not folder.is_complete(folder.RunFolder(tmp_path), config)
        with folder.claim(folder.RunFolder(tmp_path), config):
            pass
        assert configs.load(["--config", str(tmp_path / "config.yaml")]) == config
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert not folder.is_complete(folder.RunFolder(tmp_path), other)
    with pytest.raises(UserError, match="another config, which differs in training.seed"):
        folder.is_complete(folder.RunFolder(tmp_path), first)


def test_a_summary_that_was_cut_short_is_made_again(tmp_path):
    config, run = configs.load(["--config", "configs/debug.yaml"]), folder.RunFolder(tmp_path)
    (run.checkpoints / "5").mkdir(parents=True)
    run.config.write_text(configs.to_yaml(config))
    for text, complete in {
        "": False,
        '{"step": 5, "e': False,
        "5": False,
        "{}": False,
        '{"step": 5, "seconds": "x"}': False,
        '{"step": 5}': True,
        '{"step": 5, "seconds": 1.5}': True,
    }.items():
        run.summary.write_text(text)
        assert folder.is_complete(run, config) == complete
    run.summary.unlink()
    os.mkfifo(run.summary)
    with pytest.raises(UserError, match="summary.json is no regular file: remove it"):
        folder.is_complete(run, config)


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "summary.json", "training.png", "skipped.txt",
     "bad_batch.txt", "calibration.json"],
)  # fmt: skip
def test_a_folder_with_what_no_run_wrote_is_left_as_it_is(name, tmp_path):
    config = configs.load(["--config", "configs/debug.yaml"])
    dump = configs.to_yaml(config).encode()
    for content in (b"# mine\n" + dump, dump.replace(b"\n", b"\r\n"), b"\xff", b"training: [\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"holds a {name} that no run wrote: give another"):
            folder.claim(folder.RunFolder(tmp_path), config).__enter__()
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == content
    (tmp_path / "config.yaml").write_bytes(dump)  # as a run that was stopped soon leaves it
    with folder.claim(folder.RunFolder(tmp_path), config):
        pass
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match="a damaged run, without its config.yaml"):
        folder.is_complete(folder.RunFolder(tmp_path), config)


def test_evaluate_prints_what_training_found(finished, command, tones, tmp_path):
    run, _ = finished
    (tmp_path / "trials.txt").write_text("".join(pairs_of_tones(4)))
    arguments = ["--model", run, "--trials", tmp_path / "trials.txt", "--cache", tmp_path]
    output, _ = command("evaluate", *arguments, "--root", tones)
    result = json.loads(output)
    assert result["targets"] == 24 and result["nontargets"] == 96
    assert 0 <= result["eer"] <= 1 and set(result["min_dcf"]) == {"0.01", "0.05"}
    (tmp_path / "trials.txt").write_text(
        "1 s00/r0/u0.flac s00/r1/u2.flac\n0 s00/r0/u0.flac gone/0.wav\n"
    )
    _, errors = command("evaluate", *arguments, "--root", tones, status=2)
    assert "gone/0.wav" in errors
    _, errors = command("evaluate", *arguments, "--root", tones, "--model", tmp_path, status=2)
    assert "is not a run folder" in errors


def test_clusters_of_a_run_train_another_that_never_refreshes(finished, command, tones, tmp_path):
    """Which validates on two lists."""
    run, arguments = finished
    table = tmp_path / "table.npz"
    options = ["--clusters", 4, "--utterances_per_speaker", 2, "--cache", tmp_path]
    _, said = command("cluster", "--model", run, "--root", tones, "--out", table, *options)
    assert "a CHNS batch of 4 will hold" in said
    with np.load(table) as arrays:
        assert len(arrays["speakers"]) == 12 and set(arrays["cluster"]) == {0, 1, 2, 3}
    frozen = ["--sampler.table", table, "--sampler.refresh_every", "never"]
    shorter = ["--training.steps", 4, "--out", tmp_path / "run"]
    lists = tmp_path / "first.txt", tmp_path / "second.txt"
    lists[0].write_text("1 s02/r0/u0.flac s02/r1/u2.flac\n0 s02/r0/u0.flac s05/r1/u3.flac\n")
    lists[1].write_text("1 s02/r0/u0.flac s02/r1/u3.flac\n0 s02/r0/u0.flac s07/r1/u3.flac\n")
    validating = ["--data.trials", f"[{lists[0]},{lists[1]}]"]
    _, said = command("train", *arguments, *frozen, *shorter, *validating)
    assert "training on 9 speakers" in said and "validating on 2 and 2 trials" in said
    lines = list(records(tmp_path / "run" / "metrics.jsonl"))
    (line,) = (line for line in lines if "eer" in line)
    assert f"step 4: EER first {100 * line['eer/first']:.2f} %, second" in said
    assert line["eer"] == line["eer/first"] and "min_dcf_0.01/second" in line
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eer_by_list"] == {name: line[f"eer/{name}"] for name in ("first", "second")}
    rounds = [record for record in lines if "round" in record]
    assert [record["step"] for record in rounds] == [0] and "nearest_chns" not in rounds[0]
    (used,) = (tmp_path / "run" / "tables").iterdir()
    with np.load(table) as made, np.load(used) as taken:
        where = np.searchsorted(made["speakers"], taken["speakers"])
        np.testing.assert_array_equal(made["cluster"][where], taken["cluster"])


def test_broken_files_are_skipped_and_listed(command, tmp_path):
    """One in 300 is not more than 1 %."""
    root = tmp_path / "root"
    for speaker in range(10):
        for utterance in range(30):
            write_tone(root / f"s{speaker}/{utterance}.wav", 0.3, hertz=100 + 20 * speaker)
    bad = np.full(8000, np.nan, np.float32)
    for name in ("s0/3.wav", "s5/7.wav"):
        soundfile.write(root / name, bad, 16_000, subtype="FLOAT")
    arguments = [*TINY, "--data.root", root, "--data.cache", tmp_path / "cache"]
    arguments += ["--data.held_out", 0, "--sampler.utterances_per_speaker", 30]
    arguments += ["--training.steps", 3]
    command("train", *arguments, "--out", tmp_path / "run")
    skipped = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(skipped) == 2 and "s0/3.wav\tholds NaN" in skipped[0] and "s5/7.wav" in skipped[1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eer"] is None

    spoilt = {}
    for utterance in range(8, 16):
        spoilt[utterance] = (root / f"s2/{utterance}.wav").read_bytes()
        (root / f"s2/{utterance}.wav").write_bytes(b"no audio")
    _, errors = command("train", *arguments, "--out", tmp_path / "other", status=2)
    assert "8 of 300 files cannot be used, more than 1%" in errors
    assert len((tmp_path / "other" / "skipped.txt").read_text().splitlines()) == 8
    for utterance, content in spoilt.items():
        (root / f"s2/{utterance}.wav").write_bytes(content)
    command("train", *arguments, "--out", tmp_path / "other")


def test_a_signal_after_the_last_step_is_no_less_one(command, tiny, monkeypatch, tmp_path):
    """The run is complete, but a study of which it is one begins no other."""

    def signalled(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training_plot, "training_picture", signalled)
    arguments = [*tiny, "--data.held_out", 0, "--training.steps", 1]
    command("train", *arguments, status=128 + signal.SIGTERM)
    assert (tmp_path / "run" / "summary.json").exists()
    assert "is complete" in command("train", *arguments)[1]


def test_a_run_does_not_go_on_with_other_speakers(command, tmp_path, monkeypatch):
    root = tmp_path / "root"
    for speaker in range(6):
        for utterance in range(2):
            write_tone(root / f"s{speaker}/{utterance}.wav", 0.5, hertz=100 + 20 * speaker)
    arguments = [*TINY, "--data.root", root, "--data.cache", tmp_path / "cache"]
    arguments += ["--data.held_out", 0, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:  # stopped after the first step
        patch.setattr(stopping, "stop_signals", lambda: nullcontext([signal.SIGTERM]))
        command("train", *arguments, status=128 + signal.SIGTERM)
    write_tone(root / "s6/0.wav", 0.5, hertz=300)
    write_tone(root / "s6/1.wav", 0.5, hertz=300)
    _, errors = command("train", *arguments, status=2)
    assert "other utterances or trials than the 14 utterances of 7 training speakers" in errors


def test_a_speaker_who_cannot_be_read_stops_the_run_and_is_listed(command, tmp_path):
    root, bad = tmp_path / "root", np.full(8000, np.nan, np.float32)
    for speaker in range(6):
        for utterance in range(2):
            write_tone(root / f"s{speaker}/{utterance}.wav", 0.5, hertz=100 + 20 * speaker)
    for utterance in range(2):
        soundfile.write(root / f"s3/{utterance}.wav", bad, 16_000, subtype="FLOAT")
    arguments = [*TINY, "--data.root", root, "--data.cache", tmp_path / "cache"]
    arguments += ["--data.held_out", 0, "--out", tmp_path / "run"]
    _, errors = command("train", *arguments, status=2)
    assert "no utterance of speaker s3 can be read" in errors
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("evaluate", [], "required"),
        ("evaluate", ["--model", "{run}", "--trials", "gone", "--root", "y"], "gone is not there"),
        ("verify", ["gone.wav", "b.wav", "--model", "x"], "x is not a run folder"),
        ("calibrate", [], "required"),
        ("gallery", ["remove", "Ann", "--gallery", "{tmp}"], "nobody is enrolled as Ann"),
        ("cluster", ["--clusters", "0"], "clusters"),
        ("cluster", ["--model", "{run}", "--root", "y", "--out", "{tmp}"], "is a folder"),
        (
            "cluster",
            ["--model", "{run}", "--root", "y", "--out", "{tmp}/f/t.npz"],
            "is not a folder",
        ),
    ],
)
def test_mistakes_at_other_commands_get_one_sentence(command, tmp_path, name, arguments, message):
    (tmp_path / "f").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    places = {"tmp": tmp_path, "run": tmp_path / "run"}
    arguments = [argument.format(**places) for argument in arguments]
    _, errors = command(name, *arguments, status=2)
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1 and message in errors


def test_a_mistake_ends_a_program_with_status_2_and_one_sentence(program):
    _, errors = finish(program("verify", "gone.wav", "b.wav", "--model", "x"), 2)
    assert errors.startswith("error: x is not a run folder") and len(errors.splitlines()) == 1


def test_a_disk_that_fills_up(program, tiny):
    """A limit on the size of files stands in for a full disk; test_soak.py has full ones."""
    _, errors = finish(program("train", *tiny, largest_file_kb=1), 2)
    assert "no space is left" in errors.splitlines()[-1] and len(errors.splitlines()) < 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data.root", "{tmp}/gone"], "gone does not exist"),
        (["--data.root", "{tmp}"], "holds no audio"),
        (["--sampler.speakers", "64"], "set sampler.speakers to at most 9"),
        (["--data.trials", "{tmp}/gone.txt"], "gone.txt is not there"),
        (["--sampler.table", "{tmp}/gone.npz"], "gone.npz does not exist"),
        (["--no.such_key", "1"], "no.such_key"),
    ],
)
def test_mistakes_get_one_sentence(command, tiny, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    _, errors = command("train", *tiny, *arguments, status=2)
    assert message in errors
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_other_signals_and_formats_of_speech_train(command, tmp_path):
    """8 kHz, stereo, 0.2 s and silent files in one corpus."""
    rng = np.random.default_rng(0)
    for speaker in range(5):
        folder = tmp_path / "root" / f"s{speaker}"
        write_tone(folder / "0.wav", 0.2, hertz=100 + 30 * speaker)
        write_tone(folder / "1.wav", 0.9, hertz=100 + 30 * speaker, rate=8000)
        soundfile.write(folder / "2.ogg", rng.normal(0, 0.1, (16_000, 2)), 16_000)
        soundfile.write(folder / "3.flac", np.zeros(8000), 16_000)
    arguments = [*TINY, "--data.root", tmp_path / "root", "--data.cache", tmp_path / "cache"]
    arguments += ["--data.held_out", 0, "--training.steps", 3, "--out", tmp_path / "run"]
    command("train", *arguments)
    assert not (tmp_path / "run" / "skipped.txt").exists()


@pytest.mark.long
def test_real_speech_is_learnt(command, real_data, tmp_path):
    """A few steps on real speakers bring down the loss, and the trials are scored."""
    trials = real_data / "vox2mini_valid_trials.txt"
    arguments = ["--config", "configs/small.yaml", "--data.root", real_data / "vox2mini"]
    arguments += ["--data.trials", trials, "--data.cache", tmp_path, "--out", tmp_path / "run"]
    arguments += ["--encoder.ecapa.channels", "[16,16,48]", "--data.crop_seconds", 1]
    arguments += ["--validation.segment_seconds", 2]
    arguments += ["--training.devices", 1, "--sampler.speakers", 12]
    arguments += ["--encoder.ecapa.kernel_sizes", "[5,3,1]"]
    arguments += ["--encoder.ecapa.dilations", "[1,2,1]", "--sampler.utterances_per_speaker", 2]
    arguments += ["--training.steps", 40, "--sampler.start_step", 20, "--validation.floor", "false"]
    command("train", *arguments)
    lines = [r for r in records(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert lines[-1]["loss"] < lines[0]["loss"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eer"] < 0.4
    named = {line.split()[1].split("/")[0] for line in trials.read_text().splitlines()}
    corpus = open_corpus(real_data / "vox2mini", tmp_path)
    with np.load(tmp_path / "run" / "tables" / "step_0000020.npz") as table:
        assert set(table["speakers"]) == set(corpus.speakers) - named


def test_the_config_in_the_run_folder_is_complete(finished):
    run, _ = finished
    config = configs.load(["--config", str(run / "config.yaml")])
    assert configs.to_yaml(config) == (run / "config.yaml").read_text()
    assert os.path.samefile(config.out, run)
