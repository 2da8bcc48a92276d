"""The command, run in this process; and once as a program that is killed."""

import json
import os
import signal
import time

import kaldiio
import numpy as np
import pytest
import soundfile
from support import finish, write_tone

from chns_jax import SpeakerEncoder, embed
from chns_jax.common.errors import UserError
from chns_jax.corpus import audio
from chns_jax.embedding import files as embedding_files

pytestmark = pytest.mark.usefixtures("loaded_once")


def run(untrained, out, *inputs, options=()):
    embed.main([*map(str, inputs), "--model", str(untrained), "--out", str(out), *options])


def written(path):
    with np.load(path) as arrays:
        assert set(arrays.files) == {"names", "embeddings"}
        return dict(zip(arrays["names"].tolist(), arrays["embeddings"], strict=True))


@pytest.fixture(scope="module")
def expected(untrained, tones):
    """Embeddings of the utterances of `tones` by their path in it."""
    paths = sorted(tones.rglob("*.flac"))
    embeddings = SpeakerEncoder.load(untrained).embed(paths)
    return {str(path.relative_to(tones)): row for path, row in zip(paths, embeddings, strict=True)}


def assert_same(mine, theirs):
    assert list(mine) == list(theirs)
    np.testing.assert_allclose(list(mine.values()), list(theirs.values()), atol=1e-4)


def test_a_folder(untrained, tones, tmp_path, expected):
    run(untrained, tmp_path / "x.npz", tones)
    assert_same(written(tmp_path / "x.npz"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_lists_and_files(untrained, tones, tmp_path, expected):
    names = list(expected)[:4]
    (tmp_path / "wav.scp").write_text("".join(f"u{i} {tones / n}\n" for i, n in enumerate(names)))
    (tmp_path / "some.lst").write_text(f"{tones / names[0]}\n\n{tones / names[1]}\n")
    single = tones / names[2]
    run(untrained, tmp_path / "x.npz", tmp_path / "wav.scp", tmp_path / "some.lst", single, single)
    rows = {f"u{i}": expected[name] for i, name in enumerate(names)}
    rows |= {str(tones / name): expected[name] for name in names[:3]}
    assert_same(written(tmp_path / "x.npz"), rows)
    run(untrained, tmp_path / "y.npz", tmp_path)
    assert list(written(tmp_path / "y.npz")) == ["u0", "u1", "u2", "u3"]


@pytest.mark.parametrize("suffix", ["ark", "scp"])
def test_kaldi_reads_what_is_written(untrained, tones, tmp_path, expected, suffix):
    run(untrained, tmp_path / f"x.{suffix}", tones / "s00")
    mine = dict(kaldiio.load_scp(str(tmp_path / "x.scp")))
    rows = {name.removeprefix("s00/"): row for name, row in expected.items() if name < "s01"}
    assert_same(mine, rows)
    assert_same(dict(kaldiio.load_ark(str(tmp_path / "x.ark"))), rows)


def test_segments_average(untrained, tmp_path):
    path = tmp_path / "a.wav"
    write_tone(path, 1.0, hertz=100)
    waveform = audio.read_whole(str(path), 16_000)
    encoder = SpeakerEncoder.load(untrained)
    halves = encoder.embed([waveform[:8000], waveform[8000:]], sample_rate=16_000)
    run(untrained, tmp_path / "x.npz", path, options=["--segments", "0.5"])
    mean = halves.mean(axis=0) / np.linalg.norm(halves.mean(axis=0))
    np.testing.assert_allclose(written(tmp_path / "x.npz")[str(path)], mean, atol=1e-4)


def test_bad_files_lose_nothing(untrained, tmp_path, capsys):
    folder = tmp_path / "speech"
    write_tone(folder / "good.wav", 0.5, hertz=100)
    write_tone(folder / "short.wav", 0.05, hertz=100)
    soundfile.write(folder / "silence.wav", np.zeros(8000), 16_000)
    soundfile.write(folder / "stereo.wav", np.full((4000, 2), 0.1), 8000)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    (folder / "text.wav").write_text("no audio")
    run(untrained, tmp_path / "x.npz", folder, tmp_path / "gone.wav")
    mine = written(tmp_path / "x.npz")
    assert list(mine) == ["good.wav", "short.wav", "silence.wav", "stereo.wav"]
    assert np.isfinite(list(mine.values())).all()
    lines = (tmp_path / "x.npz.skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        str(tmp_path / "gone.wav"), str(folder / "nan.wav"), str(folder / "text.wav"),
    ]  # fmt: skip
    assert "does not exist" in lines[0] and "holds NaN" in lines[1]
    said = capsys.readouterr().err
    assert "4 embeddings" in said and "3 files were skipped" in said and "nan.wav holds NaN" in said

    write_tone(tmp_path / "gone.wav", 0.5, hertz=100)
    run(untrained, tmp_path / "x.npz", tmp_path / "gone.wav")
    assert not (tmp_path / "x.npz.skipped.txt").exists()


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (["empty"], [], "empty holds no audio"),
        (["empty.txt"], [], "empty.txt holds no audio"),
        (["gone.wav"], [], "none of 1 files can be used: .*gone.wav .*does not exist"),
        (["folde"], [], "there is no file or folder folde"),
        (["one.scp", "two.scp"], [], "two utterances are called u1, a.wav and b.wav"),
        (["pipe.scp"], [], "from a command"),
        (["a.wav"], ["--segments", "0.1"], "--segments 0.1 must be 0.2 seconds at least"),
        (["a.wav"], ["--segments", "1e9"], r"--segments 1e\+09 must be .* 600 at most"),
        (
            ["a.wav"],
            ["--segments", "-1"],
            "--segments -1 must be a number above 0",
        ),
        (["a.wav"], ["--out", "x.mat"], "none of the extensions .npz"),
        (["a b.wav"], ["--out", "x.ark"], "cannot hold the name .*a b.wav"),
        (["pairs.scp"], ["--out", "pairs.ark"], "pairs.scp is read or written for something else"),
        (["urls.txt"], [], "urls.txt names 'memory://a.array_record:0.9', which is no file"),
        (["link.txt"], ["--out", "mine.npz"], "mine.npz is read or written for something else"),
        (["x.npz.skipped.txt"], [], "skipped.txt is read or written for something else"),
        (["a.wav"], ["--checkpoint", "7"], "no checkpoint 7"),
        (["a.wav"], ["--model", "empty"], "empty is not a run folder"),
    ],
)
def test_mistakes_get_one_sentence(untrained, tmp_path, monkeypatch, inputs, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "pipe.scp").write_text("u1 sox a.wav - |\n")
    (tmp_path / "one.scp").write_text("u1 a.wav\n")
    (tmp_path / "two.scp").write_text("u1 b.wav\n")
    (tmp_path / "pairs.scp").write_text("u1 a.wav\n")
    (tmp_path / "x.npz.skipped.txt").write_text("a.wav\n")
    (tmp_path / "urls.txt").write_text("memory://a.array_record:0+9\n")
    (tmp_path / "mine.npz").write_text("mine")
    (tmp_path / "link.txt").write_text("link.wav\n")
    os.link(tmp_path / "mine.npz", tmp_path / "link.wav")
    for name in ("a.wav", "a b.wav"):
        write_tone(tmp_path / name, 0.5, hertz=100)
    with pytest.raises(UserError, match=message):
        run(untrained, "x.npz", *inputs, options=options)
    assert not (tmp_path / "x.npz").exists() and not (tmp_path / "x.npz.partial").exists()


def test_a_folder_of_the_users_where_parts_would_be_stays(tones, untrained, tmp_path):
    theirs = tmp_path / "x.npz.partial" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(UserError, match="x.npz.partial is where parts .*, and holds notes.txt: mo"):
        run(untrained, tmp_path / "x.npz", tones)
    assert theirs.read_text() == "mine"


@pytest.mark.long
def test_a_stopped_job_goes_on(untrained, tones, tmp_path, monkeypatch, expected):
    """What is in the parts is not read again, and the result is that of a job never stopped."""
    out, reading, asked = tmp_path / "x.npz", audio.read_whole, []

    def read(path, sample_rate):
        asked.append(path)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return reading(path, sample_rate)

    monkeypatch.setattr(audio, "read_whole", read)
    monkeypatch.setattr(embed, "SECONDS_BETWEEN_PARTS", 0)
    full_soon = "chns_jax.embedding.utterances.bucket_lengths"
    monkeypatch.setattr(full_soon, lambda rate: [60 * rate])
    with pytest.raises(KeyboardInterrupt):
        run(untrained, out, tones)
    finished = embedding_files.read_parts(tmp_path / "x.npz.partial", 8)
    assert finished and not out.exists()

    with pytest.raises(UserError, match="another model or other --segments"):
        run(untrained, out, tones, options=["--segments", "0.5"])
    asked[:] = [None] * 30
    run(untrained, out, tones)
    assert len(asked) - 30 == len(expected) - len(finished)
    assert_same(written(out), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_job_that_goes_on_embeds_changed_files_again(untrained, tmp_path, monkeypatch):
    """Other recordings of the same names are not given the embeddings of the old ones."""

    def embed_waveforms(embedder, variables, waveforms, **options):
        for key, waveform in waveforms:
            asked.append(key)
            yield key, np.resize(waveform, 8).astype(np.float32)

    def stopped(*arguments):
        raise KeyboardInterrupt

    def check(folder, again, changed=None):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(embedding_files, "write", stopped)
            run(untrained, out, tmp_path / "one")
        if changed:
            write_tone(folder / changed, 0.6, hertz=200)
        asked.clear()
        run(untrained, out, folder)
        assert len(asked) == again
        for name, embedding in written(out).items():
            waveform = audio.read_whole(str(folder / name), 16_000)
            np.testing.assert_array_equal(embedding, waveform[:8])

    out, asked = tmp_path / "x.npz", []
    monkeypatch.setattr("chns_jax.embedding.utterances.embed_waveforms", embed_waveforms)
    for i, name in enumerate(["one/a.wav", "one/b.wav", "other/a.wav", "other/b.wav"]):
        write_tone(tmp_path / name, 0.5, hertz=100, seed=i)
    check(tmp_path / "one", 0)
    check(tmp_path / "other", 2)
    check(tmp_path / "one", 1, changed="b.wav")


@pytest.mark.slow
def test_killed_and_started_again(untrained, program, command, tones, tmp_path, expected):
    out, parts = tmp_path / "x.npz", tmp_path / "x.npz.partial"
    arguments = [tones, "--model", untrained, "--out", out]
    process, started = program("embed", *arguments), time.monotonic()
    while not parts.exists() and time.monotonic() - started < 120:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, errors = command("embed", *arguments)
    assert "48 embeddings" in errors
    assert_same(written(out), expected)
    files = [tones / name for name in list(expected)[:2]]
    output, _ = finish(program("verify", *files, "--model", untrained))
    one, other = list(expected.values())[:2]
    assert json.loads(output)["cosine"] == pytest.approx(float(one @ other), abs=1e-4)
