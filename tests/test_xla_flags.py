import os

import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.devices import xla_flags
from chns_jax.devices.xla_flags import FLAG, WRONG, avoid_wrong_sums


def test_large_sums_are_right():
    """Sums that jaxlib 0.10.2 gets wrong on several threads."""
    i = np.arange(32_769, dtype=np.float32)
    x = np.stack([i, 0 * i, 0 * i], axis=1)
    of_rows = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
    np.testing.assert_array_equal(jax.jit(of_rows)(x), i**2)


def test_flags_of_the_user_are_kept(monkeypatch):
    for release, flags, expected in [
        (WRONG[0], "", f"{FLAG}="),
        (WRONG[0], "--xla_a=1", f"--xla_a=1 {FLAG}="),
        (WRONG[0], f"{FLAG}=b", f"{FLAG}=b"),
        ("0.9.0", "", ""),
    ]:
        monkeypatch.setattr(xla_flags, "version", lambda _, release=release: release)
        monkeypatch.setenv("XLA_FLAGS", flags)
        avoid_wrong_sums()
        assert os.environ["XLA_FLAGS"] == expected
