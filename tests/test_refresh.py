import threading
from concurrent.futures import CancelledError

import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax import refresh
from chns_jax.embedding import Encode
from chns_jax.errors import UserError
from chns_jax.sharding import make_mesh


def make_encode() -> Encode:
    def embed(variables, audio):
        return audio + variables["w"]

    return Encode(2, make_mesh(1), embed, embed_padded=None, batch_samples=0, shortest=0)


def test_the_table_is_made_of_the_variables_as_they_were():
    variables, changed = {"w": jnp.ones(3)}, threading.Event()

    def make(encode, variables):
        assert changed.wait(10)
        return encode(variables, np.zeros((2, 3), np.int16))

    begun = refresh.begin(make, make_encode(), variables)
    variables["w"].delete()  # as donation does
    changed.set()
    np.testing.assert_array_equal(begun.table.result(10), np.ones((2, 3)))
    np.testing.assert_array_equal(begun.variables["w"], np.ones(3))
    begun.close()


def test_a_closed_refresh_ends_before_its_next_batch():
    waiting, batches = threading.Event(), []

    def make(encode, variables):
        while True:
            batches.append(encode(variables, np.zeros((2, 3), np.int16)))
            waiting.set()

    begun = refresh.begin(make, make_encode(), {"w": np.ones(3)})
    assert waiting.wait(10)
    begun.close()
    with pytest.raises(CancelledError):
        begun.table.result(0)


def test_what_goes_wrong_is_raised_where_the_table_is_wanted():
    def make(encode, variables):
        raise UserError("no utterance can be read")

    with pytest.raises(UserError, match="no utterance"):
        refresh.begin(make, make_encode(), {"w": np.ones(3)}).table.result(10)
