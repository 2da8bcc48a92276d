import dataclasses

import numpy as np
import pytest

from chns_jax.common.errors import UserError
from chns_jax.corpus import trials
from chns_jax.corpus.corpus import Strings
from chns_jax.corpus.inputs import utterances
from chns_jax.corpus.kaldi import read_wav_scp
from chns_jax.corpus.metadata import read_genders
from chns_jax.corpus.open import open_corpus


@pytest.fixture
def corpus(tones, tmp_path):
    return open_corpus(tones, tmp_path)


def test_a_list_is_read_and_located(corpus, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("1 s00/r0/u0.flac s00/r1/u2.flac\n\n0 s00/r0/u0.flac s05/r1/u3.flac\n")
    located = trials.locate(trials.read(path), corpus, path)
    np.testing.assert_array_equal(located.labels, [True, False])
    np.testing.assert_array_equal(located.enrolment, [0, 0])
    np.testing.assert_array_equal(located.test, [2, 23])
    np.testing.assert_array_equal(located.utterances(), [0, 2, 23])
    embeddings = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    np.testing.assert_allclose(located.scores(located.utterances(), embeddings), [0.6, 0.0])


def test_an_utterance_that_is_tried_against_itself_is_said(corpus, tmp_path):
    path, (one, other) = tmp_path / "list.txt", ("s00/r0/u0.flac", "s05/r1/u3.flac")
    path.write_text(f"1 {one} {one}\n0 {one} {other}\n1 {other} {other}\n")
    with pytest.warns(UserWarning, match="2 of the 3 trials of .* compare an utterance with its"):
        trials.locate(trials.read(path), corpus, path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 a b\n2 a b\n", "line 2 is not"),
        ("1 a b\n0 a\n", "line 2 is not"),
        ("a b target\na b 0\n", "line 2 is not '<enrolment> <test> <target or nontarget>'"),
        ("a b 1\na b\n", "line 2 is not '<enrolment> <test> <1 or 0>'"),
        ("1 a b\n", "needs both"),
        ("1 a b\n0 a c\n\n0 a b\n", "line 4 labels a and b otherwise than line 1 does"),
        ("0 a b\n1 a c\n1 b a\n", "line 3 labels b and a otherwise than line 1 does"),
        ("", "needs both"),
    ],
)
def test_mistakes_in_a_list(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        trials.read(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "text",
    ["1 a b\n\n0 a 1\n", "a b target\na 1 nontarget\n", "a b 1\na 1 0\n"],
)
def test_the_layouts_of_a_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    named = trials.read(tmp_path / "list.txt")
    assert named.labels.tolist() == [True, False]
    assert (named.enrolment, named.test) == (["a", "a"], ["b", "1"])


def test_enrolled_models(tmp_path):
    path = tmp_path / "models.txt"
    path.write_text("m a b c\n\nn d\n")
    assert trials.read_enrolment(path) == {"m": ["a", "b", "c"], "n": ["d"]}
    path.write_text("m a\nn\n")
    with pytest.raises(UserError, match="line 2 names no utterance of the model n"):
        trials.read_enrolment(path)
    path.write_text("m a\nm b\n")
    with pytest.raises(UserError, match="line 2 names the model m again"):
        trials.read_enrolment(path)
    with pytest.raises(UserError, match="gone is not there: give an enrolment list"):
        trials.read_enrolment(tmp_path / "gone")


def test_lists_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("1 a b\n0 a c\n", encoding="utf-8-sig")
    assert trials.read(path).enrolment == ["a", "a"]
    path.write_text("m a b\n", encoding="utf-8-sig")
    assert trials.read_enrolment(path) == {"m": ["a", "b"]}
    path.write_text("a b.wav\n", encoding="utf-8-sig")
    assert read_wav_scp(str(tmp_path), "list.txt") == {"a": "b.wav"}
    assert list(utterances([str(path)])) == ["a b.wav"]
    path.write_text("id,gender\na,f\n", encoding="utf-8-sig")
    assert read_genders(path) == {"a": "f"}


def test_files_that_are_no_list(tmp_path):
    with pytest.raises(UserError, match="gone.txt is not there: give a trial list"):
        trials.read(tmp_path / "gone.txt")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="binary cannot be read: it is not text"):
        trials.read(tmp_path / "binary")


def test_a_trial_of_a_missing_file(corpus, tmp_path):
    (tmp_path / "list.txt").write_text("1 s00/r0/u0.flac s00/r9/u9.flac\n0 s00/r0/u0.flac x\n")
    with pytest.raises(UserError, match="names s00/r9/u9.flac"):
        trials.locate(trials.read(tmp_path / "list.txt"), corpus, tmp_path / "list.txt")


def test_a_list_that_disagrees_with_the_folders():
    def check(labels):
        named = trials.NamedTrials(np.array(labels), ["a/0", "a/0"], ["a/1", "b/0"])
        trials.check_speakers(named, np.array([0, 0]), np.array([0, 1]), "list")

    check([True, False])
    with pytest.raises(UserError, match="list has a/0 and a/1 as two speakers"):
        check([False, False])
    with pytest.raises(UserError, match="list has a/0 and b/0 as one speaker") as raised:
        check([True, True])
    assert "--replicates" not in str(raised.value)  # which is for evaluate alone


def test_made_trials_are_all_pairs_across_recordings(corpus):
    made = trials.make(corpus, max_trials=10**6, seed=0)
    assert made.labels.sum() == 12 * 4  # two utterances in each of two recordings
    assert (~made.labels).sum() == 48 * 47 // 2 - 12 * 6
    same = corpus.speaker[made.enrolment] == corpus.speaker[made.test]
    np.testing.assert_array_equal(same, made.labels)
    assert (corpus.recording[made.enrolment] != corpus.recording[made.test]).all()
    assert len(set(zip(made.enrolment, made.test, strict=True))) == len(made.labels)


def test_made_trials_may_be_limited(corpus):
    made = trials.make(corpus, max_trials=200, seed=0)
    assert len(made.labels) == 200 and made.labels.sum() == 20
    again = trials.make(corpus, max_trials=200, seed=0)
    np.testing.assert_array_equal(made.test, again.test)


def test_of_a_large_corpus_some_utterances_are_drawn(corpus, monkeypatch):
    monkeypatch.setattr(trials, "MOST_UTTERANCES", 20)
    made = trials.make(corpus, max_trials=10**6, seed=0)
    assert len(made.utterances()) <= 20 and len(made.labels) <= 190 and made.labels.any()
    same = corpus.speaker[made.enrolment] == corpus.speaker[made.test]
    np.testing.assert_array_equal(same, made.labels)


def test_impostors_may_be_of_one_group(corpus):
    group = np.array(["a", "b", "b", "c"] * 3)
    made = trials.make(corpus, max_trials=10**6, seed=0, impostors=trials.sharing(group))
    everyone = trials.make(corpus, max_trials=10**6, seed=0)
    one, other = corpus.speaker[everyone.enrolment], corpus.speaker[everyone.test]
    kept = everyone.labels | (group[one] == group[other])
    np.testing.assert_array_equal(made.enrolment, everyone.enrolment[kept])
    np.testing.assert_array_equal(made.test, everyone.test[kept])
    np.testing.assert_array_equal(made.labels, everyone.labels[kept])


def test_impostors_may_be_neighbours():
    neighbours = np.array([[1], [2], [1], [0]])  # 0-1, 1-2, 3-0
    one, other = (side.ravel() for side in np.indices((4, 4)))
    near = trials.among(neighbours)(one, other).reshape(4, 4)
    assert np.argwhere(near).tolist() == [[0, 1], [0, 3], [1, 0], [1, 2], [2, 1], [3, 0]]
    rules = trials.all_of([trials.among(neighbours), trials.sharing(np.array([0, 0, 1, 0]))])
    both = rules(one, other).reshape(4, 4)
    assert np.argwhere(both).tolist() == [[0, 1], [0, 3], [1, 0], [3, 0]]


def test_nobody_near_enough_makes_no_trials(corpus):
    alone = trials.sharing(np.arange(12))
    with pytest.raises(UserError, match="12 speakers of .* make no impostor trials"):
        trials.make(corpus, max_trials=10, seed=0, impostors=alone)


def test_speakers_of_one_recording_make_easier_targets(corpus):
    one = corpus.only(corpus.recording % 2 == 0)
    with pytest.warns(UserWarning, match="no speaker of .* has two recordings"):
        made = trials.make(one, max_trials=10**6, seed=0)
    assert made.labels.sum() == 12 and (~made.labels).sum() == 24 * 23 // 2 - 12
    with pytest.raises(UserError, match="1 speakers of .* make no impostor trials"):
        trials.make(corpus.select(np.arange(12) < 1), max_trials=10, seed=0)
    lonely = corpus.only(np.arange(len(corpus)) % 4 == 0)
    with pytest.raises(UserError, match="12 speakers of .* make no target trials"):
        trials.make(lonely, max_trials=10, seed=0)


def test_a_list_holds_names_in_utf8_alone(corpus, tmp_path):
    made = trials.make(corpus, max_trials=4, seed=0)
    names = Strings.of(f"{name}\udcff" for name in corpus.names)
    with pytest.raises(UserError, match="cannot hold the name"):
        trials.write(tmp_path / "list.txt", made, dataclasses.replace(corpus, names=names))


def test_a_written_list_is_read_again(corpus, tmp_path):
    made = trials.make(corpus, max_trials=50, seed=0)
    trials.write(tmp_path / "list.txt", made, corpus)
    again = trials.locate(trials.read(tmp_path / "list.txt"), corpus, tmp_path / "list.txt")
    np.testing.assert_array_equal(again.labels, made.labels)
    np.testing.assert_array_equal(again.enrolment, made.enrolment)
    np.testing.assert_array_equal(again.test, made.test)
    spaced = dataclasses.replace(corpus, names=Strings.of(f"a {row}" for row in range(48)))
    with pytest.raises(UserError, match="cannot hold the name 'a 0'"):
        trials.write(tmp_path / "list.txt", made, spaced)
