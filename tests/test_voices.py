"""The built-in speakers: drawn once for all, and alike by degrees."""

import numpy as np
import pytest

from chns_jax.corpus.voices import GROUPS, TRAITS, draw_voice, families_of


def traits(voice) -> np.ndarray:
    """(131,) all but the pitch and the tract, in standard deviations."""
    values = []
    for name, (middle, spread, scale, _) in TRAITS.items():
        if name not in ("f0", "tract"):
            value = np.ravel(getattr(voice, name))
            moved = np.log(value / middle) if scale == "log" else value - middle
            values.append(moved / spread)
    return np.concatenate(values)


@pytest.fixture(scope="module")
def drawn():
    return [draw_voice(0, speaker, families=12) for speaker in range(240)]


def test_a_voice_is_a_function_of_seed_and_speaker():
    voice, again, other, of_seed = (draw_voice(*key) for key in ((3, 1), (3, 1), (3, 2), (4, 1)))
    np.testing.assert_array_equal(traits(voice), traits(again))
    assert (voice.f0_hz, voice.family) == (again.f0_hz, again.family)
    for stranger in (other, of_seed):
        assert np.all(traits(voice) != traits(stranger))
    assert families_of(3, ["v00001", "v00002"]).tolist() == [voice.family, other.family]


def test_traits_have_the_spread_of_the_table():
    of_all = np.array([traits(draw_voice(1, speaker, families=400)) for speaker in range(800)])
    own = of_all - np.array([of_all[i::6].mean(axis=0) for i in range(6)]).mean(axis=0)
    assert 0.8 < np.sqrt(np.mean(own**2)) < 1.1 and np.abs(of_all).max() <= 2.5 + 1e-9
    assert np.isfinite(of_all).all()


def test_similarity_is_graded(drawn):
    """Family, group and strangers: distances of traits go as the root of what is not shared."""
    assert {voice.family for voice in drawn} == set(range(12))
    at = np.array([traits(voice) for voice in drawn])
    family = np.array([voice.family for voice in drawn])
    group = np.array([f"{voice.gender}{voice.age}" for voice in drawn])
    distance = np.linalg.norm(at[:, None] - at[None], axis=-1)
    one_family = family[:, None] == family
    one_group = (group[:, None] == group) & ~one_family
    strangers = (group[:, None] != group).nonzero()
    np.fill_diagonal(one_family, False)
    of_family, of_group = distance[one_family].mean(), distance[one_group].mean()
    assert of_family < 0.85 * of_group and of_group < 0.97 * distance[strangers].mean()
    assert distance[one_family].min() > 0.5 * of_family  # nobody is cloned


def test_traits_of_one_family_are_independent_of_each_other(drawn):
    own = np.concatenate(
        [
            (of_family := np.array([traits(v) for v in drawn if v.family == family]))
            - of_family.mean(axis=0)
            for family in range(12)
        ]
    )
    correlation = np.corrcoef(own.T)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < 0.35  # of 8,500 pairs by chance, 240 voices


def test_sexes_and_ages_differ_as_in_life():
    voices = [draw_voice(0, speaker) for speaker in range(600)]
    middle = {
        group[:2]: np.median(
            [(v.f0_hz, v.tract_cm) for v in voices if (v.gender, v.age) == group[:2]], axis=0
        )
        for group in GROUPS
    }
    assert 1.4 < middle["f", "adult"][0] / middle["m", "adult"][0] < 2.1
    assert 0.78 < middle["f", "adult"][1] / middle["m", "adult"][1] < 0.92
    assert middle["m", "child"][0] > 1.5 * middle["m", "adult"][0]
    assert middle["f", "old"][0] < middle["f", "adult"][0]
    assert 0.4 < np.mean([voice.gender == "f" for voice in voices]) < 0.6


def test_bad_arguments_are_refused():
    for arguments in [(0, 0, 0), (-1, 0), (0, -1)]:
        with pytest.raises(ValueError):
            draw_voice(*arguments)
