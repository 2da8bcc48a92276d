"""A trained run for other programs, as ONNX models: `python -m chns_jax.export`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from chns_jax.common.command_line import add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.files import check_file, replacing
from chns_jax.config import RUN_CONFIG, read_run

SPEAKER, ENCODER = "speaker.onnx", "encoder.onnx"
SPEAKER_INT8, ENCODER_INT8 = "speaker.int8.onnx", "encoder.int8.onnx"


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
        help="Also write models whose weights are integers of eight bits, beside the others.",
    )
    add_checkpoint(parser)
    chosen = parse(parser, argv)
    read_run(chosen.run)  # what is wrong is said before JAX is imported
    out = Path(chosen.out).expanduser()
    if os.path.isfile(out / RUN_CONFIG) and os.path.isdir(out / "checkpoints"):
        raise UserError(f"{out} is a run: give another folder")
    _export_onnx(chosen, out)


def _export_onnx(chosen: Namespace, out: Path) -> None:
    packages = ["onnx", *(["onnxruntime"] if chosen.int8 else [])]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {missing[0]}, which pip install 'chns_jax[onnx]' brings"
        )
    names = [ENCODER, SPEAKER, *([ENCODER_INT8, SPEAKER_INT8] if chosen.int8 else [])]
    for name in names:
        check_file(out / name)

    from chns_jax.embedding import model
    from chns_jax.interop import onnx_models
    from chns_jax.runs.folder import RunFolder
    from chns_jax.scoring import calibration

    loaded = model.load(chosen.run, chosen.checkpoint)
    calibrated = calibration.load(RunFolder(Path(chosen.run).expanduser()).calibration)
    about = "not calibrated"
    if calibrated is not None:
        about = "calibrated"
        if calibrated.scores["checkpoint"] != model.checkpoint_digest(loaded):
            calibrated, about = (
                None,
                "without the run's calibration, which is for another checkpoint",
            )
    models = onnx_models.make(loaded, calibrated)
    protos = [*models, *(onnx_models.quantised(models, loaded) if chosen.int8 else [])]
    sherpa = onnx_models.is_sherpas(loaded.config.features)
    use = "for sherpa-onnx" if sherpa else "not for sherpa-onnx, which computes other features"
    said = [f"log-mel to embedding, {use}", f"waveform to embedding, {about}"] * 2
    for name, proto, sentence in zip(names, protos, said, strict=False):
        data = proto.SerializeToString()
        with replacing(out / name, "wb") as file:
            file.write(data)
        print(f"{out / name}: {sentence}, {len(data) / 1e6:.2f} MB", file=sys.stderr)


if __name__ == "__main__":
    run(main)
