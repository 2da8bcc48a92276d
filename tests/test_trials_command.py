"""`python -m chns_jax.trials`, in this process."""

import numpy as np
import pytest
from support import finish, write_tone

from chns_jax import config as configs
from chns_jax import trials as trials_command
from chns_jax.common.errors import UserError
from chns_jax.corpus import trials
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.split import make_split
from chns_jax.verification.impostors import nearest_impostors


@pytest.fixture
def made(tones, tmp_path):
    """made("--kind", "all"): the list that the command writes of `tones`, as pairs of speakers of
    targets, and of impostors."""

    def make(*options, out="list.txt"):
        given = [tones, "--out", tmp_path / out, "--cache", tmp_path / "cache", *options]
        trials_command.main([str(each) for each in given])
        named = trials.read(tmp_path / out)
        corpus = open_corpus(tones, tmp_path / "cache")
        located = trials.locate(named, corpus, tmp_path / out)
        one, other = corpus.speaker[located.enrolment], corpus.speaker[located.test]
        trials.check_speakers(named, one, other, tmp_path / out)
        pairs = np.sort(np.stack([one, other], axis=1), axis=1)
        impostors = {tuple(pair) for pair in pairs[~named.labels].tolist()}
        return set(one[named.labels].tolist()), impostors

    return make


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "meta.csv"
    rows = [f"s{i:02d},{'mf'[i % 2]},{i // 4}" for i in range(11)]
    path.write_text("\n".join(["speaker,gender,age_group", *rows]))
    return path


def test_all_pairs_and_no_more_than_asked_for(made, tmp_path):
    targets, impostors = made()
    assert targets == set(range(12)) and len(impostors) == 12 * 11 // 2
    made("--max_trials", 100, out="few.txt")
    made("--max_trials", 100, out="again.txt")
    few = (tmp_path / "few.txt").read_text()
    assert len(few.splitlines()) == 100 and few == (tmp_path / "again.txt").read_text()
    made("--max_trials", 100, "--seed", 1, out="other.txt")
    assert few != (tmp_path / "other.txt").read_text()


def test_impostors_of_one_gender_and_further_columns(made, metadata, capsys):
    _, impostors = made("--kind", "same-gender", "--metadata", metadata)
    assert impostors == {(i, j) for j in range(11) for i in range(j) if (i - j) % 2 == 0}
    assert "1 of 12 speakers are left out" in capsys.readouterr().err
    _, impostors = made("--same", "age_group", "--metadata", metadata)
    assert impostors == {(i, j) for j in range(11) for i in range(j) if i // 4 == j // 4}
    _, both = made("--kind", "same-gender", "--same", "age_group", "--metadata", metadata)
    assert both == {(i, j) for i, j in impostors if (i - j) % 2 == 0}


@pytest.mark.parametrize("encoder", ["MFCC", "untrained"])
def test_the_nearest_are_neighbours_in_pitch(made, request, encoder):
    model = ["--model", request.getfixturevalue(encoder)] if encoder == "untrained" else []
    targets, impostors = made("--kind", "nearest", "--nearest", 2, *model)
    assert targets == set(range(12)) and 12 <= len(impostors) <= 24
    assert {i for pair in impostors for i in pair} == set(range(12))
    distance = np.array([j - i for i, j in impostors])  # a third of 12 where impostors are drawn
    assert distance.mean() < 3


def test_one_list_tunes_and_another_confirms(made, tones, tmp_path):
    tuning, _ = made("--speakers", 4, "--seed", 3, out="tune.txt")
    keys = ["--data.root", str(tones), "--data.cache", str(tmp_path / "cache")]
    held_out = make_split(configs.load([*keys, "--data.held_out", "4", "--training.seed", "3"]))
    assert held_out.validation is not None
    assert {f"s{i:02d}" for i in tuning} == set(held_out.validation.speakers)
    confirming, _ = made("--speakers", 4, "--apart", tmp_path / "tune.txt", out="confirm.txt")
    assert len(tuning) == len(confirming) == 4 and not tuning & confirming
    lists = tmp_path / "tune.txt", tmp_path / "confirm.txt"
    rest, _ = made("--apart", *lists)
    assert rest == set(range(12)) - tuning - confirming


@pytest.mark.parametrize(
    "options, message",
    [
        (["--kind", "same-gender"], "need --metadata"),
        (["--same", "age"], "need --metadata"),
        (["--metadata", "{meta}"], "--metadata says nothing here"),
        (["--metadata", "{meta}", "--same", "sex"], "no column sex: it names speaker, gender, age"),
        (["--model", "run"], "give --kind nearest"),
        (["--kind", "nearest", "--model", "gone"], "gone is not a run folder"),
        (["--speakers", "13"], "--speakers 13 is more than .* has, 12"),
        (["--speakers", "1"], "1 speakers of .* are left, and a trial needs two"),
        (["--apart", "gone.txt"], "gone.txt is not there"),
        (["--kind", "some"], "--kind some must be all, same-gender or nearest"),
        (["--out", "{meta}"], "would overwrite"),
    ],
)
def test_mistakes_get_one_sentence(tones, tmp_path, metadata, options, message):
    given = [tones, "--out", tmp_path / "l.txt", "--cache", tmp_path / "cache"]
    if "--out" in options:
        given += ["--same", "gender", "--metadata", metadata]
    given += [option.format(meta=metadata) for option in options]
    with pytest.raises(UserError, match=message):
        trials_command.main([str(each) for each in given])
    assert not (tmp_path / "l.txt").exists()


def test_a_file_that_cannot_be_read(tmp_path):
    for name in ("a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"):
        write_tone(tmp_path / "root" / name, 0.5, hertz=100)
    corpus = open_corpus(tmp_path / "root", tmp_path)
    (tmp_path / "root" / "b" / "0.wav").unlink()
    with pytest.raises(UserError, match="b/0.wav .*: replace the file or leave it out"):
        nearest_impostors(corpus, 1, model=None, cache=tmp_path)


@pytest.mark.slow
def test_a_program_writes_a_list(program, tones, tmp_path):
    out, cache = tmp_path / "list.txt", tmp_path / "cache"
    _, said = finish(program("trials", tones, "--out", out, "--cache", cache))
    assert "48 target and 1056 impostor trials of 12 speakers" in said
    assert len(out.read_text().splitlines()) == 1104
