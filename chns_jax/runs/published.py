"""A published model: a folder of a config, weights and a calibration that anybody may use.

It is made of a run, whose checkpoints hold all that training needs, and holds no more than an
encoder at work does: no class of a loss, no optimiser, no name of a file. One of them comes with
the package: the model in the box.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from chns_jax import config as configs
from chns_jax.common import plain_yaml
from chns_jax.common.console import say
from chns_jax.common.errors import UserError
from chns_jax.common.reading import check_readable
from chns_jax.config import WEIGHTS, Config

if TYPE_CHECKING:
    import jax

    from chns_jax.runs.state import Saved

BOX = "box"  # the name of the model in the box
BOX_FOLDER = Path(__file__).parents[1] / BOX
CARD, ONNX = "README.md", "speaker.onnx"
METADATA = "chns_jax"  # under this name in the weights, as JSON
DTYPES = ("F32", "F16")  # safetensors' names
LARGEST_HEADER = 1 << 20  # bytes; those of ReDimNet2-B3 take a tenth
LARGEST_CARD = 1 << 20
LAST_STEP = 2**31 - 1


class Metadata(NamedTuple):
    """What the weights say of themselves."""

    step: int  # updates that made them
    sha256: str  # of the tensors
    config: str  # features and encoder, in YAML


class Texts(NamedTuple):
    """What people read of a published model, as it stands."""

    config: str  # with how it was trained, of which little is used
    card: str


def find_model(given: str | None) -> str:
    """The folder of the model that a command line names: a run, or a published model.

    Where it names none, it is the model in the box, and that is said; "box" is that model too,
    unless there is a folder of that name. Raises UserError when the folder holds no model.
    """
    is_box = given is None or (given == BOX and not os.path.isdir(given))
    folder = str(BOX_FOLDER) if is_box else str(given)
    configs.read_run(folder)
    if given is None:
        trained_on = front_matter(BOX_FOLDER)["trained_on"]
        say(f"no --model: the model in the box, trained on {trained_on}")
    return folder


def for_publishing(variables: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The encoder's variables on the host, float32, as those written with `dtype` are read.

    Only parameters become float16. Raises UserError for one that float16 does not hold.
    """
    import jax
    import numpy as np

    from chns_jax.runs.state import without_loss

    kept = jax.device_get(without_loss(variables))
    kept = jax.tree.map(lambda array: np.asarray(array, np.float32), kept)
    if dtype == "float16":
        largest = float(np.finfo(np.float16).max)
        if any(np.abs(array).max(initial=0) > largest for array in jax.tree.leaves(kept["params"])):
            raise UserError(
                f"a parameter exceeds {largest:g}, the most that float16 holds: keep float32"
            )
        rounded = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), kept["params"])
        kept["params"] = rounded
    return kept


def write(
    folder: Path,
    config: Config,
    step: int,
    variables: dict[str, Any],
    *,
    dtype: str = "float32",
    text: str | None = None,
) -> None:
    """Put the config and the weights, as of `for_publishing`, into a folder; `text` is the config
    as it stands already."""
    import numpy as np
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    from chns_jax.runs.state import digest

    tensors = {
        name: np.ascontiguousarray(
            value, np.dtype(dtype) if name.startswith("params/") else np.float32
        )
        for name, value in flatten_dict(variables, sep="/").items()
    }
    about = Metadata(step, digest(tensors), _of_encoder(config))
    metadata = {METADATA: json.dumps(about._asdict())}
    (folder / WEIGHTS).write_bytes(save(tensors, metadata))
    text = text or configs.to_published_yaml(config)
    (folder / configs.RUN_CONFIG).write_text(text, encoding="utf-8")


def read_metadata(folder: Path) -> Metadata:
    """What the weights of a published model say of themselves. Raises UserError when they are
    damaged."""
    path = check_readable(folder / WEIGHTS, "the weights of a published model")
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header > min(LARGEST_HEADER, path.stat().st_size - 8):
            raise _damaged(path, "is no file of safetensors, or cut off")
        try:
            written = json.loads(file.read(header))["__metadata__"][METADATA]
            about = Metadata(**json.loads(written))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(path, "does not say what it holds") from error
    if type(about.step) is not int or not 0 <= about.step <= LAST_STEP:
        raise _damaged(path, "does not say what it holds")
    if not isinstance(about.config, str):
        raise _damaged(path, "does not say what it holds")
    return about


def read(folder: Path, config: Config, sharding: jax.sharding.Sharding) -> Saved:
    """The variables of a published model whose config is `config`, float32.

    Nothing is allocated before names, types and sizes are those of the config's encoder. Raises
    UserError when they are not, or the weights are damaged.
    """
    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict
    from safetensors import SafetensorError, safe_open

    from chns_jax.runs.state import Saved, digest

    about, path = read_metadata(folder), folder / WEIGHTS
    configs.check_unedited(config, about.config, folder, ("features", "encoder"))
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            _check_size(path, config, len(names))
            shapes = expected_shapes(config)
            for name in sorted({*names, *shapes}):
                if name not in slices or name not in shapes:
                    raise _damaged(path, f"{'has' if name in slices else 'lacks'} {name}")
                shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
                if shape != shapes[name] or dtype not in DTYPES:
                    raise _damaged(
                        path, f"holds {name} as {dtype} of shape {shape}, not {shapes[name]}"
                    )
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise _damaged(path, f"is no file of safetensors, or cut off ({error})") from error
    if digest(tensors) != about.sha256:
        raise _damaged(path, "is not what was written")
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise _damaged(path, "holds numbers that are not finite")
    flat = {name: array.astype(np.float32) for name, array in tensors.items()}
    variables = jax.device_put(unflatten_dict(flat, sep="/"), sharding)
    return Saved(about.step, variables, None, about.config)


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables of a config's encoder."""
    from chns_jax.encoders import variable_shapes

    places = {"params": ("params", "encoder"), "batch_stats": ("batch_stats",)}
    shapes = variable_shapes(config.encoder, config.features.bands)
    return {"/".join((*places[kind], *path)): of for (kind, *path), of in shapes.items()}


def read_texts(folder: Path) -> Texts:
    """The config and the card of a published model whose config has been read; the card is empty
    where there is none of a size such as cards have."""
    config = (folder / configs.RUN_CONFIG).read_text(encoding="utf-8")
    card = folder / CARD
    if not card.is_file() or card.stat().st_size > LARGEST_CARD:
        return Texts(config, "")
    return Texts(config, card.read_text(encoding="utf-8", errors="replace"))


def front_matter(folder: Path) -> dict[str, Any]:
    """What the card of a published model says at its top, in YAML; nothing where it says nothing
    that can be read."""
    parts = read_texts(folder).card.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}
    try:
        found = plain_yaml.load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _check_size(path: Path, config: Config, tensors: int) -> None:
    """Raises UserError for an encoder of more layers than the file has tensors, which would take
    long to look at."""
    encoder = config.encoder
    layers = {
        "ecapa_tdnn": len(encoder.ecapa.channels) * encoder.ecapa.res2net_scale,
        "thin_resnet": sum(encoder.thin_resnet.layers),
        "redimnet2": sum(encoder.redimnet2.blocks),
    }[encoder.kind]
    if layers > tensors:
        raise _damaged(path, f"has {tensors} tensors, fewer than the layers of its config")


def _of_encoder(config: Config) -> str:
    """The features and the encoder of a config, in YAML."""
    tree = yaml.safe_load(configs.to_published_yaml(config))
    return yaml.safe_dump({name: tree[name] for name in ("features", "encoder")}, sort_keys=False)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: get the model again")
