import threading
from concurrent.futures import CancelledError

import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.common.errors import UserError
from chns_jax.sampling.clusters import SpeakerClusters
from chns_jax.training.refresh import Refresh


def table_of(round, weight):
    """A table, and voiceprints."""
    return SpeakerClusters(np.full(2, round, np.int32), np.array([weight])), np.eye(2)


def never(variables, *, round):
    raise AssertionError("the table was begun beside training")


def test_a_table_that_was_begun_is_of_the_variables_as_they_were():
    variables, changed = {"w": jnp.ones(3)}, threading.Event()

    def beside(variables, *, round, stopped):
        assert changed.wait(10)
        return table_of(round, variables["w"])

    refresh = Refresh(never, beside)
    refresh.begin(variables, 2)
    variables["w"].delete()  # as donation does
    changed.set()
    np.testing.assert_array_equal(refresh.variables["w"], np.ones(3))
    table, voiceprints = refresh.table({}, 2)
    np.testing.assert_array_equal(voiceprints, np.eye(2))
    np.testing.assert_array_equal(table.cluster, 2)
    np.testing.assert_array_equal(table.centroids, np.ones((1, 3)))
    assert refresh.variables is None
    refresh.close()


def test_a_table_that_was_not_begun_is_made_when_it_is_wanted():
    refresh = Refresh(lambda variables, round: table_of(round, variables["w"]), never)
    table, _ = refresh.table({"w": np.ones(3)}, 3)
    np.testing.assert_array_equal(table.cluster, 3)
    np.testing.assert_array_equal(table.centroids, np.ones((1, 3)))
    refresh.close()


def test_a_closed_refresh_is_told_to_end():
    waiting = threading.Event()

    def beside(variables, *, round, stopped):
        waiting.set()
        assert stopped.wait(10)
        raise CancelledError

    refresh = Refresh(never, beside)
    refresh.begin({"w": np.ones(3)}, 0)
    assert waiting.wait(10)
    refresh.close()
    with pytest.raises(CancelledError):
        refresh.table({}, 0)


def test_what_goes_wrong_is_raised_where_the_table_is_wanted():
    def beside(variables, *, round, stopped):
        raise UserError("no utterance can be read")

    refresh = Refresh(never, beside)
    refresh.begin({"w": np.ones(3)}, 0)
    with pytest.raises(UserError, match="no utterance"):
        refresh.table({}, 0)
