import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chns_jax.embedding.buckets import bucket_lengths, cut, pad, segments


def ramp(samples):
    return np.arange(1, samples + 1).astype(np.int16)


def test_buckets_are_fewer_than_a_dozen_and_waste_little():
    lengths = np.array(bucket_lengths(16_000))
    assert len(lengths) < 12 and lengths[-1] == 60 * 16_000 and lengths[0] < 2 * 16_000
    assert (lengths[1:] / lengths[:-1] < 1.42).all() and (np.diff(lengths) > 0).all()


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 100), max_size=60),
    st.integers(1, 400),
    st.sampled_from([1, 2, 8]),
)
def test_every_waveform_comes_once_in_a_bucket_of_one_shape(sizes, samples, multiple):
    lengths = [10, 25, 60, 100]
    waveforms = [ramp(size) for size in sizes]
    seen, shapes = [], set()
    for keys, audio, kept in pad(enumerate(waveforms), lengths, samples=samples, multiple=multiple):
        assert 1 <= len(keys) <= len(audio) == len(kept) and len(audio) % multiple == 0
        assert audio.dtype == np.int16 and audio.size <= max(samples, multiple * audio.shape[1])
        shapes.add(audio.shape)
        seen += keys
        for key, row, count in zip(keys, audio, kept, strict=False):
            np.testing.assert_array_equal(row[:count], waveforms[key])
            assert not row[count:].any()
            assert audio.shape[1] == min(length for length in lengths if length >= count)
        assert set(kept[len(keys) :]) <= set(kept[: len(keys)])  # no row is empty
    assert sorted(seen) == list(range(len(sizes)))
    assert len({length for _, length in shapes}) == len(shapes)  # one shape a bucket


def test_a_batch_is_there_as_soon_as_it_is_full():
    def waveforms():
        for key in range(5):
            yield key, ramp(10)
            asked.append(key)

    asked: list = []
    first = next(pad(waveforms(), [10, 100], samples=30))
    assert first.keys == [0, 1, 2] and asked == [0, 1]


@given(st.integers(1, 1000))
def test_pieces_are_the_waveform(samples):
    pieces = cut(ramp(samples), shortest=20, longest=90)
    if samples < 20:
        np.testing.assert_array_equal(pieces[0], np.resize(ramp(samples), 20))
        return
    np.testing.assert_array_equal(np.concatenate(pieces), ramp(samples))
    sizes = [len(piece) for piece in pieces]
    assert len(pieces) == -(-samples // 90) and max(sizes) - min(sizes) <= 1 and max(sizes) <= 90


@pytest.mark.parametrize("samples, starts", [(50, [0]), (51, [0, 1]), (150, [0, 50, 100])])
def test_segments_cover_the_waveform(samples, starts):
    made = segments(ramp(samples), 50)
    assert [int(segment[0]) - 1 for segment in made] == starts
    assert made[-1][-1] == samples and all(len(segment) == 50 for segment in made)


def test_a_waveform_shorter_than_a_segment_is_repeated():
    np.testing.assert_array_equal(segments(ramp(3), 7), [[1, 2, 3, 1, 2, 3, 1]])
