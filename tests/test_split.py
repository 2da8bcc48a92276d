import dataclasses

import numpy as np
import pytest
from support import write_tone

from chns_jax import config as configs
from chns_jax.common.errors import UserError
from chns_jax.corpus.split import corpus_digest, make_split, make_trials
from chns_jax.corpus.voices import families_of
from chns_jax.runs.folder import training_speakers
from chns_jax.sampling import clusters as tables


@pytest.fixture
def split(tones, tmp_path):
    def make(*arguments):
        where = ["--data.root", str(tones), "--data.cache", str(tmp_path / "cache")]
        return make_split(configs.load([*where, *map(str, arguments)]))

    return make


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("1 s02/r0/u0.flac s02/r1/u2.flac\n0 s02/r0/u0.flac s05/r1/u3.flac\n")
    return path


def test_speakers_of_the_trials_are_not_trained_on(split, listed, tones, tmp_path):
    parts = split("--data.trials", listed)
    assert set(parts.training.speakers) == {f"s{i:02d}" for i in range(12)} - {"s02", "s05"}
    assert {name[:3] for name in parts.training.names}.isdisjoint({"s02", "s05"})
    (trials,) = parts.trials.values()
    assert {parts.validation.names[row] for row in trials.utterances()} == {
        "s02/r0/u0.flac", "s02/r1/u2.flac", "s05/r1/u3.flac",
    }  # fmt: skip


def test_speakers_of_all_lists_are_not_trained_on(split, listed, tmp_path):
    other = tmp_path / "other" / "list.txt"
    other.parent.mkdir()
    other.write_text("1 s07/r0/u0.flac s07/r1/u2.flac\n0 s07/r0/u0.flac s02/r0/u0.flac\n")
    named = tmp_path / "named.txt"
    named.write_text(other.read_text())
    parts = split("--data.trials", f"[{listed},{named}]")
    assert list(parts.trials) == ["list", "named"]
    assert set(parts.training.speakers) == {f"s{i:02d}" for i in range(12)} - {"s02", "s05", "s07"}
    one = split("--data.trials", listed).trials["list"]
    np.testing.assert_array_equal(parts.trials["list"].enrolment, one.enrolment)
    assert list(split("--data.trials", f"[{listed},{other}]").trials) == [str(listed), str(other)]
    with pytest.raises(UserError, match="list.txt are given twice"):
        split("--data.trials", f"[{listed},{listed}]")


def test_held_out_voices_make_a_list_of_one_family(split, tmp_path):
    """Without their audio: utterances stand under the voices' names."""
    corpus = split().training
    voices = dataclasses.replace(corpus, speakers=np.array([f"v{i:05d}" for i in range(12)]))
    family = families_of(0, voices.speakers)
    made = make_trials(voices, configs.Config(data=configs.Data(held_out=12)))
    assert list(made) == ["all", "same_family"]
    for name, trials in made.items():
        one, other = (family[voices.speaker[rows]] for rows in (trials.enrolment, trials.test))
        assert (one == other)[trials.labels].all()
        assert (one == other)[~trials.labels].all() == (name == "same_family")
    alone = voices.select(np.arange(12) < 2)  # of two families
    assert list(make_trials(alone, configs.Config())) == ["all"]
    assert list(make_trials(voices, configs.Config(data=configs.Data(root="tones")))) == ["all"]


def test_trials_may_lie_elsewhere_and_still_withhold_their_speakers(split, listed, tmp_path):
    elsewhere = tmp_path / "test"
    for name in ("s02/r0/u0.flac", "s02/r1/u2.flac", "s05/r1/u3.flac"):
        write_tone(elsewhere / name, 0.5, hertz=100)
    parts = split("--data.trials", listed, "--data.trials_root", elsewhere)
    assert len(parts.training.speakers) == 10
    assert parts.validation.path(0).startswith(str(elsewhere))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_speakers_are_not_trained_on(split, seed):
    parts = split("--data.held_out", 4, "--training.seed", seed)
    assert len(parts.training.speakers) == 8 and len(parts.validation.speakers) == 4
    assert not set(parts.training.speakers) & set(parts.validation.speakers)
    again = split("--data.held_out", 4, "--training.seed", seed)
    np.testing.assert_array_equal(again.validation.speakers, parts.validation.speakers)


def test_speakers_with_one_utterance_are_left_out_with_a_warning(split, tmp_path):
    more = tmp_path / "more"
    for name in ("lonely/0.wav", "pair/0.wav", "pair/1.wav"):
        write_tone(more / name, 0.5, hertz=100)
    with pytest.warns(UserWarning, match="1 speakers with a single utterance .*: lonely first"):
        parts = split("--data.more_roots", f"[{more}]")
    assert "pair" in parts.training.speakers and "lonely" not in parts.training.speakers
    assert len(parts.training.speakers) == 13 and parts.trials == {}


def test_whom_a_run_was_trained_on(tones, listed, tmp_path):
    def speakers(step, *arguments):
        cache = ["--data.cache", str(tmp_path / "cache")]
        return training_speakers(tmp_path, configs.load([*cache, *map(str, arguments)]), step)

    where = ["--data.root", tones, "--data.trials", listed]
    assert list(speakers(9, *where)) == [f"s{i:02d}" for i in range(12) if i not in (2, 5)]
    assert speakers(0, *where) is None  # its encoder was not trained here
    assert speakers(9, "--data.root", tmp_path / "gone") is None
    assert speakers(9) is None and not list(tmp_path.rglob("voices-*"))  # nothing is synthesised
    table = tables.SpeakerClusters(np.zeros(2, np.int32), np.zeros((1, 8)))
    tables.save(tmp_path / "tables" / "step_0000000.npz", table, ["a", "b"])
    assert list(speakers(9, "--data.root", tmp_path / "gone")) == ["a", "b"]


def test_nobody_is_left(split, tmp_path):
    with pytest.raises(UserError, match="data.held_out 12 leaves nobody"):
        split("--data.held_out", 12)
    write_tone(tmp_path / "one" / "a/0.wav", 0.5, hertz=100)
    with (
        pytest.warns(UserWarning, match="single utterance"),
        pytest.raises(UserError, match="no speaker of .* is left"),
    ):
        split("--data.root", tmp_path / "one")


def test_the_digest_tells_utterances_and_trials_apart(split, listed):
    parts = split("--data.trials", listed)
    training, (trials,) = parts.training, parts.trials.values()
    longer = dataclasses.replace(training, seconds=training.seconds + 1)
    fewer = training.only(np.arange(len(training)) > 0)
    swapped = dataclasses.replace(trials, labels=~trials.labels)
    one = corpus_digest(training, {"list": trials})
    again = split("--data.trials", listed)
    assert one == corpus_digest(again.training, again.trials)
    others = {
        corpus_digest(longer, {"list": trials}),
        corpus_digest(fewer, {"list": trials}),
        corpus_digest(training, {"list": swapped}),
        corpus_digest(training, {"list": trials, "swapped": swapped}),
        corpus_digest(training, {}),
    }
    assert len({one, *others}) == 6
