"""When rounds begin: a round is the steps between two refreshes of the clusters."""

from __future__ import annotations

import math

from chns_jax.config import Sampler, Training


def length(sampler: Sampler, training: Training, utterances: int) -> int | None:
    """Steps in a round, None for a round that never ends; `utterances` are those of the corpus."""
    if sampler.refresh_every == "never":
        return None
    if sampler.refresh_unit == "steps":
        return sampler.refresh_every
    epoch_utterances = training.epoch_utterances or utterances
    epoch_steps = math.ceil(epoch_utterances / (2 * sampler.speakers))
    return sampler.refresh_every * epoch_steps


def begins(step: int, sampler: Sampler, length: int | None) -> bool:
    """Whether a new table is made or read before `step`, counted from 0."""
    if sampler.kind != "chns" or step < sampler.start_step:
        return False
    since = step - sampler.start_step
    return since == 0 or (length is not None and since % length == 0)


def end(step: int, sampler: Sampler, length: int | None, steps: int) -> int:
    """The first step after `step` that is not of the same round, `steps` at the latest."""
    if sampler.kind != "chns":
        return steps
    if step < sampler.start_step:
        return min(sampler.start_step, steps)
    if length is None:
        return steps
    return min(step + length - (step - sampler.start_step) % length, steps)


def refresh(step: int, sampler: Sampler, length: int | None, steps: int) -> int | None:
    """The step, `step` or later, before which the refresh for the next round begins beside
    training; None where none does."""
    following = end(step, sampler, length, steps)
    from_file = sampler.table is not None and following == sampler.start_step
    if not sampler.refresh_ahead or following == steps or from_file:
        return None
    return max(step, following - sampler.refresh_ahead)
