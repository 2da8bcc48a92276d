import os
from pathlib import Path

import numpy as np
import pytest
from support import write_tone

from chns_jax.common.errors import UserError
from chns_jax.corpus import index as index_module
from chns_jax.corpus.corpus import Strings, join
from chns_jax.corpus.open import open_corpus
from chns_jax.embedding import cache


@pytest.fixture
def opened(monkeypatch):
    """The files whose headers are read."""
    paths = []
    read = index_module.read_header
    monkeypatch.setattr(
        index_module, "read_header", lambda path: paths.append(os.path.basename(path)) or read(path)
    )
    return paths


def test_speaker_recording_utterance(tones, tmp_path):
    corpus = open_corpus(tones, tmp_path)
    assert list(corpus.speakers) == [f"s{i:02d}" for i in range(12)]
    assert list(corpus.names)[:5] == [
        "s00/r0/u0.flac", "s00/r0/u1.flac", "s00/r1/u2.flac", "s00/r1/u3.flac", "s01/r0/u0.flac",
    ]  # fmt: skip
    np.testing.assert_array_equal(corpus.speaker, np.repeat(np.arange(12), 4))
    np.testing.assert_array_equal(corpus.recording, np.repeat(np.arange(24), 2))
    np.testing.assert_allclose(corpus.seconds[:4], [0.6, 0.7, 0.8, 0.9], atol=1e-4)
    assert set(corpus.rate) == {16_000}
    assert corpus.path(2) == str(tones / "s00/r1/u2.flac")
    np.testing.assert_array_equal(corpus.speaker_start, 4 * np.arange(13))
    np.testing.assert_array_equal(corpus.recording_start[:4], [0, 0, 2, 2])
    np.testing.assert_array_equal(corpus.recording_end[:4], [2, 2, 4, 4])
    assert corpus.rows(["s00/r1/u3.flac", "nobody"]) == {"s00/r1/u3.flac": 3}


def test_speaker_utterance_makes_every_file_a_recording(tmp_path):
    for name in ("b/2.wav", "a/1.wav", "a/0.wav", "a/rec/x.wav", "a/rec/y.wav"):
        write_tone(tmp_path / "root" / name, 0.2, hertz=100)
    (tmp_path / "root" / "notes.txt").write_text("no audio")
    (tmp_path / "root" / "a" / ".hidden.wav").write_text("no audio")
    corpus = open_corpus(tmp_path / "root", tmp_path)
    names = ["a/0.wav", "a/1.wav", "a/rec/x.wav", "a/rec/y.wav", "b/2.wav"]
    assert list(corpus.names) == names
    np.testing.assert_array_equal(corpus.recording, [0, 1, 2, 2, 3])
    np.testing.assert_array_equal(corpus.speaker, [0, 0, 0, 0, 1])


def test_kaldi(tones, tmp_path, opened):
    data = tmp_path / "data"
    data.mkdir()
    names = ["s01-vid-1-00002", "s01-vid-1-00001", "s00-a-00001", "s01-b-00001"]
    files = ["s01/r0/u1.flac", "s01/r0/u0.flac", "s00/r0/u0.flac", "s01/r1/u2.flac"]
    pairs = list(zip(names, files, strict=True))
    (data / "wav.scp").write_text("".join(f"{n} {tones / f}\n" for n, f in pairs))
    (data / "utt2spk").write_text("".join(f"{n} {n[:3]}\n" for n in names))
    (data / "utt2dur").write_text("s01-b-00001 0.75\n")
    corpus = open_corpus(data, tmp_path)
    assert list(corpus.speakers) == ["s00", "s01"]
    assert sorted(corpus.names) == sorted(names)
    recording = dict(zip(corpus.names, corpus.recording, strict=True))
    assert recording["s01-vid-1-00001"] == recording["s01-vid-1-00002"]
    assert len(set(recording.values())) == 3
    row = corpus.rows(["s01-b-00001"])["s01-b-00001"]
    assert corpus.path(row) == str(tones / "s01/r1/u2.flac")
    assert corpus.seconds[row] == 0.75 and "u2.flac" not in opened  # utt2dur is believed
    (data / "utt2spk").unlink()
    (data / "spk2utt").write_text(f"s00 {names[2]}\ns01 {names[0]} {names[1]} {names[3]}\n")
    np.testing.assert_array_equal(open_corpus(data, tmp_path).speaker, corpus.speaker)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"wav.scp": "u1 x.wav\n"}, "neither utt2spk nor spk2utt"),
        ({"wav.scp": "u1 x.wav\n", "utt2spk": "u2 s\n"}, "does not name the speaker of u1"),
        ({"wav.scp": "u1\n", "utt2spk": "u1 s\n"}, "wav.scp line 1 has no second column"),
        ({"wav.scp": "u1 sox x.wav |\n", "utt2spk": "u1 s\n"}, "reads u1 from a command"),
        ({"wav.scp": "r x.wav\n", "segments": "", "utt2spk": ""}, "segments is not supported"),
        ({"wav.scp": "u x\nv x\n\nu y\n", "utt2spk": ""}, "wav.scp line 4 names u again"),
        ({"wav.scp": "u x\n", "utt2spk": "u s\nu t\n"}, "utt2spk line 2 names u again"),
        ({"wav.scp": "u x\n", "spk2utt": "s u\nt u\n"}, "spk2utt has u as of s and of t"),
        (
            {"wav.scp": "u x\n", "utt2spk": "u s\n", "spk2utt": "t u\n"},
            "utt2spk with spk2utt has u as of s and of t",
        ),
        ({"wav.scp": "u x\0.wav\n", "utt2spk": "u s\n"}, "for u, which is no file"),
        (
            {"wav.scp": "u http://127.0.0.1/a.array_record:0+9\n", "utt2spk": "u s\n"},
            "for u, which is no file",
        ),
        (
            {"wav.scp": "u1 x\n", "utt2spk": "u1 s\n", "utt2dur": "u1 long\n"},
            "no number of seconds",
        ),
    ],
)
def test_kaldi_mistakes(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_corpus(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "1e30", "86401"])
def test_a_duration_that_cannot_be_is_named_and_not_remembered(tones, tmp_path, seconds):
    (tmp_path / "wav.scp").write_text(f"u1 {tones}/s00/r0/u0.flac\nu2 {tones}/s00/r0/u1.flac\n")
    (tmp_path / "utt2spk").write_text("u1 s\nu2 s\n")
    (tmp_path / "utt2dur").write_text(f"u2 {seconds}\n")
    with pytest.raises(UserError, match=f"no number of seconds for u2: {seconds}"):
        open_corpus(tmp_path, tmp_path / "cache")
    for stated, expected in [("u2 0.5\n", 0.5), ("u2 0.25\n", 0.25), ("", 0.7)]:
        (tmp_path / "utt2dur").write_text(stated)
        np.testing.assert_allclose(
            open_corpus(tmp_path, tmp_path / "cache").seconds, [0.6, expected], atol=1e-4
        )


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    root = tmp_path / "root"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    write_tone(tmp_path / "elsewhere/1.wav", 0.2, hertz=100)
    (root / "a/loop").symlink_to(root / "a")
    (root / "a/up").symlink_to(root)
    (root / "a/more").symlink_to(tmp_path / "elsewhere")
    (root / "a/gone.wav").symlink_to(tmp_path / "nowhere.wav")
    corpus = open_corpus(root, tmp_path)
    assert list(corpus.names) == ["a/0.wav", "a/more/1.wav"]
    assert [broken.name for broken in corpus.broken] == ["a/gone.wav"]
    assert "does not exist" in corpus.broken[0].why


def test_links_that_lead_round_and_out(tmp_path, capsys):
    """A way back through another folder, to the root or to what is above it, is not walked."""
    root, elsewhere = tmp_path / "all" / "root", tmp_path / "elsewhere"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    write_tone(root / "b/1.wav", 0.2, hertz=100)
    write_tone(elsewhere / "c/2.wav", 0.2, hertz=100)
    links = {
        root / "zz": ".", root / "disk": "/", root / "b/up": tmp_path / "all",
        root / "more": elsewhere, elsewhere / "back": root, elsewhere / "c/b": root / "b",
        elsewhere / "c/above": tmp_path, root / "self.wav": "self.wav", root / "a/x.wav": "x.wav",
    }  # fmt: skip
    for link, target in links.items():
        link.symlink_to(target)
    corpus = open_corpus(root, tmp_path)
    assert list(corpus.names) == ["a/0.wav", "b/1.wav", "more/c/2.wav"]
    assert [broken.name for broken in corpus.broken] == ["a/x.wav"]
    said = capsys.readouterr().err
    for link in ("zz", "disk", "b/up", "more/back", "more/c/above"):
        assert f"{root}/{link} leads to a folder that it lies in" in said
    assert f"{root}/more/c/b leads to a folder that was listed before" in said
    assert said.count("not followed") == 6


def test_folders_that_lead_to_each_other_twice_are_walked_once(tmp_path):
    root = tmp_path / "root"
    for i in range(25):
        (root / "s" / f"d{i:02}").mkdir(parents=True)
        for link in ("a", "b") if i < 24 else ():
            (root / "s" / f"d{i:02}" / link).symlink_to(f"../d{i + 1:02}")
    write_tone(root / "s/d24/0.wav", 0.2, hertz=100)
    assert len(open_corpus(root, tmp_path)) == 2  # below the links, and where it lies


@pytest.mark.parametrize("seconds", [np.nan, np.inf])
def test_a_cache_of_durations_that_are_none_is_made_again(tmp_path, seconds):
    root = tmp_path / "root"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    open_corpus(root, tmp_path)
    kept = index_module.cache_file(str(root), tmp_path)
    held = dict(np.load(kept))
    np.savez(kept, **{**held, "seconds": np.array([seconds], np.float32)})
    np.testing.assert_allclose(open_corpus(root, tmp_path).seconds, [0.2], atol=1e-3)
    kept.unlink()
    kept.mkdir()
    with pytest.raises(UserError, match=f"cannot be kept in the cache {tmp_path}: "):
        open_corpus(root, tmp_path)


def test_folders_deeper_than_anybody_makes(tmp_path):
    write_tone(tmp_path / "root" / Path(*"a" * 102) / "0.wav", 0.2, hertz=100)
    with pytest.raises(UserError, match="more than 100 folders within each other"):
        open_corpus(tmp_path / "root", tmp_path)


def test_what_is_no_file_is_broken_and_not_opened(tmp_path):
    root = tmp_path / "root"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    os.mkfifo(root / "a/1.wav")
    corpus = open_corpus(root, tmp_path)
    assert list(corpus.names) == ["a/0.wav"]
    assert [(b.name, "is a pipe" in b.why) for b in corpus.broken] == [("a/1.wav", True)]


def test_names_may_hold_any_bytes(tmp_path):
    root = tmp_path / "root"
    write_tone(root / "a b/u.wav", 0.2, hertz=100)
    os.rename(root / "a b/u.wav", os.fsencode(root) + b"/a b/\xff.wav")
    corpus = open_corpus(root, tmp_path)
    assert len(corpus) == 1 and os.path.exists(corpus.path(0))


def test_the_cache_is_used_and_only_what_changed_is_read_again(tmp_path, opened):
    root = tmp_path / "root"
    for name in ("a/0.wav", "a/1.wav", "b/2.wav"):
        write_tone(root / name, 0.2, hertz=100)
    first = open_corpus(root, tmp_path)
    assert sorted(opened) == ["0.wav", "1.wav", "2.wav"]
    opened.clear()
    again = open_corpus(root, tmp_path)
    assert not opened
    np.testing.assert_array_equal(again.seconds, first.seconds)
    np.testing.assert_array_equal(again.rate, first.rate)

    write_tone(root / "a/1.wav", 0.5, hertz=100)  # changed in place
    write_tone(root / "b/3.wav", 0.3, hertz=100)  # new
    (root / "a/0.wav").unlink()
    changed = open_corpus(root, tmp_path)
    assert sorted(opened) == ["1.wav", "3.wav"]
    assert list(changed.names) == ["a/1.wav", "b/2.wav", "b/3.wav"]
    np.testing.assert_allclose(changed.seconds, [0.5, 0.2, 0.3], atol=1e-4)


def test_a_file_of_a_year_that_int64_does_not_hold(tmp_path, opened):
    path = tmp_path / "root/s0/0.wav"
    write_tone(path, 0.5, hertz=100)
    os.utime(path, (2**34, 2**34))  # 2514
    for _ in range(2):
        corpus = open_corpus(tmp_path / "root", tmp_path / "cache")
        assert len(corpus) == 1 and opened == ["0.wav"]
    assert cache.key(str(path)).time == 2**63 - 1


def test_kaldis_columns_are_apart_by_blanks_or_tabs(tmp_path):
    for name in ("0.wav", "a b.wav"):
        write_tone(tmp_path / name, 0.5, hertz=100)
    (tmp_path / "wav.scp").write_text("u1\t0.wav\nu2 \t a b.wav \n")
    (tmp_path / "utt2spk").write_text("u1\ts1\nu2  s1\n")
    corpus = open_corpus(tmp_path, tmp_path / "cache")
    assert [os.path.basename(corpus.path(i)) for i in range(2)] == ["0.wav", "a b.wav"]


def test_a_cache_cut_short_is_made_again(tmp_path, opened):
    root = tmp_path / "root"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    open_corpus(root, tmp_path)
    cached = index_module.cache_file(str(root), tmp_path)
    cached.write_bytes(cached.read_bytes()[:100])
    opened.clear()
    assert len(open_corpus(root, tmp_path)) == 1 and opened == ["0.wav"]


def test_broken_files_are_listed_and_left_out(tmp_path):
    root = tmp_path / "root"
    write_tone(root / "a/0.wav", 0.2, hertz=100)
    (root / "a/1.wav").write_bytes(b"no audio")
    (root / "b").mkdir()
    (root / "b/2.wav").write_bytes(b"")
    for _ in range(2):  # read, then from the cache
        corpus = open_corpus(root, tmp_path)
        assert list(corpus.names) == ["a/0.wav"] and list(corpus.speakers) == ["a"]
        assert [broken.name for broken in corpus.broken] == ["a/1.wav", "b/2.wav"]
        assert [broken.path for broken in corpus.broken] == [
            str(root / "a/1.wav"), str(root / "b/2.wav"),
        ]  # fmt: skip
        assert all("is no audio" in broken.why for broken in corpus.broken)


def test_folders_that_are_no_corpus(tmp_path):
    with pytest.raises(UserError, match="gone does not exist"):
        open_corpus(tmp_path / "gone", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        open_corpus(tmp_path / "file", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no audio"):
        open_corpus(tmp_path / "empty", tmp_path)


def test_utterances_evenly_spaced_over_each_speaker(tones, tmp_path):
    corpus = open_corpus(tones, tmp_path)
    assert corpus.evenly_spaced(10).tolist() == list(range(48))
    for wanted, places in [(1, [0]), (2, [0, 3]), (3, [0, 2, 3])]:
        rows = [4 * speaker + place for speaker in range(12) for place in places]
        assert corpus.evenly_spaced(wanted).tolist() == rows
    uneven = corpus.only(np.arange(48) > 2)  # the first speaker has one left
    assert uneven.evenly_spaced(2).tolist()[:3] == [0, 1, 4]


def test_select_keeps_whole_speakers(tones, tmp_path):
    corpus = open_corpus(tones, tmp_path)
    kept = np.isin(corpus.speakers, ["s03", "s07"])
    part = corpus.select(kept)
    assert list(part.speakers) == ["s03", "s07"] and len(part) == 8
    assert {name[:3] for name in part.names} == {"s03", "s07"}
    np.testing.assert_array_equal(part.speaker, np.repeat([0, 1], 4))
    np.testing.assert_array_equal(part.recording, np.repeat(np.arange(4), 2))
    assert part.path(7) == str(tones / "s07/r1/u3.flac")


def test_join_takes_several_roots(tones, tmp_path):
    other = tmp_path / "other"
    write_tone(other / "z/0.wav", 0.2, hertz=100)
    write_tone(other / "z/1.wav", 0.2, hertz=100)
    both = join([open_corpus(tones, tmp_path), open_corpus(other, tmp_path)])
    assert len(both.speakers) == 13 and both.speakers[-1] == "z"
    assert both.path(len(both) - 1) == str(other / "z/1.wav")
    assert (np.diff(both.recording) >= 0).all() and both.recording[-1] == 25
    with pytest.raises(UserError, match="speaker z is both in"):
        join([both, open_corpus(other, tmp_path)])


def test_strings_are_what_went_in():
    words = ["", "a", "über/ü.wav", "a" * 300, ""]
    strings = Strings.of(words)
    assert list(strings) == words and len(strings) == 5
    assert list(strings.select(np.array([1, 0, 1, 0, 1], bool))) == ["", "über/ü.wav", ""]
    assert list(strings.followed_by(Strings.of(["x"]))) == [*words, "x"]


def test_voxceleb2_fits_as_arrays(tmp_path):
    """5,994 speakers and 1.09 million files: how many bytes its arrays take, and that they are what
    went into the cache."""
    speakers, recordings, utterances = 5_994, 145_569, 1_092_009
    recording = np.sort(np.random.default_rng(0).integers(recordings, size=utterances))
    speaker = np.sort(np.random.default_rng(1).integers(speakers, size=recordings))[recording]
    name = b"id00012/21Uxsk56VDQ/00001.m4a"
    names = Strings(
        np.tile(np.frombuffer(name, np.uint8), utterances),
        np.arange(1, utterances + 1, dtype=np.int64) * len(name),
    )
    found = index_module._Found(
        speakers=np.array([f"id{i:05d}" for i in range(speakers)]),
        names=names,
        files=names,
        speaker=speaker.astype(np.int32),
        recording=recording.astype(np.int32),
        size=np.ones(utterances, np.int64),
        time=np.ones(utterances, np.int64),
        stated=np.full(utterances, np.nan, np.float32),
        seconds=np.full(utterances, 8, np.float32),
        rate=np.full(utterances, 16_000, np.int32),
        reasons=Strings.of([]),
    )
    index_module._save(tmp_path / "index.npz", found)
    corpus = index_module._load(tmp_path / "index.npz").corpus("/speech")
    arrays = [
        getattr(corpus, key) for key in "speakers root speaker recording seconds rate".split()
    ]
    size = sum(a.nbytes for a in [*arrays, corpus.names.text, corpus.names.end])
    assert len(corpus) == utterances and corpus.path(utterances - 1) == "/speech/" + name.decode()
    assert size < 100e6
    np.testing.assert_array_equal(corpus.speaker, speaker)
    np.testing.assert_array_equal(corpus.recording, np.unique(recording, return_inverse=True)[1])
    assert corpus.names[0] == corpus.names[utterances // 2] == name.decode()
