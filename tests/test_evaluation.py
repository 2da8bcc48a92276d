"""The command, run in this process, against embeddings of `SpeakerEncoder` and plain loops."""

import json

import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax import SpeakerEncoder, evaluate
from chns_jax.common.errors import UserError
from chns_jax.embedding import cache as embedding_cache
from chns_jax.scoring import metrics

pytestmark = pytest.mark.usefixtures("loaded_once")

NAMES = [f"s{s:02d}/r{u // 2}/u{u}.flac" for s in range(6) for u in range(4)]
PAIRS = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
LINES = [f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in PAIRS]


@pytest.fixture
def run(untrained, tones, tmp_path, capsys):
    """run(*options): the object that the command prints, and the lines of its scores."""
    (tmp_path / "trials.txt").write_text("".join(LINES))

    def start(*options, trials=tmp_path / "trials.txt", root=tones):
        where = ["--model", untrained, "--trials", trials, "--root", root]
        files = ["--cache", tmp_path / "cache", "--scores", tmp_path / "scores.txt"]
        evaluate.main([str(x) for x in (*where, *files, "--replicates", 20, *options)])
        lines = [line.split() for line in (tmp_path / "scores.txt").read_text().splitlines()]
        return json.loads(capsys.readouterr().out), lines

    return start


@pytest.fixture(scope="module")
def embedding(untrained, tones):
    encoder = SpeakerEncoder.load(untrained)
    names = [str(path.relative_to(tones)) for path in sorted(tones.rglob("*.flac"))]
    made = encoder.embed([tones / name for name in names])
    return dict(zip(names, made.astype(np.float64), strict=True))


def test_whole_utterances_by_their_cosine(run, embedding):
    result, lines = run()
    assert [(line[2], line[3]) for line in lines] == PAIRS
    cosines = np.array([embedding[a] @ embedding[b] for a, b in PAIRS])
    scores = np.array([float(line[0]) for line in lines])
    np.testing.assert_allclose(scores, cosines, atol=1e-4)
    labels = np.array([a[:3] == b[:3] for a, b in PAIRS])
    assert [line[1] for line in lines] == [str(int(label)) for label in labels]
    assert result["eer"] == pytest.approx(metrics.eer(labels, scores), abs=2e-3)
    assert result["min_cllr"] == pytest.approx(metrics.min_cllr(labels, scores), abs=2e-3)
    assert (result["targets"], result["nontargets"], result["speakers"]) == (36, 240, 6)
    low, high = result["intervals"]["eer"]
    assert 0 <= low <= result["eer"] <= high <= 1
    assert set(result["intervals"]["min_dcf"]) == {"0.01", "0.05"}
    for figure in (result["eer"], low, high, result["min_cllr"]):
        assert figure == float(f"{figure:.6g}")
    assert run("--replicates", 0)[0]["intervals"] == {}
    with pytest.raises(UserError, match="--replicates 19 are too few for an interval: give 20"):
        run("--replicates", 19)


def test_few_speakers_have_no_intervals(run, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("chns_jax.common.console.say", said.append)
    of_four = [line for line in LINES if "s04" not in line and "s05" not in line]
    (tmp_path / "four.txt").write_text("".join(of_four))
    result, _ = run(trials=tmp_path / "four.txt")
    assert result["speakers"] == 4 and result["intervals"] == {}
    assert said == [f"no intervals: {tmp_path}/four.txt has 4 speakers, 5 are needed"]


def test_a_second_evaluation_embeds_nothing(run, tones, tmp_path, monkeypatch):
    embedded = []

    def counting(embedder, variables, reader, rows):
        embedded.extend(reader.corpus.names[row] for row in rows)
        return real(embedder, variables, reader, rows)

    real = embedding_cache.embed_whole
    monkeypatch.setattr(embedding_cache, "embed_whole", counting)
    root = tmp_path / "speech"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((tones / name).read_bytes())
    first = run(root=root)
    assert sorted(embedded) == NAMES
    assert run(root=root) == first and len(embedded) == len(NAMES)
    soundfile.write(root / NAMES[3], np.zeros(9000), 16_000)
    run(root=root)
    assert embedded[len(NAMES) :] == [NAMES[3]]
    (kept,) = (tmp_path / "cache").glob("embeddings-*.npz")
    content = kept.read_bytes()
    damaged = [content[:-100], b"", content.replace(b"embeddings", b"embeddingz")]
    flipped = bytearray(content)
    flipped[content.index(b"embeddings.npy") + 300] ^= 255
    damaged.append(bytes(flipped))
    for bad in damaged:
        embedded.clear()
        kept.write_bytes(bad)
        run(root=root)
        assert sorted(embedded) == NAMES


def test_what_is_done_is_kept_when_a_file_cannot_be_read(run, tones, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "UTTERANCES_AT_ONCE", 8)
    root = tmp_path / "speech"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((tones / name).read_bytes())
    samples = np.zeros(9000, np.float32)
    samples[5000] = np.nan
    soundfile.write(root / NAMES[-1], samples, 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(UserError, match=r"s05/r1/u3.flac holds NaN or infinity: replace the file"):
        run(root=root)
    (kept,) = (tmp_path / "cache").glob("embeddings-*.npz")
    with np.load(kept) as arrays:
        assert arrays["embeddings"].shape == (16, 8)


def test_what_is_done_is_kept_when_it_is_stopped(run, tmp_path, monkeypatch):
    def stopped(*arguments):
        yield from ((i, np.eye(8)[i]) for i in range(5))
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_cache, "embed_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    (kept,) = (tmp_path / "cache").glob("embeddings-*.npz")
    assert len(embedding_cache.load(kept, 8)) == 5


def test_models_are_means_of_their_utterances(run, embedding, tmp_path):
    (tmp_path / "enrol.txt").write_text(f"alice {NAMES[0]} {NAMES[1]}\n{NAMES[4]} {NAMES[5]}\n")
    tests = [NAMES[2], NAMES[4], NAMES[6]]
    lines = [f"alice {test} {'target' if test[:3] == 's00' else 'nontarget'}\n" for test in tests]
    lines += [
        f"{NAMES[4]} {test} {'target' if test[:3] == 's01' else 'nontarget'}\n" for test in tests
    ]
    (tmp_path / "models.txt").write_text("".join(lines))
    _, scores = run("--enrolment", tmp_path / "enrol.txt", trials=tmp_path / "models.txt")
    mean = embedding[NAMES[0]] + embedding[NAMES[1]]
    mean /= np.linalg.norm(mean)
    expected = [mean @ embedding[test] for test in tests]
    expected += [embedding[NAMES[5]] @ embedding[test] for test in tests]  # the model of that name
    np.testing.assert_allclose([float(line[0]) for line in scores], expected, atol=1e-4)
    assert [line[1:3] for line in scores[:2]] == [["1", "alice"], ["0", "alice"]]

    (tmp_path / "enrol.txt").write_text(f"alice {NAMES[0]}\n")
    with pytest.raises(UserError, match="names the model s01/r0/u0.flac, which .*enrol.txt does"):
        run("--enrolment", tmp_path / "enrol.txt", trials=tmp_path / "models.txt")
    (tmp_path / "enrol.txt").write_text(f"alice {NAMES[0]}\n{NAMES[4]} gone\n")
    with pytest.raises(UserError, match="enrol.txt names gone, which is not in"):
        run("--enrolment", tmp_path / "enrol.txt", trials=tmp_path / "models.txt")
    (tmp_path / "gone.txt").write_text(f"1 alice {NAMES[1]}\n0 alice gone\n")
    with pytest.raises(UserError, match="gone.txt names gone, which is not in"):
        run("--enrolment", tmp_path / "enrol.txt", trials=tmp_path / "gone.txt")
    (tmp_path / "enrol.txt").write_text(f"alice {NAMES[0]} {NAMES[9]}\n{NAMES[4]} {NAMES[5]}\n")
    with pytest.raises(UserError, match="model alice with utterances of two .* --replicates 0"):
        run("--enrolment", tmp_path / "enrol.txt", trials=tmp_path / "models.txt")


def test_as_norm_with_a_cohort(run, embedding, tmp_path, tones):
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for speaker in range(6, 12):
        (cohort / f"c{speaker:02d}").symlink_to(tones / f"s{speaker:02d}")
    options = ["--norm", "as-norm", "--cohort", cohort, "--cohort_utterances", 2]
    result, lines = run(*options, "--cohort_size", 4)
    assert (result["norm"]["speakers"], result["norm"]["top"]) == (6, 4)
    voices = []
    for speaker in range(6, 12):
        mean = sum(embedding[f"s{speaker:02d}/r{u // 2}/u{u}.flac"] for u in (0, 3))
        voices.append(mean / np.linalg.norm(mean))
    expected = []
    for a, b in PAIRS:
        nearest = [np.sort(np.array(voices) @ embedding[side])[-4:] for side in (a, b)]
        cosine = embedding[a] @ embedding[b]
        expected.append(np.mean([(cosine - top.mean()) / top.std() for top in nearest]))
    scores = [float(line[0]) for line in lines]
    np.testing.assert_allclose(scores, expected, rtol=0.02, atol=0.05)
    assert run(*options)[0]["norm"]["top"] == 6  # all, of fewer than 300
    (cohort / "s01").symlink_to(tones / "s01")
    with pytest.raises(UserError, match="--cohort holds 1 of the [0-9]+ speakers of .* s01 first"):
        run(*options)


def test_segments_and_odd_recordings(run, tmp_path, tones):
    """50 ms, silence, and 8 kHz stereo are scored."""
    root = tmp_path / "speech"
    for speaker in ("a", "b"):
        write_tone(root / speaker / "1.wav", 2.0, hertz=150)
        soundfile.write(root / speaker / "2.wav", np.full((8000, 2), 0.1), 8000)
    write_tone(root / "a" / "short.wav", 0.05, hertz=150)
    soundfile.write(root / "b" / "silent.wav", np.zeros(8000), 16_000)
    trials = tmp_path / "odd.txt"
    trials.write_text("1 a/1.wav a/short.wav\n0 a/2.wav b/silent.wav\n1 b/1.wav b/2.wav\n")
    for options in ([], ["--segments", 0.5]):
        _, lines = run(*options, trials=trials, root=root)
        assert all(np.isfinite(float(line[0])) for line in lines)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--cohort", "x"], "--cohort is for --norm"),
        (["--norm", "as-norm", "--cohort", "/gone/x"], "/gone/x does not exist"),
        (["--norm", "z-norm"], "norm"),
        (["--segments", "0.1"], "--segments 0.1 must be 0.2 seconds"),
        (["--scores", "{tmp}/trials.txt"], "trials.txt is read or written for something else"),
        (["--report", "{tmp}/scores.txt"], "scores.txt is read or written for something else"),
        (["--enrolment", "/gone/x"], "/gone/x is not there"),
        (["--trials", "{tmp}/wrong.txt"], "folders do not.*--replicates 0 does without"),
        (["--trials", "{tmp}/missing.txt"], "names s00/r9/u9.flac, which is not in"),
    ],
)
def test_mistakes(run, tmp_path, options, message):
    (tmp_path / "wrong.txt").write_text(f"1 {NAMES[0]} {NAMES[9]}\n0 {NAMES[0]} {NAMES[8]}\n")
    (tmp_path / "missing.txt").write_text(f"1 {NAMES[0]} s00/r9/u9.flac\n0 {NAMES[0]} gone\n")
    with pytest.raises(UserError, match=message):
        run(*(option.format(tmp=tmp_path) for option in options))


def test_labels_that_are_not_the_folders_have_no_intervals(run, tmp_path):
    (tmp_path / "wrong.txt").write_text(f"1 {NAMES[0]} {NAMES[9]}\n0 {NAMES[0]} {NAMES[8]}\n")
    result, _ = run("--replicates", 0, trials=tmp_path / "wrong.txt")
    assert result["intervals"] == {} and "speakers" not in result
