"""A trained run for other programs: `python -m chns_jax.export`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from chns_jax.common.command_line import add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.files import check_file, replacing

SPEAKER, ENCODER = "speaker.onnx", "encoder.onnx"
SPEAKER_INT8, ENCODER_INT8 = "speaker.int8.onnx", "encoder.int8.onnx"


def to_onnx(source: Path, out: Path, checkpoint: str = "last", *, int8: bool = False) -> None:
    """Write the two ONNX models of a run into the folder `out`, and say what they are.

    With `int8`, also such as hold their weights in eight bits, beside them. Raises UserError when
    the run cannot be read, or a package is missing.
    """
    try:
        import onnx  # noqa: F401

        if int8:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}, which pip install 'chns_jax[onnx]' brings"
        ) from error
    from chns_jax.embedding import model
    from chns_jax.interop import onnx_models
    from chns_jax.runs.folder import RunFolder
    from chns_jax.scoring import calibration

    loaded = model.load(source, checkpoint)
    made = calibration.load(RunFolder(source).calibration)
    about = "not calibrated"
    if made is not None and made.scores["checkpoint"] != model.checkpoint_digest(loaded):
        made, about = None, "without the run's calibration, which is for another checkpoint"
    elif made is not None:
        about = "calibrated"
    sherpa = onnx_models.is_sherpas(loaded.config.features)
    use = "for sherpa-onnx" if sherpa else "not for sherpa-onnx, which computes other features"
    models = onnx_models.make(loaded, made)
    written = {ENCODER: models.encoder, SPEAKER: models.speaker}
    if int8:
        small = onnx_models.quantised(models, loaded)
        written |= {ENCODER_INT8: small.encoder, SPEAKER_INT8: small.speaker}
    for name, proto in written.items():
        data = proto.SerializeToString()
        with replacing(out / name, "wb") as file:
            file.write(data)
        said = (
            f"waveform to embedding, {about}"
            if "speaker" in name
            else f"log-mel to embedding, {use}"
        )
        print(f"{out / name}: {said}, {len(data) / 1e6:.1f} MB", file=sys.stderr)


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write a trained run for other programs. --format onnx makes a folder of two models: "
        f"{SPEAKER}, waveform to embedding, and {ENCODER}, log-mel to embedding."
    )
    parser.add_argument("run", type=str, help="Run folder of chns_jax.train.")
    parser.add_argument("out", type=str, help="Folder to write into.")
    parser.add_argument("--format", type=Literal["onnx"], default="onnx", help="What to write.")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="Also write models whose weights are integers of eight bits.",
    )
    add_checkpoint(parser)
    chosen = parse(parser, argv)
    source, out = Path(chosen.run).expanduser(), Path(chosen.out).expanduser()
    if not source.exists():
        raise UserError(f"{source} does not exist: give a run folder")
    if os.path.isfile(out / "config.yaml") and os.path.isdir(out / "checkpoints"):
        raise UserError(f"{out} is a run: give another folder")
    for name in (SPEAKER, ENCODER, *((SPEAKER_INT8, ENCODER_INT8) if chosen.int8 else ())):
        check_file(out / name)
    to_onnx(source, out, chosen.checkpoint, int8=chosen.int8)


if __name__ == "__main__":
    run(main)
