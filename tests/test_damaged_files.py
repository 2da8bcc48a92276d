"""Every loader of files that strangers may have written, given damaged ones: each ends in success
or in one sentence. Where a file has checksums, success is with equal values; what is kept to save
time is made again."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support import write_tone

from chns_jax.common.errors import UserError
from chns_jax.corpus import index, inputs, kaldi, metadata, shards, trials
from chns_jax.corpus.audio import AudioError, read_header, read_whole
from chns_jax.corpus.corpus import Corpus
from chns_jax.corpus.open import open_corpus
from chns_jax.embedding import cache
from chns_jax.interop import torch_weights
from chns_jax.sampling import clusters
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.scoring import calibration
from chns_jax.scoring.calibration import Calibration
from chns_jax.verification import cohort as cohorts
from chns_jax.verification import gallery
from chns_jax.verification.cohort import Cohort
from chns_jax.verification.gallery import Enrolled

RATE = 16_000
NORM = {"kind": "as-norm", "speakers": 3, "top": 2, "cohort": "x"}
MADE_BY = {"checkpoint": "x", "segments": None, "norm": NORM}
UNIT = np.eye(3, 8, dtype=np.float32)


def damage(content: bytes, flips: list[float], cut: float | None) -> bytes:
    """With the bits at these places, from 0 to 1, flipped, and all behind `cut` cut off."""
    damaged = bytearray(content)
    for place in flips:
        bit = int(place * 8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged if cut is None else damaged[: int(cut * len(damaged))])


places = st.floats(0, 1, exclude_max=True)
damages = st.one_of(
    st.tuples(st.lists(places, min_size=1, max_size=4), st.none()),
    st.tuples(st.just([]), places),
)
quickly = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes all anew
)


def same(one, other) -> bool:
    """Whether two values are equal, which hold arrays, dataclasses, dicts and sequences."""
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray | list | tuple | cache.Strings):
        pairs = zip(one, other, strict=True) if len(one) == len(other) else [(0, 1)]
        if not isinstance(one, np.ndarray):
            return all(same(*pair) for pair in pairs)
    return np.array_equal(one, other)


def table(folder):
    path = folder / "table.npz"
    clusters.save(path, SpeakerClusters(np.array([1, 0, 1]), UNIT[:2]), ["a", "b", "é"])
    return path, lambda: clusters.read(path)[1], SpeakerClusters


def cohort(folder):
    cohorts.save(folder, Cohort(UNIT, 2, "x"), MADE_BY)
    (path,) = folder.glob("cohort-*.npz")
    return path, lambda: cohorts.load(folder, MADE_BY, 8), Cohort


def weights(folder):
    path = folder / "weights.npz"
    np.savez(path, **{"a.weight": UNIT, "b.bias": np.arange(3)})
    return path, lambda: torch_weights.read_file(path), dict


def shard_index(folder):
    for i in range(3):
        write_tone(folder / "root" / "ab"[i // 2] / f"{i}.wav", 0.1, hertz=100, seed=i)
    corpus, out = open_corpus(folder / "root", folder / "cache"), folder / "out"
    shards.write(corpus, out, shards.Options("pcm16", RATE, 1), threads=1)
    return out / "index.npz", lambda: shards.load(out), Corpus


def index_cache(folder):
    write_tone(folder / "root" / "a" / "0.wav", 0.1, hertz=100)
    write_tone(folder / "root" / "b" / "1.wav", 0.2, hertz=100)
    root = folder / "root"
    open_corpus(root, folder / "cache")
    path = index.cache_file(str(root), folder / "cache")
    return path, lambda: open_corpus(root, folder / "cache"), Corpus


def embedding_cache(folder):
    path = folder / "embeddings.npz"
    known = {cache.Key(f"/{i}.wav", i, i): row for i, row in enumerate(UNIT)}
    cache.save(path, known)
    return path, lambda: cache.load(path, 8) or known, dict


CHECKED = [table, cohort, weights, shard_index, index_cache, embedding_cache]


@pytest.mark.parametrize("make", CHECKED, ids=lambda make: make.__name__)
@quickly
@given(damages)
def test_a_file_with_checksums(made, make, damaged):
    path, load, kind, whole, expected = made(make)
    path.write_bytes(damage(whole, *damaged))
    try:
        found = load()
    except UserError:
        return
    assert isinstance(found, kind) and same(found, expected)


@pytest.fixture
def made(tmp_path):
    """made(make): path, loader, kind, content and values of a valid file, made once."""
    kept = {}

    def once(make):
        if make not in kept:
            path, load, kind = make(tmp_path)
            kept[make] = path, load, kind, path.read_bytes(), load()
        return kept[make]

    return once


def text(name, lines, load):
    """A maker of a text file."""

    def make(folder):
        (folder / name).write_text(lines, encoding="utf-8")
        return folder / name, lambda: load(folder), object

    make.__name__ = name
    return make


def kaldi_folder(name):
    def make(folder):
        tables = {
            "wav.scp": "s-r-0 0.wav\ns-r-1 1.wav\nt-é 2.wav\n",
            "utt2spk": "s-r-0 s\ns-r-1 s\nt-é t\n",
            "utt2dur": "s-r-0 1.5\nt-é 0.25\n",
        }
        if name == "spk2utt":
            del tables["utt2spk"]
            tables["spk2utt"] = "s s-r-0 s-r-1\nt t-é\n"
        for table, lines in tables.items():
            (folder / table).write_text(lines, encoding="utf-8")
        return folder / name, lambda: list(kaldi.utterances(str(folder))), list

    make.__name__ = f"kaldi_{name}"
    return make


def enrolled(folder):
    made_by = {"checkpoint": "x", "segments": None}
    speaker = Enrolled("Zoë", 2, 3.5, UNIT[0].tolist(), made_by)
    path = gallery._file(folder, speaker.name)
    path.write_text(json.dumps(speaker._asdict()))
    return path, lambda: gallery.read(folder), list


def calibrated(folder):
    path = folder / "calibration.json"
    quality = {"duration": 0.5, "cohort_mean": -0.25}
    made = Calibration(9.5, -1.25, quality, 2.0, {"prior": 0.5}, MADE_BY, 12, 30, 40, 0.1, 0.05)
    calibration.save(path, made)
    return path, lambda: calibration.load(path), Calibration


def safetensors(folder):
    save_file({"a.weight": UNIT, "b.bias": np.arange(3)}, folder / "weights.safetensors")
    path = folder / "weights.safetensors"
    return path, lambda: torch_weights.read_file(path), dict


def speech(name):
    def make(folder):
        path = str(folder / name)
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 400), RATE)
        return folder / name, lambda: (read_header(path), read_whole(path, RATE)), tuple

    make.__name__ = name
    return make


UNCHECKED = [
    text("trials.txt", "1 a/0 a/1\n0 a/0 é/1\n", lambda f: trials.read(f / "trials.txt")),
    text("kaldi.txt", "a b target\na c nontarget\n", lambda f: trials.read(f / "kaldi.txt")),
    text("models.txt", "m a b\nn c\n", lambda f: trials.read_enrolment(f / "models.txt")),
    text("list.txt", "a.wav\nb.wav\né.wav\n", lambda f: inputs.utterances([str(f / "list.txt")])),
    text("table.scp", "a a.wav\nb b.wav\n", lambda f: inputs.utterances([str(f / "table.scp")])),
    text("meta.csv", 'id,gender\na,"f"\nb,m\n', lambda f: metadata.read_genders(f / "meta.csv")),
    *map(kaldi_folder, ("wav.scp", "utt2spk", "spk2utt", "utt2dur")),
    enrolled, calibrated, safetensors, speech("x.wav"), speech("x.flac"), speech("x.ogg"),
]  # fmt: skip


@pytest.mark.parametrize("make", UNCHECKED, ids=lambda make: make.__name__)
@quickly
@given(damages)
def test_a_file_without_checksums(made, make, damaged):
    path, load, kind, whole, _ = made(make)
    path.write_bytes(damage(whole, *damaged))
    try:
        assert isinstance(load(), kind)
    except (UserError, AudioError) as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("make", CHECKED + UNCHECKED, ids=lambda make: make.__name__)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_bytes_of_anything(made, make, content):
    path, load, kind, _, _ = made(make)
    path.write_bytes(content)
    try:
        assert isinstance(load(), kind)
    except (UserError, AudioError) as error:
        assert "\n" not in str(error)
