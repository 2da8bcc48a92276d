import os
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.devices import xla_flags
from chns_jax.devices.xla_flags import FLAG, WRONG, avoid_wrong_sums


def test_large_sums_are_right():
    """Sums that jaxlib 0.10.2 gets wrong on several threads."""
    i = np.arange(32_769, dtype=np.float32)
    x = np.stack([i, 0 * i, 0 * i], axis=1)
    of_rows = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
    np.testing.assert_array_equal(jax.jit(of_rows)(x), i**2)


@pytest.fixture
def machine(monkeypatch):
    """machine(jaxlib="0.10.2", platforms=None, **installed): a machine with these releases."""

    def make(*, jaxlib=WRONG[0], platforms=None, flags="", **installed):
        releases = {name.replace("_", "-"): release for name, release in installed.items()}
        releases["jaxlib"] = jaxlib
        points = [
            SimpleNamespace(name=name, dist=SimpleNamespace(name=name, version=release))
            for name, release in releases.items()
            if name not in ("jaxlib", "libtpu")
        ]
        monkeypatch.setattr(xla_flags, "version", releases.__getitem__)
        monkeypatch.setattr(xla_flags, "entry_points", lambda group: points)
        monkeypatch.setattr(xla_flags, "find_spec", lambda name: releases.get(name))
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if platforms is not None:
            monkeypatch.setenv("JAX_PLATFORMS", platforms)

    return make


@pytest.mark.parametrize(
    "release, flags, expected",
    [
        (WRONG[0], "", f"{FLAG}="),
        (WRONG[0], "--xla_a=1", f"--xla_a=1 {FLAG}="),
        (WRONG[0], f"{FLAG}=b", f"{FLAG}=b"),
        ("0.9.0", "", ""),
    ],
)
def test_flags_of_the_user_are_kept(machine, release, flags, expected):
    machine(jaxlib=release, flags=flags)
    avoid_wrong_sums()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    "installed, platforms, is_set",
    [
        ({}, None, True),
        ({}, "", True),
        ({"libtpu": "0.0.1"}, None, False),
        ({"libtpu": "0.0.1"}, "tpu", False),
        ({"libtpu": "0.0.1"}, "tpu,cpu", False),
        ({"libtpu": "0.0.1"}, "cpu", True),
        ({"libtpu": "0.0.42.1"}, None, True),
        ({"jax_cuda12_pjrt": "0.10.1"}, None, False),
        ({"jax_cuda12_pjrt": "0.10.1"}, "cpu", True),
        ({"jax_cuda12_pjrt": "0.10.2"}, None, True),
        ({"jax_cuda12_pjrt": "0.10.2", "libtpu": "0.0.1"}, None, False),
        ({"someones_plugin": "0.10.2"}, None, False),
    ],
)
def test_what_does_not_know_the_flag_does_not_read_it(machine, installed, platforms, is_set):
    machine(platforms=platforms, **installed)
    avoid_wrong_sums()
    assert (FLAG in os.environ["XLA_FLAGS"]) == is_set


def test_a_libtpu_of_ones_own_does_not_read_the_flag(machine, monkeypatch):
    machine()
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/somewhere/libtpu.so")
    avoid_wrong_sums()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("name", ["jax_plugins", "libtpu"])
def test_a_module_of_unknown_release_does_not_read_the_flag(machine, monkeypatch, name):
    machine()
    monkeypatch.setattr(xla_flags, "find_spec", lambda module: module == name or None)
    releases = {"jaxlib": WRONG[0]}

    def version(name):
        if name not in releases:
            raise PackageNotFoundError(name)
        return releases[name]

    monkeypatch.setattr(xla_flags, "version", version)
    avoid_wrong_sums()
    assert os.environ["XLA_FLAGS"] == ""
