import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from chns_jax.config import Sampler, Training
from chns_jax.sampling import rounds


@given(
    st.sampled_from(["chns", "random"]), st.integers(0, 30), st.integers(1, 20) | st.just("never")
)
def test_rounds_cover_all_steps_and_end_where_the_next_begins(kind, start, every):
    steps = 60
    sampler = Sampler(kind=kind, start_step=start, refresh_every=every)
    length = rounds.length(sampler, Training(), 1000)
    expected = set()
    if kind == "chns":
        expected = {start} if every == "never" else set(range(start, steps, every))
    assert {s for s in range(steps) if rounds.begins(s, sampler, length)} == expected
    for step in range(steps):
        end = rounds.end(step, sampler, length, steps)
        assert step < end <= steps
        assert not any(rounds.begins(s, sampler, length) for s in range(step + 1, end))
        assert end == steps or rounds.begins(end, sampler, length)


@given(st.integers(0, 30), st.integers(1, 20), st.integers(1, 30), st.none() | st.just("t.npz"))
def test_a_refresh_begins_so_many_steps_before_its_round(start, every, ahead, table):
    steps = 60
    sampler = Sampler(start_step=start, refresh_every=every, refresh_ahead=ahead, table=table)
    length = rounds.length(sampler, Training(), 1000)
    for step in range(steps):
        following = rounds.end(step, sampler, length, steps)
        at = rounds.refresh(step, sampler, length, steps)
        if following == steps or (table and following == start):
            assert at is None
        else:
            assert at == max(step, following - ahead)
    stopping = dataclasses.replace(sampler, refresh_ahead=0)
    assert rounds.refresh(0, stopping, length, steps) is None


def test_a_round_may_be_counted_in_epochs():
    sampler = Sampler(speakers=50, refresh_every=2, refresh_unit="epochs")
    assert rounds.length(sampler, Training(), 1000) == 20
    assert rounds.length(sampler, Training(epoch_utterances=5000), 1000) == 100
    assert rounds.length(sampler, Training(), 10) == 2


def test_an_epoch_is_rounded_up_to_steps():
    sampler = Sampler(speakers=650, refresh_every=5, refresh_unit="epochs")
    assert rounds.length(sampler, Training(epoch_utterances=1_000_000), 1) == 5 * 770
