import threading
import time
from contextlib import closing

import numpy as np
import pytest
import soundfile
from support import write_tone

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Noise, Sampler
from chns_jax.corpus.noise import find_noise
from chns_jax.corpus.open import open_corpus
from chns_jax.corpus.reader import Reader
from chns_jax.sampling import pipeline
from chns_jax.sampling.pipeline import read_batches, training_batches, voiceprint_batches
from chns_jax.sampling.plan import plan

SAMPLER = Sampler(speakers=4, hard_ratio=0)
SAMPLES = 4000


@pytest.fixture
def reader(tones, tmp_path):
    return Reader(open_corpus(tones, tmp_path), 16_000, threads=3)


def batches(reader, first, end, threads=3):
    made = training_batches(
        Reader(reader.corpus, 16_000, threads), SAMPLER, None, seed=5, samples=SAMPLES,
        first_step=first, end_step=end,
    )  # fmt: skip
    with closing(made):
        return [batch["audio"] for batch in made]


def test_a_batch_is_what_the_plan_says(reader):
    (batch,) = batches(reader, 3, 4)
    assert batch.shape == (8, SAMPLES) and batch.dtype == np.int16
    for slot, utterance in enumerate(plan(5, 3, SAMPLER, reader.corpus, None).utterances):
        whole, _ = soundfile.read(reader.corpus.path(utterance), dtype="int16")
        position = generator(5, Purpose.CROP, 3, slot).random()
        start = int(position * (len(whole) - SAMPLES + 1))
        np.testing.assert_array_equal(batch[slot], whole[start : start + SAMPLES])


def test_a_batch_is_the_same_wherever_a_run_starts_and_however_many_threads_read(reader):
    from_start = batches(reader, 0, 6)
    assert len(from_start) == 6
    np.testing.assert_array_equal(from_start[4:], batches(reader, 4, 6))
    np.testing.assert_array_equal(from_start, batches(reader, 0, 6, threads=1))


def test_labels_are_the_speakers_and_noise_comes_along(reader, tmp_path):
    write_tone(tmp_path / "noise" / "hum.wav", 2.0, hertz=50)
    noise = find_noise(Noise(probability=0.5, root=str(tmp_path / "noise")), 16_000)

    def made(first, end, noise):
        batches = training_batches(
            reader, SAMPLER, None, seed=5, samples=SAMPLES, first_step=first, end_step=end,
            noise=noise,
        )  # fmt: skip
        with closing(batches):
            return list(batches)

    plain, noisy = made(0, 6, None), made(0, 6, noise)
    for step, (one, other) in enumerate(zip(plain, noisy, strict=True)):
        np.testing.assert_array_equal(
            one["labels"], plan(5, step, SAMPLER, reader.corpus, None).labels
        )
        np.testing.assert_array_equal(one["audio"], other["audio"])
        assert one["labels"].dtype == np.int32 and set(one) == {"audio", "labels"}
        heard = np.abs(other["noise"]).max(axis=1) > 0
        np.testing.assert_array_equal(heard, np.isfinite(other["snr"]))
    assert 10 < sum(np.isfinite(batch["snr"]).sum() for batch in noisy) < 38
    np.testing.assert_array_equal(noisy[4]["noise"], made(4, 5, noise)[0]["noise"])


def test_voiceprint_crops_are_of_different_utterances(reader):
    def crops(round):
        made = voiceprint_batches(reader, per_speaker=6, seed=0, round=round, samples=800, rows=10)
        with closing(made):
            return np.concatenate(list(made))

    first = crops(1)
    assert first.shape == (12 * 6, 800)
    np.testing.assert_array_equal(first, crops(1))
    assert (first != crops(2)).any()
    wholes = {row: soundfile.read(reader.corpus.path(row), dtype="int16")[0] for row in range(4)}
    sources = []
    for crop in first[:6]:
        starts = {row: np.flatnonzero(w[: len(w) - 799] == crop[0]) for row, w in wholes.items()}
        sources += [
            r for r, s in starts.items() if any((wholes[r][i : i + 800] == crop).all() for i in s)
        ]
    assert sorted(sources[:4]) == [0, 1, 2, 3]  # each once
    assert sources[4:] == sources[:2]  # then again


def broken_corpus(root, broken):
    for speaker in "abcd":
        for utterance in range(3):
            write_tone(root / speaker / f"{utterance}.wav", 0.5, hertz=100)
    for name in broken:
        soundfile.write(root / name, np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    return root


def test_a_broken_file_is_replaced_by_another_of_its_speaker(tmp_path):
    corpus = open_corpus(broken_corpus(tmp_path / "root", ["a/0.wav", "c/2.wav"]), tmp_path)
    reader = Reader(corpus, 16_000, threads=2)
    made = training_batches(reader, SAMPLER, None, seed=0, samples=800, first_step=0, end_step=20)
    with closing(made):
        crops = np.concatenate([batch["audio"] for batch in made])
    assert len(crops) == 160 and np.abs(crops).max(axis=1).min() > 0
    root = tmp_path / "root"
    assert set(reader.skipped) == {str(root / "a/0.wav"), str(root / "c/2.wav")}
    assert all("holds NaN" in reason for reason in reader.skipped.values())


@pytest.mark.parametrize("count", [24, 27, 30])
def test_hosts_read_a_part_each_of_every_batch(reader, count):
    """Whatever rows their devices hold, and however many are left in the last batch."""
    parts = [np.array([0, 1, 5]), np.array([2, 3, 4]), np.array([6, 7])]
    read = []
    for held in parts:
        with closing(read_batches(reader, np.int64, count, 8, held)) as made:
            read.append([batch.tolist() for batch in made])
    for part, held in zip(read, parts, strict=True):
        expected = [
            [i for i in range(b, min(b + 8, count)) if i - b in held] for b in (0, 8, 16, 24)
        ]
        assert part == [batch for batch in expected if batch]
    assert sorted(sum(sum(read, []), [])) == list(range(count))


def test_the_rows_of_a_host_are_those_of_the_whole_batch(reader):
    held = np.array([1, 2, 6])

    def made(**keys):
        batches = training_batches(
            reader, SAMPLER, None, seed=5, samples=SAMPLES, first_step=2, end_step=4, **keys
        )
        with closing(batches):
            return list(batches)

    for whole, part in zip(made(), made(held=held), strict=True):
        assert part.keys() == whole.keys()
        for key in whole:
            np.testing.assert_array_equal(part[key], whole[key][held])


def test_a_speaker_without_a_readable_file_is_an_error(tmp_path):
    broken = [f"b/{i}.wav" for i in range(3)]
    reader = Reader(
        open_corpus(broken_corpus(tmp_path / "root", broken), tmp_path), 16_000, threads=2
    )
    made = training_batches(reader, SAMPLER, None, seed=0, samples=800, first_step=0, end_step=2)
    with closing(made), pytest.raises(UserError, match="no utterance of speaker b can be read"):
        list(made)


@pytest.mark.parametrize("threads", [1, 3, 40])
@pytest.mark.parametrize("count, rows", [(1, 1), (7, 8), (100, 33), (300, 150), (297, 99)])
def test_rows_come_in_order_whatever_the_number_of_threads(reader, threads, count, rows):
    def read(i):
        time.sleep(0.001 * (i % 3 == 0))  # so that later rows are read before
        return {"audio": np.full(5, i, np.int16), "label": np.int32(i)}

    other = Reader(reader.corpus, 16_000, threads)
    with closing(read_batches(other, read, count, rows)) as made:
        batches = list(made)
    expected = np.split(np.arange(count), range(rows, count, rows))
    assert [len(batch["label"]) for batch in batches] == [len(part) for part in expected]
    for batch, part in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch["label"], part)
        np.testing.assert_array_equal(batch["audio"], np.repeat(part[:, None], 5, 1))


def test_grain_is_given_a_few_dozen_elements_a_batch():
    """It looks at each of those ahead whenever it gives one."""
    for threads in (1, 8, 32):
        for rows in (1, 8, 64, 650, 1300, 5000):
            size = pipeline._slice_rows(rows, threads)
            slices = -(-rows // size)
            assert min(2 * rows, threads) <= 2 * slices + 1 and slices <= max(32, threads)


def test_what_a_read_raises_is_raised_where_its_batch_is_asked_for(reader):
    def read(i):
        if i >= 50:
            raise UserError(f"row {i} is broken")
        return np.int64(i)

    with closing(read_batches(reader, read, 90, 30)) as made:
        np.testing.assert_array_equal(next(made), np.arange(30))
        with pytest.raises(UserError, match="row 50 is broken"):
            next(made)
        assert next(made, None) is None


def threads_of_grain():
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


def wait_until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_than_two_batches_are_read_ahead_and_closing_ends_the_threads(reader):
    wait_until(lambda: not threads_of_grain())
    begun = []

    def read(i):
        begun.append(i)
        return np.zeros(10, np.int16)

    made = read_batches(reader, read, 40_000, 400)
    batch = next(made)
    assert batch.shape == (400, 10) and threads_of_grain()
    wait_until(lambda: len(begun) == 1200)  # the batch that is given, and two
    time.sleep(0.05)
    assert len(begun) == 1200
    made.close()
    wait_until(lambda: not threads_of_grain())


def test_closing_leaves_the_rows_of_a_slice_that_were_not_begun(reader):
    wait_until(lambda: not threads_of_grain())
    begun, go_on = [], threading.Event()

    def read(i):
        if i >= 400:
            begun.append(i)
            assert go_on.wait(20)
        return np.int64(i)

    made = read_batches(reader, read, 40_000, 400)
    next(made)
    wait_until(lambda: len(begun) == reader.threads)
    made.close()
    go_on.set()
    wait_until(lambda: not threads_of_grain())
    assert len(begun) == reader.threads


def test_a_batch_that_is_kept_stays_as_it_is(reader):
    """Memory is used again, but not that of batches which somebody has."""
    made = read_batches(reader, lambda i: np.full(100, i, np.int32), 2000, 20)
    with closing(made):
        kept = [batch[3:, :7] for batch in made]
    for b, rows in enumerate(kept):
        np.testing.assert_array_equal(rows[:, 0], np.arange(20 * b + 3, 20 * b + 20))
        assert (rows == rows[:, :1]).all()
    addresses = set()
    with closing(read_batches(reader, lambda i: np.full(100, i, np.int32), 2000, 20)) as made:
        for batch in made:
            addresses.add(batch.__array_interface__["data"][0])
    assert len(addresses) <= 5
