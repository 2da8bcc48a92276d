import tempfile
from typing import Literal

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chns_jax import config as configs
from chns_jax.common import plain_yaml
from chns_jax.common.errors import UserError
from chns_jax.common.values import PositiveFloat, PositiveInt, read_value
from chns_jax.config import Config

SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=12)
SCALARS |= st.floats(allow_nan=False)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
WORDS = st.from_regex(r"[-+]?[0-9._eExob:infa]{1,6}", fullmatch=True) | st.sampled_from(
    ["true", "yes", "on", "null", "~", "2024-01-01", "1_000", "010", "1e3", ".inf", "0x10", "1:30"]
)
TYPES = st.sampled_from(
    [int, float, bool, str, PositiveInt, PositiveFloat | None, Literal["a", "b"],
     PositiveInt | Literal["never"], tuple[int, ...], tuple[float, float], str | None]
)  # fmt: skip
EXAMPLE = configs.to_yaml(Config()).encode()


@given(TREES)
@settings(max_examples=40)
def test_what_yaml_writes_is_read_again(tree):
    assert plain_yaml.load(yaml.safe_dump(tree)) == tree
    flow = yaml.safe_dump(tree, default_flow_style=True)
    assert plain_yaml.load(flow) == tree


@given(WORDS, st.sampled_from([int, float, bool, PositiveInt | Literal["never"]]))
@settings(max_examples=60)
def test_a_word_means_the_same_in_a_file_and_on_a_command_line(word, annotation):
    try:
        written = plain_yaml.load(word)
    except yaml.YAMLError:
        written = None
    assume(written is not None and not isinstance(written, dict))

    def read(value):
        try:
            found = read_value("x", annotation, value)
            return type(found), str(found)
        except UserError:
            return None

    assert read(written) == read(word)


@given(TYPES, st.text(max_size=30) | WORDS | TREES)
@settings(max_examples=60)
def test_a_value_is_of_its_type_or_a_mistake(annotation, value):
    try:
        read = read_value("x", annotation, value)
    except UserError as error:
        assert str(error).startswith("x ")
    else:
        assert read_value("x", annotation, read) == read or read != read


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.integers(1, 255)), max_size=4))
@settings(max_examples=25)
def test_flipped_bytes_of_a_config_are_a_config_or_a_mistake(flips):
    data = bytearray(EXAMPLE)
    for place, bits in flips:
        data[place] ^= bits
    _read(bytes(data))


@given(
    st.binary(max_size=60) | st.text("about:[]{}&*!|>'\"%@`#-? \n\t01", max_size=60).map(str.encode)
)
@settings(max_examples=50)
def test_any_bytes_are_a_config_or_a_mistake(data):
    _read(data)


def _read(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            assert isinstance(configs.load(["--config", file.name]), Config)
        except UserError:
            pass


def test_depth_is_counted_before_it_is_walked():
    assert plain_yaml.load("[" * 20 + "]" * 20)
    with pytest.raises(plain_yaml.Refused, match="20 lists or sections"):
        plain_yaml.load("[" * 21 + "]" * 21)
