import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from support import write_tone

from chns_jax.common.errors import UserError
from chns_jax.common.files import UNFINISHED
from chns_jax.corpus import records, shards, storage, trials
from chns_jax.corpus.audio import AudioError, read_crop, read_whole
from chns_jax.corpus.corpus import join
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.records import Record
from chns_jax.corpus.shards import Options
from chns_jax.scoring.mfcc_baseline import mfcc_eer

RATE = 16_000
FORMATS = ["flac", "pcm16"]


@pytest.fixture(scope="module")
def long_tones(tmp_path_factory):
    """Utterances of up to 5 s, so that a record spans blocks of 64 KiB."""
    root = tmp_path_factory.mktemp("long")
    for speaker in range(6):
        for utterance in range(4):
            path = root / f"s{speaker}" / f"r{utterance // 2}" / f"u{utterance}.flac"
            seed = 10 * speaker + utterance
            write_tone(path, 1.0 + seed / 14, hertz=90 + 30 * speaker, seed=seed)
    return root


@pytest.fixture(scope="module", params=FORMATS)
def packed(request, long_tones, tmp_path_factory):
    """A folder and its prepared folder, of three shards."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    corpus = open_corpus(long_tones, out.parent)
    shards.write(corpus, out, Options(request.param, RATE, shard_mb=1), threads=2)
    return long_tones, out


def crops(corpus, rate=RATE, samples=20_000):
    positions = np.linspace(0, 0.999, 5)
    return [
        read_crop(corpus.path(u), position, samples, rate)
        for u in range(len(corpus)) for position in positions
    ]  # fmt: skip


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_prepared_corpus_is_that_of_the_folder(packed, tmp_path):
    folder, out = packed
    corpus, prepared = open_corpus(folder, tmp_path), open_corpus(out, tmp_path)
    assert list(prepared.names) == list(corpus.names)
    for field in ("speakers", "speaker", "recording", "seconds", "rate", "recording_start"):
        np.testing.assert_array_equal(getattr(prepared, field), getattr(corpus, field))
    assert prepared.seconds.dtype == corpus.seconds.dtype and prepared.broken == ()
    assert len({records.parse(prepared.path(u)).shard for u in range(len(corpus))}) == 3


def test_crops_are_those_of_the_folder(packed, tmp_path):
    folder, out = packed
    corpus, prepared = open_corpus(folder, tmp_path), open_corpus(out, tmp_path)
    assert same(crops(prepared), crops(corpus))
    assert same(crops(prepared, samples=90_000), crops(corpus, samples=90_000))  # repeated
    assert same(crops(prepared, rate=8000), crops(corpus, rate=8000))


def test_array_record_reads_the_same_records(packed):
    _, out = packed
    corpus = shards.load(out)
    with np.load(out / "index.npz") as held:
        assert len(held["record"]) == len(corpus) == 24
        for u, (shard, i) in enumerate(zip(held["shard"], held["record"], strict=True)):
            reader = ArrayRecordReader(str(out / shards.shard_names(3)[shard]))
            (content,) = reader.read([int(i)])
            record = records.parse(corpus.path(u))
            assert records.read(record, 0, record.size) == content
            reader.close()


def test_many_threads_read_at_once_and_nothing_stays_open(packed, tmp_path):
    corpus = open_corpus(packed[1], tmp_path)
    expected = crops(corpus)
    opened = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(crops, corpus) for _ in range(8)]:
            assert same(answer.result(), expected)
    assert len(os.listdir("/proc/self/fd")) <= opened + 8  # the threads' own


def test_select_join_trials_and_floor(packed, tones, tmp_path):
    folder, out = packed
    corpus, prepared = open_corpus(folder, tmp_path), open_corpus(out, tmp_path)
    keep = np.arange(6) % 2 == 0
    assert same(crops(prepared.select(keep)), crops(corpus.select(keep)))
    other = tmp_path / "other"
    shutil.copytree(tones / "s00", other / "x00")
    joined = join([prepared.select(keep), open_corpus(other, tmp_path)])
    assert same(crops(joined), [*crops(corpus.select(keep)), *crops(open_corpus(other, tmp_path))])
    assert joined.roots == (str(out), str(other))
    named = trials.NamedTrials(
        np.array([True, False]), ["s0/r0/u0.flac"] * 2, ["s0/r1/u2.flac", "s1/r0/u1.flac"]
    )
    assert trials.locate(named, prepared, "list").test.tolist() == [2, 5]
    made = trials.make(prepared, max_trials=100, seed=0)
    assert mfcc_eer(Reader(prepared, RATE, 2), made) == mfcc_eer(Reader(corpus, RATE, 2), made)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_url(packed, tmp_path, scheme):
    _, out = packed
    url = f"file://{out}" if scheme == "file" else f"memory://bucket/{out.parent.name}"
    if scheme == "memory":
        fsspec.filesystem("memory").put(str(out) + "/", url, recursive=True)
    assert same(crops(open_corpus(url, tmp_path)), crops(open_corpus(out, tmp_path)))
    assert shards.verify(url).startswith(f"{url} is complete: 3 shards of 24 utterances")
    with ThreadPoolExecutor(8) as pool:
        pair = list(pool.map(crops, [open_corpus(url, tmp_path)] * 8))
    assert all(same(one, pair[0]) for one in pair)


def test_a_crop_of_raw_samples_reads_no_more_than_itself(long_tones, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shards.write(open_corpus(long_tones, tmp_path), out, Options("pcm16", RATE, 1), threads=1)
    corpus = open_corpus(out, tmp_path)
    asked, read = [], storage.read
    monkeypatch.setattr(
        storage, "read", lambda *place: asked.append(place[2] - place[1]) or read(*place)
    )
    crops(corpus, samples=10_000)
    assert len(asked) == 5 * len(corpus)
    assert min(asked) == 20_000 and max(asked) == 20_000 + records.BLOCK_HEADER


@pytest.mark.parametrize("url, message", [
    ("nosuch://x/y", "nosuch://x/y/index.npz cannot be read: Protocol not known: nosuch"),
    ("memory://gone", "memory://gone has no index.npz"),
])  # fmt: skip
def test_a_url_that_leads_nowhere(tmp_path, url, message):
    with pytest.raises(UserError, match=message):
        open_corpus(url, tmp_path)


def test_records_of_every_length_are_found(tmp_path):
    rng = np.random.default_rng(0)
    edges = [1, 2, 127, 128, 16_383, 16_384, *range(65_440, 65_560, 3), 131_024, 131_025]
    contents = [rng.bytes(size) for size in [*edges, *rng.integers(1, 300_000, 40).tolist()]]
    path = str(tmp_path / "x.array_record")
    writer = ArrayRecordWriter(path, records.WRITER_OPTIONS)
    for content in contents:
        writer.write(content)
    writer.close()
    sizes = [len(content) for content in contents]
    for content, first in zip(contents, records.find(path, sizes), strict=True):
        record = Record(path, first, len(content), None)
        assert records.parse(str(record)) == record
        assert records.read(record, 0, len(content)) == content
        start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        assert records.read(record, start, end) == content[start:end]
    with pytest.raises(ValueError, match="has no record of 5 bytes"):
        list(records.find(path, [1, 5]))


@pytest.mark.parametrize("options", ["", "uncompressed,group_size:2", "zstd:3,group_size:1"])
def test_another_layout_is_noticed(tmp_path, options):
    path = str(tmp_path / "x.array_record")
    writer = ArrayRecordWriter(path, options)
    for _ in range(3):
        writer.write(bytes(1000))
    writer.close()
    with pytest.raises(ValueError, match="has no record"):
        list(records.find(path, [1000] * 3))


@pytest.mark.parametrize("format", FORMATS)
def test_other_signals_are_made_mono_int16_at_one_rate(tmp_path, format):
    root, rng = tmp_path / "root", np.random.default_rng(0)
    write_tone(root / "a/0.wav", 1.0, hertz=100, rate=8000)
    soundfile.write(root / "a/1.ogg", rng.normal(0, 0.1, (16_000, 2)), 44_100)
    soundfile.write(root / "a/2.wav", rng.normal(0, 0.5, 1000), RATE, subtype="FLOAT")
    soundfile.write(root / "a/3.wav", np.array([7], np.int16), RATE)
    corpus = open_corpus(root, tmp_path)
    shards.write(corpus, tmp_path / "out", Options(format, RATE, 1), threads=2)
    prepared = open_corpus(tmp_path / "out", tmp_path)
    lengths = []
    for u in range(4):
        whole = read_whole(corpus.path(u), RATE)
        np.testing.assert_array_equal(read_whole(prepared.path(u), RATE), whole)
        lengths.append(len(whole))
    assert lengths == [16_000, pytest.approx(16_000**2 / 44_100, abs=1), 1000, 1]
    np.testing.assert_allclose(prepared.seconds, np.array(lengths) / RATE, rtol=1e-6)
    assert set(prepared.rate) == {RATE}


def test_a_prepared_folder_is_prepared_again_at_another_rate(packed, tmp_path):
    shards.write(open_corpus(packed[1], tmp_path), tmp_path / "out", Options("pcm16", 8000, 1), 2)
    prepared, folder = open_corpus(tmp_path / "out", tmp_path), open_corpus(packed[0], tmp_path)
    np.testing.assert_array_equal(
        read_whole(prepared.path(5), 8000), read_whole(folder.path(5), 8000)
    )


@pytest.mark.parametrize("format", FORMATS)
def test_real_speech_is_kept_as_it_is(real_data, tmp_path, format):
    root = tmp_path / "root"
    for speaker in sorted((real_data / "vox2mini").iterdir())[:4]:
        shutil.copytree(speaker, root / speaker.name)
    corpus = open_corpus(root, tmp_path)
    shards.write(corpus, tmp_path / "out", Options(format, RATE, 2), threads=2)
    assert same(
        crops(open_corpus(tmp_path / "out", tmp_path), samples=48_000),
        crops(corpus, samples=48_000),
    )


def test_names_may_hold_any_bytes(tmp_path):
    root = tmp_path / "root"
    write_tone(root / "a b/u.wav", 0.2, hertz=100)
    os.rename(os.fsencode(root) + b"/a b", os.fsencode(root) + b"/a:1+2\xff")
    corpus = open_corpus(root, tmp_path)
    shards.write(corpus, tmp_path / "o\udcff", Options("pcm16", RATE, 1), threads=1)
    prepared = open_corpus(tmp_path / "o\udcff", tmp_path)
    assert list(prepared.names) == list(corpus.names)
    assert same(crops(prepared), crops(corpus))


def test_killed_between_the_index_and_the_end(packed, copy, tmp_path):
    with np.load(copy / "index.npz") as held:
        options = Options(str(held["format"]), RATE, 1)
    (copy / "shard-00001-of-00003.npz").write_bytes(b"what was known of a shard")
    (copy / f".shard-00002-of-00003.array_record.99{UNFINISHED}").write_bytes(b"half a shard")
    shards.write(open_corpus(packed[0], tmp_path), copy, options, threads=1)
    assert {p.name for p in copy.iterdir()} == {p.name for p in packed[1].iterdir()}


def broken_corpus(root):
    for speaker in range(10):
        for utterance in range(30):
            write_tone(root / f"s{speaker}/{utterance:02}.wav", 0.05, hertz=100)
    soundfile.write(root / "s0/03.wav", np.full(800, np.nan, np.float32), RATE, subtype="FLOAT")
    (root / "s9/29.wav").write_bytes(b"no audio")
    return root


def test_broken_files_are_left_out_and_listed(tmp_path):
    root, out = broken_corpus(tmp_path / "root"), tmp_path / "out"
    shards.write(open_corpus(root, tmp_path), out, Options("flac", RATE, 1), threads=2)
    prepared = open_corpus(out, tmp_path)
    assert len(prepared) == 298 and "s0/03.wav" not in list(prepared.names)
    lines = sorted((out / "skipped.txt").read_text().splitlines())
    assert lines[0] == f"{root}/s0/03.wav\tholds NaN or infinity" and len(lines) == 2
    assert {broken.name for broken in prepared.broken} == {"s0/03.wav", "s9/29.wav"}
    assert {f"{broken.path}\t{broken.why}" for broken in prepared.broken} == set(lines)
    np.testing.assert_array_equal(np.diff(prepared.speaker_start), [29, *[30] * 8, 29])


def test_too_many_broken_files(tmp_path):
    root = broken_corpus(tmp_path / "root")
    for utterance in range(10, 14):
        shutil.copy(root / "s0/03.wav", root / f"s5/{utterance}.wav")
    with pytest.raises(UserError, match="6 of 300 files cannot be used, more than 1%"):
        shards.write(
            open_corpus(root, tmp_path), tmp_path / "out", Options("flac", RATE, 1), threads=2
        )
    assert not (tmp_path / "out/index.npz").exists()


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed[1], tmp_path / "copy")


def test_an_index_without_its_shards(copy, tmp_path):
    for path in copy.glob("shard-*"):
        path.unlink()
    with pytest.raises(UserError, match="shard-00000-of-00003.array_record is missing"):
        open_corpus(copy, tmp_path)


def test_a_shard_cut_short_is_found_before_it_is_read(copy, tmp_path):
    name = sorted(copy.glob("shard-*"))[1]
    name.write_bytes(name.read_bytes()[:-1])
    for use in (shards.verify, lambda root: open_corpus(root, tmp_path)):
        with pytest.raises(UserError, match=f"^{name} has .* bytes and was written with "):
            use(copy)
    name.unlink()
    with pytest.raises(UserError, match=f"^{name} is missing"):
        shards.verify(copy)


def test_an_edited_byte_is_found(copy):
    assert "is complete: 3 shards of 24 utterances" in shards.verify(copy)
    name = sorted(copy.glob("shard-*"))[2]
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.write_bytes(content)
    with pytest.raises(UserError, match=f"^{name} was changed after it was written"):
        shards.verify(copy)


@pytest.mark.parametrize("spoil", [
    lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99,
    lambda content: content.replace(b"speaker", b"spoilt!", 1),
])  # fmt: skip
def test_a_spoilt_index(copy, spoil):
    (copy / "index.npz").write_bytes(spoil((copy / "index.npz").read_bytes()))
    with pytest.raises(UserError, match=f"^{copy}/index.npz "):
        shards.load(copy)


@pytest.mark.parametrize("name, change", [
    ("first", lambda array: array + 2**40), ("first", lambda array: -array - 1),
    ("first", lambda array: array[::-1]), ("record", lambda array: array[::-1]),
    ("size", lambda array: array * 10**9), ("shard", lambda array: array + 1),
    ("seconds", lambda array: array * np.nan), ("seconds", lambda array: array[1:]),
    ("speaker", lambda array: array[::-1]), ("speaker", lambda array: array + 9),
    ("recording", lambda array: array.astype(str)), ("speakers", lambda array: array[:1]),
    ("sample_rate", lambda array: array * 0), ("names.end", lambda array: array * 2**40),
    ("version", lambda array: np.array(["x", "y"])), ("shard_bytes", lambda array: array[None]),
    ("format", lambda array: np.array("wav")),
])  # fmt: skip
def test_an_index_whose_numbers_do_not_fit(copy, name, change):
    with np.load(copy / "index.npz") as held:
        spoilt = {**held, name: change(held[name])}
    np.savez(copy / "index.npz", **spoilt)
    with pytest.raises(UserError, match=f"^{copy}/index.npz "):
        shards.load(copy)


def test_an_index_that_says_another_format(copy):
    with np.load(copy / "index.npz") as held:
        spoilt = {**held, "format": np.array("pcm16")}
        was_raw = held["format"] == "pcm16"
    np.savez(copy / "index.npz", **spoilt)
    if was_raw:
        shards.load(copy)
        return
    with pytest.raises(UserError, match="raw samples whose bytes are not those of their seconds"):
        shards.load(copy)


def test_a_shard_that_vanishes_under_a_run(copy, tmp_path):
    corpus = open_corpus(copy, tmp_path)
    shard = records.parse(corpus.path(0)).shard
    with open(shard, "r+b") as file:
        file.truncate(100)
    with pytest.raises(AudioError, match=r"\+\d+.* cannot be decoded: the shard ends .* too early"):
        read_crop(corpus.path(0), 0.5, 100, RATE)
    (copy / shards.shard_names(3)[0]).unlink()
    with pytest.raises(AudioError, match="cannot be decoded: the file does not exist"):
        read_crop(corpus.path(0), 0.5, 100, RATE)


def test_the_same_corpus_gives_the_same_bytes_whatever_the_threads(packed, tmp_path):
    folder, out = packed
    with np.load(out / "index.npz") as held:
        options = Options(str(held["format"]), RATE, 1)
    shards.write(open_corpus(folder, tmp_path), tmp_path / "again", options, threads=5)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
