"""Weights from and to PyTorch: `python -m chns_jax.convert`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from chns_jax import config as configs
from chns_jax.common.command_line import add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.files import check_file, check_new, new_folder, replacing
from chns_jax.common.reading import check_readable
from chns_jax.config import Config
from chns_jax.interop import redimnet2
from chns_jax.interop.torch_weights import (
    BESIDE,
    FILES,
    find_encoder,
    from_torch,
    infer,
    load_file,
    to_torch,
    under,
    unwrap,
)


def to_run(source: Path, out: Path, config: Config, variables: dict[str, Any]) -> None:
    """Write a run folder of step 0 whose encoder has these variables, complete or not at all."""
    from chns_jax.runs import checkpoint
    from chns_jax.runs.folder import RunFolder
    from chns_jax.runs.state import sha256

    variables = {
        "params": {"encoder": variables["params"]},
        "batch_stats": variables["batch_stats"],
    }
    summary = {
        "step": 0,
        "parameters_sha256": sha256(variables),
        "converted_from": source.name,
    }
    text = configs.to_yaml(config)
    with new_folder(out) as made:
        folder = RunFolder(made)
        with checkpoint.open_manager(folder.checkpoints) as manager:
            checkpoint.save_variables(manager, variables, text)
        folder.config.write_text(text, encoding="utf-8")
        folder.summary.write_text(json.dumps(summary, indent=1) + "\n")


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Make a run of PyTorch weights (SpeechBrain's ECAPA_TDNN, voxceleb_trainer's ResNetSE, "
        "ReDimNet2 of its authors or of wespeaker), or write the weights of a run under PyTorch's "
        "names. What the shapes of the tensors do not tell, such as encoder.ecapa.dilations and "
        "the features, comes from the keys of a config.",
        "%(prog)s [--checkpoint CHECKPOINT] [--config FILE] [--KEY VALUE ...] source target",
    )
    parser.add_argument(
        "source", type=str, help=f"File of weights ({', '.join(FILES)}), or a run folder."
    )
    parser.add_argument(
        "target", type=str, help="Run folder to make; of a run, .safetensors file to write."
    )
    add_checkpoint(parser)
    configs.add_keys(parser)
    chosen = parse(parser, argv)
    given = {argument.partition("=")[0] for argument in argv}
    if "--out" in given:
        raise UserError(f"{chosen.target} is what is written: leave out --out")
    source, target = Path(chosen.source).expanduser(), Path(chosen.target).expanduser()
    if not source.exists():
        raise UserError(f"{source} does not exist: give a file of weights, or a run folder")
    check_new(target)
    if source.is_dir():
        keys = configs.differences(configs.read(parser, argv), Config())
        _export(source, target, chosen.checkpoint, keys)
        return

    check_readable(source, "a file of weights, or a run folder")
    if "--checkpoint" in given:
        raise UserError(f"{source} is a file of weights, of one state: leave out --checkpoint")
    if source.suffix not in FILES:
        raise UserError(f"{source} is none of {', '.join(FILES)}: rename or convert it")
    if target.suffix in FILES:
        raise UserError(f"{target} is the name of a file: give a run folder to make")
    check_file(target)
    try:
        loaded = load_file(source)
        state_dict = unwrap(loaded)
        kind, prefix = find_encoder(state_dict)
        inside = under(prefix, state_dict)
        inferred = infer(inside, kind)
        if kind == "redimnet2" and isinstance(loaded.get("model_config"), dict):
            inferred |= redimnet2.what_settings_tell(loaded["model_config"])
        # What is given beats what is inferred, and must then fit the shapes.
        config = configs.read(parser, argv, defaults=inferred)
        config = dataclasses.replace(config, out=str(target))
        variables = from_torch(inside, config.encoder, bands=config.features.bands)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    to_run(source, target, config, variables)
    beside = tuple(prefix + part for part in BESIDE[kind])
    left_out = [
        name for name in state_dict if not name.startswith(prefix) or name.startswith(beside)
    ]
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    print(f"{target}: {kind}, to be used as any run", file=sys.stderr)


def _export(source: Path, target: Path, checkpoint: str, keys: list[str]) -> None:
    """Write the encoder of a run as .safetensors."""
    if keys:
        raise UserError(f"a run has a config of its own: leave out {', '.join(keys)}")
    if target.suffix != ".safetensors":
        raise UserError(f"{target} does not end with .safetensors, the format that is written")
    from safetensors.numpy import save

    from chns_jax.embedding import model
    from chns_jax.runs.state import of_encoder

    check_file(target)
    config, step, variables, *_ = model.load(source, checkpoint)
    state_dict = to_torch(of_encoder(variables), config.encoder, bands=config.features.bands)
    with replacing(target, "wb") as file:
        file.write(save(state_dict, metadata={"format": "pt"}))
    print(f"{target}: {config.encoder.kind} of step {step}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
