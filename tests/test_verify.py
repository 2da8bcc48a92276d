"""calibrate, verify and gallery, run in this process on a copy of the untrained run."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax import SpeakerEncoder, calibrate, evaluate, gallery, verify
from chns_jax.common.errors import UserError
from chns_jax.sampling import clusters as tables
from chns_jax.scoring import calibration
from chns_jax.scoring.norm import Statistics, as_norm, statistics
from chns_jax.verification import gallery as galleries
from chns_jax.verification.speaker_encoder import Voiceprint

pytestmark = pytest.mark.usefixtures("loaded_once")

NAMES = [f"s{s:02d}/r{u // 2}/u{u}.flac" for s in range(12) for u in range(4)]
PAIRS = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]


@pytest.fixture(scope="module")
def run(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(untrained, folder)
    return folder


@pytest.fixture(scope="module")
def arguments(run, tones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    lines = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in PAIRS]
    (folder / "trials.txt").write_text("".join(lines))
    trials = ["--trials", folder / "trials.txt", "--root", tones, "--cache", folder / "cache"]
    return [*map(str, trials), "--model", str(run)]


@pytest.fixture
def uncalibrated(run):
    (run / "calibration.json").unlink(missing_ok=True)
    return run


@pytest.fixture(scope="module")
def calibration_of_run(run, arguments):
    """What calibrate writes, and the run's other files do not change by it."""
    calibrate.main([*arguments, "--prior", "0.9"])
    return (run / "calibration.json").read_bytes()


@pytest.fixture
def calibrated(run, calibration_of_run):
    (run / "calibration.json").write_bytes(calibration_of_run)
    return run


def printed(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_without_calibration_nothing_is_decided(uncalibrated, tones, capsys):
    one, other = str(tones / NAMES[0]), str(tones / NAMES[5])
    verify.main([one, other, "--model", str(uncalibrated)])
    result, said = printed(capsys)
    encoder = SpeakerEncoder.load(uncalibrated)
    assert result == {
        "cosine": pytest.approx(encoder.similarity(one, other), abs=1e-5),
        "calibrated": False,
    }
    assert said.count("\n") == 1 and "chns_jax.calibrate --model RUN" in said
    with pytest.raises(UserError, match="the run is not calibrated"):
        encoder.verify(one, other)


@pytest.mark.parametrize("segments", [None, "0.3"])
@pytest.mark.parametrize("quality", [[], ["duration", "cohort_mean"]])
def test_a_decision_is_that_of_the_list(run, arguments, tones, capsys, tmp_path, segments, quality):
    """verify finds for a pair what evaluate writes for its trial."""
    options = [] if segments is None else ["--segments", segments]
    if quality:
        for speaker in tones.iterdir():
            (tmp_path / f"c{speaker.name}").symlink_to(speaker)  # other names: nobody of the trials
        cohort = ["--cohort", str(tmp_path), "--cohort_size", "6", "--cohort_utterances", "1"]
        options += ["--norm", "as-norm", *cohort]
    weighed = ["--quality", *quality] if quality else []
    calibrate.main([*arguments, *options, "--false_accept_rate", "0.2", *weighed])
    made, _ = printed(capsys)
    assert made == json.loads((run / "calibration.json").read_text())
    assert len(list(run.glob("cohort-*.npz"))) == bool(quality)
    scores = tmp_path / "scores.txt"
    evaluate.main([*arguments, *options, "--replicates", "0", "--scores", str(scores)])
    result, _ = printed(capsys)
    assert result["min_cllr"] <= result["cllr"] and set(result["act_dcf"]) == {"0.01", "0.05"}
    assert result["min_cllr"] == pytest.approx(made["min_cllr"], abs=1e-6)

    encoder = SpeakerEncoder.load(run)
    seconds = {name: 0.6 + 0.1 * (i % 4) for i, name in enumerate(NAMES)}
    lines = [line.split() for line in scores.read_text().splitlines()]
    accepted = 0
    for score, _, one, other in lines[::150]:
        decision = encoder.verify(tones / one, tones / other)
        expected = made["scale"] * float(score) + made["offset"]
        if quality:
            voices = [encoder.voiceprint([tones / name]) for name in (one, other)]
            mean, deviation = statistics(
                np.stack([voice.embedding for voice in voices]), encoder.cohort.embeddings, 6
            )
            sides = [Statistics(mean[[i]], deviation[[i]]) for i in (0, 1)]
            (normed,) = as_norm(np.array([decision.cosine]), *sides)
            assert normed == pytest.approx(float(score), rel=1e-2, abs=1e-2)
            expected += made["quality"]["cohort_mean"] * mean.mean()
            expected += made["quality"]["duration"] * np.log(min(seconds[one], seconds[other]))
        assert decision.log_likelihood_ratio == pytest.approx(expected, rel=2e-2, abs=2e-2)
        assert decision.same_speaker == (decision.log_likelihood_ratio >= made["threshold"])
        assert decision.set_for == {"false_accept_rate": 0.2}
        accepted += decision.same_speaker
    assert 0 < accepted < len(lines[::150])
    verify.main([str(tones / one), str(tones / other), "--model", str(run)])
    result, _ = printed(capsys)
    assert list(result) == list(decision._fields) and result.pop("set_for") == decision.set_for
    assert result == pytest.approx({key: getattr(decision, key) for key in result}, abs=1e-4)


def test_a_calibration_of_other_scores_is_not_used(calibrated, arguments, tones, capsys):
    evaluate.main([*arguments, "--segments", "0.3", "--replicates", "0"])
    result, said = printed(capsys)
    assert "cllr" not in result
    assert said.strip().endswith("calibration.json is for whole utterances and is not used")
    path = calibrated / "calibration.json"
    made = json.loads(path.read_text())
    made["scores"]["checkpoint"] = "another"
    path.write_text(json.dumps(made))
    verify.main([str(tones / NAMES[0]), str(tones / NAMES[1]), "--model", str(calibrated)])
    result, said = printed(capsys)
    assert set(result) == {"cosine", "calibrated"} and "is for another checkpoint" in said


def test_trials_of_training_speakers_are_pointed_out(run, arguments, tmp_path, capsys):
    table = run / "tables" / "step_0000004.npz"
    for speakers, said in (
        (["s00", "s05", "x"], "warning: 2 of the trials' 12 speakers, s00 first, are training"),
        (["x", "y", "z"], ""),
    ):
        tables.save(
            table, tables.SpeakerClusters(np.zeros(3, np.int32), np.zeros((1, 8))), speakers
        )
        calibrate.main([*arguments, "--prior", "0.3"])
        errors = capsys.readouterr().err
        assert said in errors and ("warning" in errors) == bool(said)
    shutil.rmtree(table.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": None},
        {"scores": {"checkpoint": "x"}},
        {"scores": {"checkpoint": "x", "segments": "x", "norm": None}},
        {"scores": {"checkpoint": "x", "segments": None, "norm": {}}},
        {"scale": None},
        {"threshold": float("nan")},
        {"quality": {"cohort_mean": 1.0}},
        {"quality": None},
        {"set_for": {}},
        {"more": 1},
        {"scale": 10**400},
        {"scores": {"checkpoint": "x", "segments": -1, "norm": None}},
        {"scores": {"checkpoint": "x", "segments": float("inf"), "norm": None}},
        {"speakers": -1},
        "{",
        "[" * 100_000,
    ],
)
def test_a_damaged_calibration(tmp_path, change):
    made_by = {"checkpoint": "x", "segments": None, "norm": None}
    made = calibration.Calibration(1.0, 0, {}, 2, {"prior": 0.5}, made_by, 9, 9, 9, 0.1, 0.1)
    path = tmp_path / "calibration.json"
    calibration.save(path, made)
    assert calibration.load(path) == made
    if not isinstance(change, str):
        change = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(change)
    with pytest.raises(UserError, match="calibration.json is not what"):
        calibration.load(path)


def test_a_pipe_is_no_calibration(tmp_path):
    assert calibration.load(tmp_path / "calibration.json") is None
    os.mkfifo(tmp_path / "calibration.json")
    with pytest.raises(UserError, match="calibration.json is not what"):
        calibration.load(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prior", "0.1", "--false_accept_rate", "0.1"], "give one of them"),
        (["--false_accept_rate", "0.0001"], "is less than one of 1056 impostor trials"),
        (["--false_accept_rate", "1.5"], "false_accept_rate"),
        (["--quality", "cohort_mean"], "needs --norm"),
        (["--quality", "loudness"], "quality"),
    ],
)
def test_a_calibration_that_is_refused_keeps_the_old_one(calibrated, arguments, options, message):
    before = calibration.load(calibrated / "calibration.json")
    with pytest.raises(UserError, match=message):
        calibrate.main([*arguments, *options])
    assert calibration.load(calibrated / "calibration.json") == before


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    write_tone(folder / "short.wav", 0.05, hertz=200)
    soundfile.write(folder / "nan.wav", np.full(9000, np.nan), 16_000, subtype="FLOAT")
    (folder / "text.wav").write_text("hello")
    noise = np.random.default_rng(0).normal(0, 0.1, (8000, 2))
    soundfile.write(folder / "stereo.wav", noise, 8000)
    return folder


BAD = [
    ("silent.wav", "silent.wav is silent"),
    ("short.wav", "short.wav has 0.05 s, too short"),
    ("nan.wav", "nan.wav holds NaN"),
    ("text.wav", "text.wav cannot be decoded"),
    ("gone.wav", "gone.wav is not there"),
]


@pytest.mark.parametrize("name, message", BAD)
def test_what_is_no_speech(calibrated, tones, odd, tmp_path, name, message):
    speech, model = str(tones / NAMES[0]), ["--model", str(calibrated)]
    with pytest.raises(UserError, match=message):
        verify.main([speech, str(odd / name), *model])
    where = [*model, "--gallery", str(tmp_path / "g")]
    with pytest.raises(UserError, match=message):
        gallery.main(["enroll", "Ann", speech, str(odd / name), *where])
    assert not (tmp_path / "g").exists()
    gallery.main(["enroll", "Ann", speech, *where])
    with pytest.raises(UserError, match=message):
        gallery.main(["identify", str(odd / name), *where])


def test_no_request_leaves_for_a_name(calibrated, tones):
    for name in ("http://127.0.0.1:9/x.m4a", "http://127.0.0.1:9/x.array_record:0+99"):
        with pytest.raises(UserError, match="is not there|is no file"):
            verify.main([str(tones / NAMES[0]), name, "--model", str(calibrated)])


def test_stereo_at_8_khz_is_speech(calibrated, odd, capsys):
    path = str(odd / "stereo.wav")
    verify.main([path, path, "--model", str(calibrated)])
    result, _ = printed(capsys)
    assert result["cosine"] == pytest.approx(1, abs=1e-5) and result["same_speaker"]


def test_a_gallery(calibrated, tones, tmp_path, capsys):
    model, where = ["--model", str(calibrated)], ["--gallery", str(tmp_path / "g")]
    names = {"Zoë O'Neil": 0, "a/../b.c": 4, "..": 8}
    for name, first in names.items():
        files = [str(tones / file) for file in NAMES[first : first + 2]]
        gallery.main(["enroll", name, *files, *model, *where])
    assert all(path.parent == tmp_path / "g" for path in tmp_path.rglob("*.json"))
    gallery.main(["list", *where])
    listed, _ = printed(capsys)
    assert [speaker["name"] for speaker in listed["speakers"]] == sorted(names)
    assert listed["speakers"][0]["recordings"] == 2
    assert listed["speakers"][0]["seconds"] == pytest.approx(1.3)

    encoder = SpeakerEncoder.load(calibrated)
    heard = tones / NAMES[6]
    expected = {}
    for name, first in names.items():
        mean = encoder.embed([tones / file for file in NAMES[first : first + 2]]).sum(axis=0)
        expected[name] = float(mean / np.linalg.norm(mean) @ encoder.embed(heard))
    best = max(expected, key=expected.get)
    gallery.main(["identify", str(heard), *model, *where, "--names", "2"])
    result, _ = printed(capsys)
    assert result["nearest"][0]["name"] == best and len(result["nearest"]) == 2
    for found in result["nearest"]:
        assert found["cosine"] == pytest.approx(expected[found["name"]], abs=1e-4)
    made = calibration.load(calibrated / "calibration.json")
    llr = made.scale * expected[best] + made.offset
    assert result["nearest"][0]["log_likelihood_ratio"] == pytest.approx(llr, abs=1e-2)
    threshold = calibrated / "calibration.json"
    for shift, name in ((-0.1, best), (0.1, "unknown")):
        about = json.loads(threshold.read_text())
        about["threshold"] = llr + shift
        threshold.write_text(json.dumps(about))
        gallery.main(["identify", str(heard), *model, *where])
        assert printed(capsys)[0]["name"] == name

    threshold.unlink()
    gallery.main(["identify", str(heard), *model, *where])
    result, said = printed(capsys)
    assert result["calibrated"] is False and result["nearest"][0]["name"] == best
    assert "name" not in result and "nobody can be rejected" in said

    gallery.main(["remove", "..", *where])
    capsys.readouterr()
    gallery.main(["list", *where])
    assert len(printed(capsys)[0]["speakers"]) == 2


def test_of_two_who_enroll_one_name_at_once_the_second_is_refused(tmp_path):
    class Other(SpeakerEncoder):  # enrolls while it embeds
        segments, checkpoint = None, "x"

        def __init__(self):
            pass

        def voiceprint(self, recordings, *, sample_rate=None):
            if recordings == ["one"]:
                galleries.enroll(tmp_path, "Ann", ["another"], self)
            return Voiceprint(np.ones(1), float(len(recordings[0])))

    with pytest.raises(UserError, match="Ann is enrolled in .* already"):
        galleries.enroll(tmp_path, "Ann", ["one"], Other())
    assert [speaker.seconds for speaker in galleries.read(tmp_path)] == [7]
    assert len(list(tmp_path.iterdir())) == 1


def test_names_that_look_alike_are_one(tmp_path):
    class Encoder(SpeakerEncoder):
        segments, checkpoint = None, "x"

        def __init__(self):
            pass

        def voiceprint(self, recordings, *, sample_rate=None):
            return Voiceprint(np.ones(1), 1.0)

    galleries.enroll(tmp_path, "Rene\u0301", ["one"], Encoder())
    with pytest.raises(UserError, match="Ren\u00e9 is enrolled in .* already"):
        galleries.enroll(tmp_path, "Ren\u00e9", ["one"], Encoder())
    assert [speaker.name for speaker in galleries.read(tmp_path)] == ["Ren\u00e9"]
    galleries.remove(tmp_path, "Rene\u0301")
    assert galleries.read(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["", " Ann", "a\nb", "a\x1b[2J", "a\u202eb", "unknown", "n" * 300, "\udcff"]
)
def test_what_is_no_name(calibrated, tones, tmp_path, name):
    where = ["--model", str(calibrated), "--gallery", str(tmp_path / "g")]
    with pytest.raises(
        UserError, match="cannot be a speaker's name|too long for a file|name is empty"
    ):
        gallery.main(["enroll", name, str(tones / NAMES[0]), *where])


def test_mistakes_with_a_gallery(calibrated, tones, tmp_path):
    speech, model = str(tones / NAMES[0]), ["--model", str(calibrated)]
    where = ["--gallery", str(tmp_path / "g")]
    with pytest.raises(UserError, match="there is no gallery"):
        gallery.main(["identify", speech, *model, *where])
    with pytest.raises(UserError, match="nobody is enrolled as Ann"):
        gallery.main(["remove", "Ann", *where])
    gallery.main(["enroll", "Ann", speech, *model, *where])
    with pytest.raises(UserError, match="Ann is enrolled in .* already"):
        gallery.main(["enroll", "Ann", speech, *model, *where])
    (path,) = (tmp_path / "g").glob("*.json")
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "made_by": {"checkpoint": "x", "segments": None}}))
    for command in (["identify", speech], ["enroll", "Bob", str(tones / NAMES[4])]):
        with pytest.raises(UserError, match="Ann was enrolled in .* with another model"):
            gallery.main([*command, *model, *where])
    voice = about["embedding"]
    for change in (
        {"embedding": None}, {"embedding": [voice]}, {"seconds": None}, {"name": None},
        {"embedding": [0.0] * len(voice)}, {"embedding": [float("nan")] * len(voice)},
        {"embedding": [10**400, *voice[1:]]}, {"embedding": [2 * x for x in voice]},
        {"seconds": -1.0}, {"seconds": float("inf")}, {"recordings": 0}, {"recordings": 1.5},
        {"name": "Bob"}, {"name": "A\u001bnn"}, "[" * 100_000, "0" * (1 << 21),
    ):  # fmt: skip
        path.write_text(change if isinstance(change, str) else json.dumps({**about, **change}))
        with pytest.raises(UserError, match="Ann.json is damaged"):
            galleries.read(tmp_path / "g")
    path.write_text(json.dumps({**about, "embedding": voice[:-1]}))
    with pytest.raises(UserError, match="Ann.json is damaged"):
        galleries.voiceprints(tmp_path / "g", SpeakerEncoder.load(calibrated))
    path.write_text(json.dumps(about)[:-40])
    for command in (["list"], ["remove", "Ann"]):  # which might be another program's file
        with pytest.raises(UserError, match="Ann.json is damaged: remove the file"):
            gallery.main([*command, *where])
    path.write_text(json.dumps(about))
    gallery.main(["remove", "Ann", *where])
    with pytest.raises(UserError, match="nobody is enrolled in"):
        gallery.main(["identify", speech, *model, *where])
    with pytest.raises(UserError, match="required: {enroll,identify,list,remove}"):
        gallery.main([])
