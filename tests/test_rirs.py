import numpy as np
import pytest
import soundfile

from chns_jax.common.errors import UserError
from chns_jax.config import Reverberation
from chns_jax.corpus.rirs import SPEED_OF_SOUND, image_sources, make_rirs

RATE = 16_000
ROOM = np.array([5.0, 4.0, 3.0])
SOURCE, MICROPHONE = np.array([1.0, 1.5, 1.2]), np.array([3.5, 2.0, 1.6])


def test_the_direct_sound_is_all_that_walls_without_reflection_leave():
    response = image_sources(ROOM, SOURCE, MICROPHONE, 0.0, 4000, RATE)
    distance = np.linalg.norm(SOURCE - MICROPHONE)
    arrival = distance / SPEED_OF_SOUND * RATE
    assert set(np.flatnonzero(response)) == {int(arrival), int(arrival) + 1}
    assert response.sum() == pytest.approx(1 / (4 * np.pi * distance))


def test_images_are_those_of_a_plain_reflection_from_wall_to_wall():
    """All images up to two reflections, mirrored one wall at a time."""
    images = {tuple(SOURCE): 0}
    for bounces in (1, 2):
        for place in [place for place, n in images.items() if n == bounces - 1]:
            for axis in range(3):
                for wall in (0.0, ROOM[axis]):
                    mirrored = list(place)
                    mirrored[axis] = 2 * wall - place[axis]
                    images.setdefault(tuple(np.round(mirrored, 9)), bounces)
    assert len(images) == 1 + 6 + 18
    expected, samples = np.zeros(4001), 4000
    for place, bounces in images.items():
        distance = np.linalg.norm(np.array(place) - MICROPHONE)
        arrival = distance / SPEED_OF_SOUND * RATE
        if arrival < samples:
            early = int(arrival)
            strength = 1e-3**bounces / (4 * np.pi * distance)
            expected[early] += strength * (1 - (arrival - early))
            expected[early + 1] += strength * (arrival - early)
    mine = image_sources(ROOM, SOURCE, MICROPHONE, 1e-3, samples, RATE)
    # What is reflected three times and more is a millionth of what is seen here.
    np.testing.assert_allclose(mine, expected[:samples], atol=1e-9)


def decay_seconds(response):
    """RT60, of the fall from -5 to -25 dB of the energy that is still to come."""
    left = np.cumsum(np.square(response)[::-1])[::-1]
    decibel = 10 * np.log10(left / left[0] + 1e-12)
    return 3 * (np.argmax(decibel < -25) - np.argmax(decibel < -5)) / RATE


def test_rooms_decay_within_reason_and_are_a_function_of_the_seed():
    options = Reverberation(probability=1.0, responses=30, seconds=0.8)
    rirs = make_rirs(options, RATE, seed=1)
    assert rirs.shape == (30, 12_800) and rirs.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rirs, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.abs(rirs).argmax(axis=1), 0)  # the direct sound
    decay = np.array([decay_seconds(response) for response in rirs])
    assert 0.15 < np.median(decay) < 0.9 and decay.std() > 0.05
    np.testing.assert_array_equal(rirs, make_rirs(options, RATE, seed=1))
    assert (rirs != make_rirs(options, RATE, seed=2)).any()


def test_a_folder_of_responses(tmp_path):
    for i in range(5):
        response = np.zeros(1000)
        response[[100 * i, 100 * i + 40]] = 0.8, 0.4
        (tmp_path / "hall").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "hall" / f"{i}.wav", response, RATE)
    options = Reverberation(probability=0.5, root=str(tmp_path), responses=3, seconds=0.01)
    rirs = make_rirs(options, RATE, seed=0)
    assert rirs.shape == (3, 160)
    for response in rirs:
        assert set(np.flatnonzero(response)) == {0, 40}
        assert response[40] / response[0] == pytest.approx(0.5, abs=1e-3)
    assert make_rirs(Reverberation(root=str(tmp_path)), RATE, seed=0) is None
    soundfile.write(tmp_path / "hall" / "8.wav", np.zeros(1000), RATE)
    with pytest.raises(UserError, match="8.wav is silent: leave it out of augment.reverberation"):
        make_rirs(Reverberation(probability=1.0, root=str(tmp_path)), RATE, seed=0)
    (tmp_path / "hall" / "8.wav").unlink()
    (tmp_path / "hall" / "9.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="9.wav"):
        make_rirs(Reverberation(probability=1.0, root=str(tmp_path)), RATE, seed=0)
