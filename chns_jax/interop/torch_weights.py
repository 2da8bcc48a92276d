"""Weights from and to PyTorch.

Names and layouts are SpeechBrain's for ECAPA-TDNN (`ECAPA_TDNN`), voxceleb_trainer's for ThinResNet
(`ResNetSE`), which the authors of CHNS use, and for ReDimNet2 its authors' and wespeaker's, which
are the same. A state dict is a dict name -> array.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chns_jax import config as configs
from chns_jax.common import arrays
from chns_jax.common.command_line import make_parser
from chns_jax.common.errors import UserError
from chns_jax.config import Encoder
from chns_jax.interop import redimnet2

TORCH = (".pt", ".pth", ".ckpt")
FILES = (*TORCH, ".safetensors", ".npz")
# A tensor that each encoder has once, and no part of another module can be taken for.
KNOWN_BY = {
    "ecapa_tdnn": "mfa.conv.conv.weight",
    "thin_resnet": "sap_linear.weight",
    "redimnet2": "backbone.fin_wght1d.w",
}
# What stands beside an encoder under its prefix: the log-mel, which `features` replaces, of
# voxceleb_trainer and of ReDimNet2's authors, and wespeaker's classes.
BESIDE = {
    "ecapa_tdnn": (),
    "thin_resnet": ("torchfb.", "instancenorm."),
    "redimnet2": ("spec.", "projection."),
}
# Where checkpoints of Lightning and of others hold a state dict.
NESTED_UNDER = ("state_dict", "model", "model_state_dict")
COUNTER = "num_batches_tracked"  # of BatchNorm in PyTorch; unused at a constant momentum
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
ECAPA_PARTS = {"res2net": "res2net_block", "se": "se_block"}
RESNET_PARTS = {
    "se1": "se.fc.0",
    "se2": "se.fc.2",
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
}
# Axes of a kernel in PyTorch, by their positions in Flax: linear, 1-D and 2-D convolutions.
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}


class Tensor(NamedTuple):
    """Where a tensor of a state dict lies in the encoder's variables."""

    path: tuple[str, ...]  # "params" or "batch_stats", modules, leaf
    axes: tuple[int, ...]  # PyTorch's, as positions in Flax
    shape: tuple[int, ...]  # in PyTorch


def from_torch(
    state_dict: dict[str, np.ndarray], encoder: Encoder, *, bands: int = 80
) -> dict[str, Any]:
    """The encoder's variables {"params", "batch_stats"}, float32, from a PyTorch state dict.

    Tensors may be float16, bfloat16, float32 or float64. `num_batches_tracked` is ignored, and so
    is what `BESIDE` names. Raises UserError naming the first tensor that is missing, unknown, of
    another shape or not finite.
    """
    tensors = _tensors(encoder, bands)
    counters = {_counter(name) for name, tensor in tensors.items() if tensor.path[-1] == "mean"}
    given = {
        name: value
        for name, value in state_dict.items()
        if name not in counters and not name.startswith(BESIDE[encoder.kind])
    }
    _check({name: np.shape(value) for name, value in given.items()}, tensors)
    variables: dict[str, Any] = {}
    for name, (path, axes, _) in tensors.items():
        value = _float32(name, given[name]).transpose(np.argsort(axes))
        *modules, leaf = path
        tree = variables
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = np.array(value, order="C")
    return variables


def to_torch(
    variables: dict[str, Any], encoder: Encoder, *, bands: int = 80
) -> dict[str, np.ndarray]:
    """The PyTorch state dict of an encoder's variables {"params", "batch_stats"}.

    `num_batches_tracked` is 0, as in a new module. Raises UserError naming the first tensor that is
    missing, unknown or of another shape.
    """
    from flax.traverse_util import flatten_dict

    tensors = _tensors(encoder, bands)
    by_path = {tensor.path: (name, tensor.axes) for name, tensor in tensors.items()}
    state_dict = {}
    for path, value in flatten_dict(variables).items():
        value = np.asarray(value)
        name, axes = by_path.get(path, ("/".join(path), None))
        if axes is not None and len(axes) == value.ndim:
            value = value.transpose(axes)
        state_dict[name] = np.array(value, order="C")  # safetensors writes memory as it lies
    _check({name: value.shape for name, value in state_dict.items()}, tensors)
    for name, tensor in tensors.items():
        if tensor.path[-1] == "mean":
            state_dict[_counter(name)] = np.zeros((), np.int64)
    return state_dict


def find_encoder(state_dict: dict[str, np.ndarray]) -> tuple[str, str]:
    """Kind of the encoder in a state dict, and the prefix of its names: "", "encoder." or other.

    Raises UserError when there is none, or more than one.
    """
    found = [
        (kind, name.removesuffix(known))
        for name in state_dict
        for kind, known in KNOWN_BY.items()
        if name == known or name.endswith(f".{known}")
    ]
    if not found:
        raise UserError(
            "no name ends with " + " or ".join(KNOWN_BY.values()) + ": it holds no encoder of "
            "SpeechBrain's ECAPA_TDNN, voxceleb_trainer's ResNetSE or wespeaker's ReDimNet2"
        )
    if len(found) > 1:
        prefixes = ", ".join(repr(prefix) for _, prefix in found)
        raise UserError(f"it holds {len(found)} encoders, under {prefixes}: keep one of them")
    return found[0]


def infer_encoder(state_dict: dict[str, np.ndarray]) -> Encoder:
    """The encoder in a state dict; what the shapes of its tensors do not tell is the default.

    Raises UserError as `find_encoder` and `infer` do, and where the defaults do not fit.
    """
    kind, prefix = find_encoder(state_dict)
    parser = make_parser("")
    configs.add_keys(parser)
    return configs.read(parser, [], defaults=infer(under(prefix, state_dict), kind)).encoder


def under(prefix: str, state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What has a name that begins with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


def infer(state_dict: dict[str, np.ndarray], kind: str) -> dict[str, Any]:
    """The keys of a config that the shapes of an encoder's tensors tell, and their values.

    Raises UserError naming the tensor that is needed and missing, is empty, has too few axes, or
    does not fit those beside it.
    """

    def shape(name: str, *ranks: int) -> tuple[int, ...]:
        if name not in state_dict:
            raise UserError(f"tensor {name} is missing")
        found = np.shape(state_dict[name])
        if len(found) not in ranks:
            rank = " or ".join(map(str, ranks))
            raise UserError(f"tensor {name} has shape {found}, which is not of rank {rank}")
        if 0 in found:
            raise UserError(f"tensor {name} has shape {found}, which holds no numbers")
        return found

    def layer(name: str, rank: int, inputs: int | None = None) -> tuple[int, ...]:
        """The shape of a weight: as many outputs as its bias has, and `inputs` when given."""
        found, outputs = shape(f"{name}.weight", rank), shape(f"{name}.bias", 1)
        expected = (*outputs, inputs) if inputs else outputs
        if found[: len(expected)] != expected:
            raise UserError(
                f"tensor {name}.weight has shape {found}, which does not begin with {expected}"
            )
        return found

    def last(prefix: str) -> int:
        """The highest i in names that begin with "<prefix>i."; 0 when there are none."""
        numbers = (re.match(re.escape(prefix) + r"(\d{1,3})\.", name) for name in state_dict)
        return max((int(number[1]) for number in numbers if number), default=0)

    if kind == "ecapa_tdnn":
        scale = 2 + last("blocks.1.res2net_block.blocks.")
        outer, inner = [layer("blocks.0.conv.conv", 3)], []
        for i in range(1, 1 + max(1, last("blocks."))):
            outer.append(layer(f"blocks.{i}.tdnn1.conv.conv", 3, inputs=outer[-1][0]))
            group, inside = outer[-1][0] // scale, f"blocks.{i}.res2net_block.blocks."
            inner.append(layer(f"{inside}0.conv.conv", 3, inputs=group))
            for j in range(1, scale - 1):
                shape(f"{inside}{j}.conv.conv.weight", 3)
        aggregation = layer("mfa.conv.conv", 3, inputs=sum(s[0] for s in outer[1:]))
        keys = {
            "features.bands": outer[0][1],
            "encoder.embedding": layer("fc.conv", 3)[0],
            "encoder.ecapa.channels": tuple(s[0] for s in (*outer, aggregation)),
            "encoder.ecapa.kernel_sizes": tuple(s[2] for s in (outer[0], *inner, aggregation)),
            "encoder.ecapa.res2net_scale": scale,
            "encoder.ecapa.se_channels": layer("blocks.1.se_block.conv1.conv", 3)[0],
            "encoder.ecapa.attention_channels": layer("asp.tdnn.conv.conv", 3)[0],
        }
    elif kind == "redimnet2":
        stages = 1 + last("backbone.stage")
        keys = redimnet2.what_shapes_tell(state_dict, shape, stages)
    else:
        stages = range(1, 1 + max(1, last("layer")))
        filters = tuple(shape(f"layer{stage}.0.bn1.weight", 1)[0] for stage in stages)
        layers = tuple(1 + last(f"layer{stage}.") for stage in stages)
        for stage, blocks in zip(stages, layers, strict=True):
            for block in range(blocks):  # a name of the last makes no others
                shape(f"layer{stage}.{block}.bn1.weight", 1)
        embedding, pooled = layer("fc", 2)
        keys = {  # bands are averaged over, whatever their number
            "encoder.embedding": embedding,
            "encoder.thin_resnet.layers": layers,
            "encoder.thin_resnet.filters": filters,
            "encoder.thin_resnet.pooling": "sap" if pooled == filters[-1] else "asp",
        }
    return {"encoder.kind": kind, **keys}


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The state dict in a file of PyTorch, safetensors or NumPy; floating-point tensors float32.

    Raises UserError for another file, one that is cut off, and one without tensors.
    """
    return unwrap(load_file(path))


def load_file(path: Path) -> Any:
    """What a file holds, as `read_file` does, with what stands beside a state dict."""
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    return readers.get(path.suffix, _read_torch)(path)


def unwrap(loaded: Any) -> dict[str, np.ndarray]:
    """The state dict in what a file holds: itself, or the one under a name of NESTED_UNDER.

    Raises UserError when there is none, or more than one.
    """
    loaded = loaded if isinstance(loaded, dict) else {}
    nested = [
        str(name)
        for name, value in loaded.items()
        if isinstance(value, dict) and any(hasattr(inner, "shape") for inner in value.values())
    ]
    under = [name for name in NESTED_UNDER if name in nested]
    if len(under) > 1:
        raise UserError(f"it holds state dicts under {', '.join(under)}: keep one of them")
    inner = loaded[under[0]] if under else loaded
    tensors = {str(name): value for name, value in inner.items() if hasattr(value, "shape")}
    if not tensors:
        where = f" but under {', '.join(nested)}: save one of these alone" if nested else ""
        raise UserError(f"it holds no state dict of tensors by name{where}")
    return tensors


def _tensors(encoder: Encoder, bands: int) -> dict[str, Tensor]:
    """The tensors of the encoder's state dict, without counters."""
    from chns_jax.encoders import variable_shapes

    tensors = {}
    for path, ours in variable_shapes(encoder, bands).items():
        axes = tuple(range(len(ours)))
        if path[-1] == "kernel":
            # ReDimNet2's images have time first here, and there frequency.
            axes = axes[::-1] if encoder.kind == "redimnet2" else KERNEL_AXES[len(ours)]
        shape = tuple(ours[axis] for axis in axes)
        tensors[_torch_name(path, encoder)] = Tensor(path, axes, shape)
    return tensors


def _torch_name(path: tuple[str, ...], encoder: Encoder) -> str:
    """PyTorch's name of the variable at `path`."""
    _, *modules, leaf = path
    leaf = LEAVES.get(leaf, leaf)
    if encoder.kind == "redimnet2":
        return redimnet2.torch_name(modules, leaf, encoder.redimnet2)
    if encoder.kind == "ecapa_tdnn":
        parts = [ECAPA_PARTS.get(part, part.replace("blocks_", "blocks.")) for part in modules]
        # SpeechBrain's Conv1d and BatchNorm1d each hold PyTorch's.
        wrapped = "norm" if modules[-1] in ("norm", "asp_bn") else "conv"
        return ".".join([*parts, wrapped, leaf])
    parts = [
        part.replace("_", ".") if part.startswith("layer") else RESNET_PARTS.get(part, part)
        for part in modules
    ]
    return ".".join([*parts, leaf])


def _counter(running_mean: str) -> str:
    """The name of the counter beside a running mean."""
    return running_mean.replace("running_mean", COUNTER)


def _check(shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    """Raises UserError where a state dict's shapes are not those of the encoder's tensors."""
    wrong = [f"tensor {name} is missing" for name in tensors if name not in shapes]
    wrong += [f"tensor {name} is unknown to it" for name in shapes if name not in tensors]
    wrong += [
        f"tensor {name} has shape {shapes[name]} instead of {tensor.shape}"
        for name, tensor in tensors.items()
        if name in shapes and shapes[name] != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise UserError(f"the weights do not fit the encoder's config: {wrong[0]}{more}")


def _float32(name: str, value: Any) -> np.ndarray:
    """The tensor as float32. Raises UserError when it is no float, or not finite as one."""
    import jax.numpy as jnp

    value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f"tensor {name} is {value.dtype}, but weights are floating-point numbers")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"tensor {name} holds NaN or infinity: it is spoilt")
    return value


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"reading {path.suffix} needs PyTorch, which pip install 'chns_jax[torch]' brings"
        ) from None
    import pickle
    import warnings

    def plain(value: Any, name: Any = "") -> Any:
        if isinstance(value, dict):
            return {key: plain(inner, key) for key, inner in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        try:
            return (value.float() if value.is_floating_point() else value).detach().numpy()
        except (TypeError, RuntimeError) as error:
            layout = "nested" if value.is_nested else value.layout
            kind = f"{value.dtype}, {layout}, on device {value.device}".replace("torch.", "")
            raise UserError(
                f"tensor {name} ({kind}) is no plain array of numbers: save it as one with PyTorch"
            ) from error

    # PyTorch documents no errors for files that are not its own, and raises many.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise UserError("it is no file of PyTorch") from error
        raise UserError(
            "it holds objects of other classes beside its weights, which are not loaded as they "
            "could run code: save its state_dict alone with PyTorch"
        ) from error
    except Exception as error:
        raise UserError("it is no file of PyTorch, or cut off") from error
    return plain(loaded)


def _read_safetensors(path: Path) -> Any:
    import ml_dtypes  # noqa: F401  (makes bfloat16 known to NumPy)
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="np")
    except SafetensorError as error:
        raise UserError(f"it is no file of safetensors, or cut off ({error})") from error
    tensors = {}
    with file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            try:
                tensors[name] = file.get_tensor(name)
            except (AttributeError, SafetensorError) as error:
                kind = file.get_slice(name).get_dtype()
                raise UserError(
                    f"tensor {name} is {kind}, which NumPy does not have: save it as float32"
                ) from error
    return tensors


def _read_npz(path: Path) -> Any:
    try:
        return arrays.load(path)
    except arrays.Damaged as error:
        raise UserError(f"it {error}") from error
