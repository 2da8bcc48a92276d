"""Plans, clusters, audio and metrics: what hosts compute."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import numpy as np

from chns_jax.benchmarks.large_corpus import Size, make_corpus
from chns_jax.benchmarks.measure import Row, Sizes, alternate, below, faster
from chns_jax.benchmarks.training import batch_of, config_of, encoder_of, make_steps
from chns_jax.common.randomness import Purpose, generator
from chns_jax.common.vectors import unit
from chns_jax.config import Config, Sampler
from chns_jax.corpus import shards, synthetic
from chns_jax.corpus.corpus import Corpus, Strings
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.devices.sharding import make_mesh
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.utterances import embed_waveforms
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import frame_count
from chns_jax.encoders.initial import initial_variables
from chns_jax.sampling import clusters as tables
from chns_jax.sampling import kmeans
from chns_jax.sampling.pipeline import training_batches
from chns_jax.sampling.plan import plan
from chns_jax.scoring import metrics

PLAN_MS = (0.2, 1.0)  # targets, for each number of speakers
MOST_REFRESH_PERCENT = 5
LEAST_LOADING = 4.0
VOICEPRINT_CROPS = 10
LEAST_OF_BARE = 0.9  # of the crops of as many threads without a pipeline
MOST_MAIN_THREAD_SECONDS = 0.1
THREADS = 8


def plans(sizes: Sizes) -> Iterator[Row]:
    """The plan of a batch."""
    sampler = Sampler(speakers=sizes.batch_speakers)
    for speakers, target in zip(sizes.speakers, PLAN_MS, strict=True):
        corpus = _corpus(speakers, sizes.utterances_per_speaker)
        rng = np.random.default_rng(0)
        cluster = rng.integers(sizes.clusters, size=speakers).astype(np.int32)
        table = tables.SpeakerClusters(
            cluster, rng.normal(size=(sizes.clusters, 192)).astype(np.float32)
        )
        make = partial(plan, 0, 0, sampler, corpus, table)
        seconds = alternate({"ours": make}, 20 * sizes.repeats)["ours"]
        what = f"plan of {sampler.speakers} of {speakers:,} speakers"
        yield below(what, 1000 * seconds, "ms", target)


def refresh(sizes: Sizes) -> Iterator[Row]:
    """A refresh of the clusters, as a share of an epoch."""
    config = config_of("ecapa_tdnn", sizes)
    audio, labels = batch_of(config)
    step, forward, _ = make_steps(config, audio, labels)
    seconds = alternate({"step": step, "forward": forward}, sizes.repeats)
    speakers = sizes.speakers[0]
    # A mixture, as voices are, and not white noise, of which k-means makes nothing.
    rng = np.random.default_rng(0)
    voiceprints = rng.normal(size=(48, config.encoder.embedding))[rng.integers(48, size=speakers)]
    voiceprints = unit(voiceprints + rng.normal(size=voiceprints.shape))
    cluster = partial(kmeans.cluster, voiceprints.astype(np.float32), sizes.clusters, seed=0)
    clustering = alternate({"ours": cluster}, 1)["ours"]
    yield Row(f"k-means, {speakers:,} speakers, {sizes.clusters} clusters", clustering, "s")
    embedding = VOICEPRINT_CROPS * speakers * seconds["forward"] / len(audio)
    epoch = sizes.epoch_utterances * seconds["step"] / len(audio)
    share = 100 * (embedding + clustering) / epoch
    what = f"refresh, {VOICEPRINT_CROPS} crops a speaker, of an epoch of {sizes.epoch_utterances:,}"
    yield below(what, share, "%", MOST_REFRESH_PERCENT)


def loading(sizes: Sizes) -> Iterator[Row]:
    """Training batches from a folder of FLAC and from shards, against features of whole files, and
    as large as the paper's against bare threads."""
    speakers, utterances, seconds = sizes.files
    with tempfile.TemporaryDirectory() as folder:
        root = synthetic.write_corpus(
            Path(folder) / "voices", seed=0, speakers=speakers, utterances=utterances,
            seconds=seconds, processes=1,
        )  # fmt: skip
        corpus = open_corpus(root, Path(folder) / "cache")
        packed = {}
        for kind in ("flac", "pcm16"):
            options = shards.Options(kind, Config().features.sample_rate, 256)
            shards.write(corpus, Path(folder) / kind, options, THREADS)
            packed[kind] = shards.load(Path(folder) / kind)
        samples = round(sizes.crop_seconds * Config().features.sample_rate)
        steps = sizes.loaded_crops // (2 * speakers)
        with ThreadPoolExecutor(THREADS) as pool:
            functions: dict[str, Callable[[], object]] = {
                "whole": lambda: list(
                    pool.map(partial(_features_of_whole, corpus, samples), range(len(corpus)))
                )
            }
            for kind, corpus_of in {"folder": corpus, **packed}.items():
                functions[kind] = partial(_read, corpus_of, speakers, samples, steps)
            took = alternate(functions, min(3, sizes.repeats))
        pool_folder = Path(folder) / "pcm16"
        size = Size(2 * sizes.batch_speakers, 4 * sizes.batch_speakers, 8 * sizes.batch_speakers)
        large = shards.load(make_corpus(Path(folder), pool_folder, size))
        yield from _loading_of_kinds(took, len(corpus), steps * 2 * speakers)
        yield from _loading_of_paper(large, sizes, samples)


def _loading_of_kinds(took: dict[str, float], files: int, crops: int) -> Iterator[Row]:
    rate = {name: (files if name == "whole" else crops) / value for name, value in took.items()}
    other, whole = "features of whole files", rate["whole"]
    yield _more("training batches from a FLAC folder", rate["folder"], other, whole, LEAST_LOADING)
    yield _more("training batches from FLAC shards", rate["flac"], other, whole, LEAST_LOADING)
    yield _more("training batches from raw shards", rate["pcm16"], other, whole, None)


def _loading_of_paper(corpus: Corpus, sizes: Sizes, samples: int) -> Iterator[Row]:
    """Batches of raw shards as large as the paper's, and what they take of the main thread."""
    rows, reader = 2 * sizes.batch_speakers, _reader(corpus)
    sampler = Sampler(kind="random", speakers=sizes.batch_speakers)
    utterances = plan(0, 0, sampler, corpus, None).utterances.tolist()

    def crop(slot: int) -> np.ndarray:
        return reader.random_crop(utterances[slot], generator(0, Purpose.CROP, 0, slot), samples)

    def bare() -> None:
        for _ in range(sizes.batches):
            for _ in pool.map(crop, range(rows)):
                pass

    cpu = []

    def ours() -> None:
        began = time.thread_time()
        _read(corpus, sizes.batch_speakers, samples, sizes.batches)
        cpu.append((time.thread_time() - began) / sizes.batches)

    with ThreadPoolExecutor(THREADS) as pool:
        took = alternate({"ours": ours, "bare": bare}, sizes.repeats)
    crops = sizes.batches * rows
    what = f"training batches of {rows:,} rows from raw shards"
    other, theirs = f"{THREADS} bare threads", crops / took["bare"]
    yield _more(what, crops / took["ours"], other, theirs, LEAST_OF_BARE)
    what = f"main thread's processor for a batch of {rows:,} rows"
    yield below(what, float(np.median(cpu)), "s", MOST_MAIN_THREAD_SECONDS)


def embedding(sizes: Sizes) -> Iterator[Row]:
    """Whole utterances of 2 to 10 s, in batches and one by one."""
    config = Config(encoder=encoder_of("ecapa_tdnn", sizes))
    encoder, rng = make_encoder(config.encoder), np.random.default_rng(0)
    frames = frame_count(config.crop_samples, config.features)
    initial = initial_variables(encoder, 0, frames, config.features.bands)
    variables = {
        "params": {"encoder": initial["params"]},
        "batch_stats": initial["batch_stats"],
    }
    embedder, rate = Embedder(config, make_mesh(1)), config.features.sample_rate
    waveforms = [
        rng.integers(-9000, 9000, int(rate * seconds)).astype(np.int16)
        for seconds in rng.uniform(2, 10, sizes.waveforms)
    ]
    embed = partial(embed_waveforms, embedder, variables, sample_rate=rate)
    functions = {
        "batched": lambda: list(embed(list(enumerate(waveforms)))),
        "alone": lambda: [list(embed([pair])) for pair in enumerate(waveforms)],
    }
    seconds = alternate(functions, sizes.repeats)
    what = f"embedding {len(waveforms)} utterances of 2 to 10 s in batches"
    yield faster(what, seconds["batched"], "one by one", seconds["alone"])


def error_rates(sizes: Sizes) -> Iterator[Row]:
    """EER and minDCF of a long list of trials."""
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    labels = np.arange(sizes.trials) % 2
    scores = rng.normal(labels, 1.0).astype(np.float32)

    def ours() -> None:
        rates = metrics.error_rates(labels, scores)
        metrics.eer_of(rates)
        for p_target in metrics.P_TARGETS:
            metrics.min_dcf_of(rates, p_target)

    functions = {"ours": ours, "theirs": lambda: roc_curve(labels, scores)}
    seconds = alternate(functions, sizes.repeats)
    what = f"EER and two minDCFs of {sizes.trials:,} trials"
    yield faster(what, seconds["ours"], "scikit-learn's roc_curve", seconds["theirs"])


def _corpus(speakers: int, utterances: int) -> Corpus:
    """Nothing but the arrays that a plan reads: recordings of two utterances each."""
    count = speakers * utterances
    nothing = Strings.of([])
    return Corpus(
        roots=(),
        speakers=np.arange(speakers).astype(str),
        names=nothing,
        files=nothing,
        root=np.zeros(count, np.uint8),
        speaker=np.repeat(np.arange(speakers, dtype=np.int32), utterances),
        recording=(np.arange(count) // 2).astype(np.int32),
        seconds=np.full(count, 8, np.float32),
        rate=np.full(count, 16_000, np.int32),
    )


def _reader(corpus: Corpus) -> Reader:
    return Reader(corpus, Config().features.sample_rate, THREADS)


def _read(corpus: Corpus, speakers: int, samples: int, steps: int) -> None:
    """So many random batches, by a pipeline that begins and ends here: one that went on would read
    ahead while something else is timed."""
    sampler = Sampler(kind="random", speakers=speakers)
    batches = training_batches(
        _reader(corpus), sampler, None, seed=0, samples=samples, first_step=0, end_step=steps
    )
    with closing(batches):
        for _ in batches:
            pass


def _features_of_whole(corpus: Corpus, samples: int, row: int) -> np.ndarray:
    """What loaders often do: decode all, compute all features, and keep a crop of them."""
    import librosa
    import soundfile

    features = Config().features
    waveform, _ = soundfile.read(corpus.path(row), dtype="float32")
    spectrum = librosa.stft(
        waveform, n_fft=features.window, hop_length=features.hop, window="hamming"
    )
    power = _mel_bands() @ (np.square(np.real(spectrum)) + np.square(np.imag(spectrum)))
    return np.log(power + 1e-10)[:, : frame_count(samples, features)]


@cache
def _mel_bands() -> np.ndarray:
    import librosa

    features = Config().features
    return librosa.filters.mel(
        sr=features.sample_rate, n_fft=features.window, n_mels=features.bands
    )


def _more(what: str, ours: float, other: str, theirs: float, target: float | None) -> Row:
    ratio = ours / theirs
    said, met = (f">= {target:g}", ratio >= target) if target else ("", None)
    return Row(what, ours, "crops/s", other, theirs, ratio, said, met)
