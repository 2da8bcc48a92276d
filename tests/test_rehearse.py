import json
import time

import numpy as np
import pytest

from chns_jax import config as configs
from chns_jax import rehearse
from chns_jax.benchmarks import large_corpus, rehearsal
from chns_jax.benchmarks.large_corpus import Size
from chns_jax.benchmarks.sleeping import SleepingDevice
from chns_jax.common.errors import UserError
from chns_jax.corpus import shards, trials
from chns_jax.corpus.audio import read_crop
from chns_jax.corpus.open import open_corpus

SIZE = Size(speakers=30, recordings=70, utterances=400)


@pytest.fixture
def pool(tones, tmp_path):
    return large_corpus.make_pool(tmp_path, 16_000, tones)


def test_a_large_index_has_its_size_and_its_audio_is_the_pools(pool, tones, tmp_path):
    root = large_corpus.make_corpus(tmp_path, pool, SIZE, first_speaker=7)
    corpus, voices = open_corpus(root, tmp_path), shards.load(pool)
    assert (len(corpus.speakers), corpus.recording[-1] + 1, len(corpus)) == SIZE
    assert corpus.speakers[0] == "id00007" and len(set(corpus.names)) == 400
    assert all(len(set(corpus.recording[corpus.speaker == s])) >= 2 for s in range(30))
    assert (np.diff(corpus.speaker) >= 0).all() and (np.diff(corpus.recording) >= 0).all()
    of_recording = corpus.speaker[corpus.recording_start]
    np.testing.assert_array_equal(of_recording, corpus.speaker)
    records = {voices.path(row).rpartition("/")[2]: row for row in range(len(voices))}
    heard = [records[corpus.path(row).rpartition("/")[2]] for row in range(len(corpus))]
    np.testing.assert_array_equal(voices.speaker[heard], corpus.speaker % len(voices.speakers))
    np.testing.assert_array_equal(voices.seconds[heard], corpus.seconds)
    crop = read_crop(corpus.path(9), 0.5, 800, 16_000)
    np.testing.assert_array_equal(crop, read_crop(voices.path(heard[9]), 0.5, 800, 16_000))
    assert large_corpus.make_corpus(tmp_path, pool, SIZE, first_speaker=7) == root


def test_trials_name_all_utterances_and_their_labels_hold(pool, tmp_path):
    root = large_corpus.make_corpus(tmp_path, pool, SIZE)
    corpus, path = open_corpus(root, tmp_path), tmp_path / "trials.txt"
    large_corpus.write_trials(path, corpus, 900)
    located = trials.locate(trials.read(path), corpus, path)
    assert len(located.labels) == 900 and 0.4 < located.labels.mean() < 0.65
    same = corpus.speaker[located.enrolment] == corpus.speaker[located.test]
    np.testing.assert_array_equal(located.labels, same)
    assert len(located.utterances()) == 400 and (located.enrolment != located.test).all()


def test_a_size_that_no_corpus_has_is_refused(pool, tmp_path):
    with pytest.raises(UserError, match="20 utterances of 30 recordings of 5 speakers"):
        large_corpus.make_corpus(tmp_path, pool, Size(5, 30, 20))


@pytest.mark.slow
def test_a_rehearsal_with_a_sleeping_device(tiny, tones, tmp_path, capsys):
    rehearse.main(
        [
            *tiny, "--out", str(tmp_path / "runs" / "x"), "--pool", str(tones), "--speakers", "20",
            "--recordings", "40", "--utterances", "160", "--validation_utterances", "30",
            "--trials", "40", "--steps", "5", "--step_seconds", "0.02", "--embed_seconds", "0",
            "--feed_seconds", "0.05",
        ]
    )  # fmt: skip
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "loop utterances per second" in said.err
    assert report["steps"] == 5 and report["batch_utterances"] == 8
    assert report["device_utterances_per_second"] == pytest.approx(8 / 0.02)
    assert report["seconds_per_step"] >= 0.019
    for key, value in report.items():
        if key not in ("device_peak_gb", "refresh_is_beside_training"):
            assert value > 0, key
    assert not list((tmp_path / "runs").iterdir()), "the run folder is left"


@pytest.mark.long
def test_a_rehearsal_with_real_steps(tiny, tones, tmp_path, capsys):
    rehearse.main(
        [
            *tiny, "--out", str(tmp_path / "runs" / "x"), "--pool", str(tones), "--speakers", "20",
            "--recordings", "40", "--utterances", "160", "--validation_utterances", "30",
            "--trials", "40", "--steps", "4", "--sampler.start_step", "9",
            "--sampler.refresh_ahead", "1", "--feed_seconds", "0.05",
        ]
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report["step_is_a_sleep_of"] is None and report["refresh_is_beside_training"]
    assert report["device_utterances_per_second"] > 0 and report["seconds_of_a_refresh"] > 0


def test_embedding_alone_does_not_sleep(tiny):
    with pytest.raises(UserError, match="needs --step_seconds"):
        rehearse.main([*tiny, "--embed_seconds", "0.1"])


def test_the_days_of_a_config():
    config = configs.load(
        [
            "--training.steps", "1000", "--training.checkpoint_every", "100", "--validation.every",
            "250", "--sampler.start_step", "100", "--sampler.refresh_every", "300",
        ]
    )  # fmt: skip
    took = {"refresh": 7.0, "checkpoint": 0.5, "validation": 11.0}
    # Refreshes at 100, 400 and 700; checkpoints every 100 and with validations at 250 and 750 too.
    seconds = 5 + 1000 * 0.2 + 3 * 7 + 4 * 11 + 12 * 0.5
    assert rehearsal.days(config, 10**6, 0.2, 5.0, took) == pytest.approx(seconds / 86_400)
    beside = {"refresh beside training": 7.0, "checkpoint": 0.5, "validation": 11.0}
    without = rehearsal.days(config, 10**6, 0.2, 5.0, beside)
    assert without == pytest.approx((seconds - 3 * 7) / 86_400)


def test_a_sleeping_device_does_one_thing_after_another():
    device, began = SleepingDevice(), time.perf_counter()
    device.start(0.05)
    assert time.perf_counter() - began < 0.05  # it is under way
    device.run(0.05)
    assert time.perf_counter() - began >= 0.1
