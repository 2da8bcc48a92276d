"""A trained run for others: `python -m chns_jax.export RUN OUT --format onnx|hub`."""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chns_jax.common.command_line import MODEL, Parser, add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.files import check_new, new_folder, replacing
from chns_jax.runs.published import ONNX, find_model

if TYPE_CHECKING:
    from chns_jax.verification.model_card import About

SPEAKER, ENCODER = ONNX, "encoder.onnx"
OF_HUB = ("dtype", "with_onnx", "license", "trained_on", "result")
SPEAKER_INT8, ENCODER_INT8 = "speaker.int8.onnx", "encoder.int8.onnx"


def main(argv: list[str]) -> None:
    parser = make_parser("Write the encoder of a trained run in a form that others read.")
    parser.add_argument("run", type=str, metavar="RUN", help=f"{MODEL}.")
    parser.add_argument("out", type=str, metavar="OUT", help="Folder to make.")
    parser.add_argument(
        "--format",
        type=Literal["onnx", "hub"],
        required=True,
        help=f"onnx: {SPEAKER}, waveform to embedding, and {ENCODER}, log-mel to embedding, for "
        "programs that know nothing of JAX. hub: a published model, which is used as any run, from "
        "a folder or from Hugging Face's hub.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--int8",
        action="store_true",
        help="Of onnx: also write models whose weights are integers of eight bits.",
    )
    _add_hub_arguments(parser)
    chosen = parse(parser, argv)
    chosen.run = find_model(chosen.run)  # what is wrong is said before JAX is imported
    for option in OF_HUB:
        if chosen.format == "onnx" and getattr(chosen, option) != parser.get_default(option):
            raise UserError(f"--{option} is of --format hub: leave it out")
    out = Path(chosen.out).expanduser()
    {"onnx": _to_onnx, "hub": _to_hub}[chosen.format](chosen, out)


def _add_hub_arguments(parser: Parser) -> None:
    """The options of --format hub."""
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "float16"],
        default="float32",
        help="Of hub's weights; float16: half as large, and embeddings that differ little.",
    )
    parser.add_argument(
        "--with_onnx",
        type=bool,
        default=True,
        help=f"Of hub: also write {SPEAKER}, where the package onnx is there.",
    )
    parser.add_argument(
        "--license",
        type=str | None,
        default=None,
        help="For hub's card: the licence of the model by its name there, such as apache-2.0.",
    )
    parser.add_argument(
        "--trained_on",
        type=str | None,
        default=None,
        help="For hub's card: the speech that the model was trained on, in words.",
    )
    parser.add_argument(
        "--result",
        type=str,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="For hub's card: a file of what chns_jax.evaluate printed, and the name of its list; "
        "may be given several times.",
    )


def _to_onnx(chosen: Namespace, out: Path) -> None:
    """Write the ONNX models."""
    packages = ["onnx", *(["onnxruntime"] if chosen.int8 else [])]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {missing[0]}, which pip install 'chns_jax[onnx]' brings"
        )
    names = [ENCODER, SPEAKER, *([ENCODER_INT8, SPEAKER_INT8] if chosen.int8 else [])]
    sizes = []
    with new_folder(out) as made:  # what is wrong with it is said before JAX is imported
        from chns_jax import SpeakerEncoder
        from chns_jax.interop import onnx_models

        encoder = SpeakerEncoder.load(chosen.run, chosen.checkpoint)
        models = onnx_models.make(encoder.model, encoder.calibration)
        protos = [*models, *(onnx_models.quantised(models, encoder.model) if chosen.int8 else [])]
        for name, proto in zip(names, protos, strict=True):
            sizes.append((made / name).write_bytes(proto.SerializeToString()) / 1e6)
    sherpa = onnx_models.is_sherpas(encoder.model.config.features)
    use = "for sherpa-onnx" if sherpa else "not for sherpa-onnx, which computes other features"
    about = encoder.uncalibrated if encoder.calibration is None else "calibrated"
    said = [f"log-mel to embedding, {use}", f"waveform to embedding, {about}"] * 2
    for name, sentence, size in zip(names, said, sizes, strict=False):
        print(f"{out / name}: {sentence}, {size:.2f} MB", file=sys.stderr)


def _to_hub(chosen: Namespace, out: Path) -> None:
    """Write a published model."""
    if chosen.int8:
        raise UserError("--int8 is of --format onnx: leave it out")
    check_new(out)
    about = _about(chosen)  # what is wrong with it is said before JAX is imported

    from chns_jax import SpeakerEncoder

    encoder = SpeakerEncoder.load(chosen.run, chosen.checkpoint)
    encoder.save_pretrained(out, dtype=chosen.dtype, about=about)
    if encoder.calibration is None:
        print(f"not calibrated: {encoder.uncalibrated}", file=sys.stderr)
    if chosen.with_onnx:
        _add_onnx(out)
    print(f"{out}: a published model, to be used as any run", file=sys.stderr)


def _add_onnx(out: Path) -> None:
    """Put speaker.onnx beside the weights of a published model, of which it is."""
    if find_spec("onnx") is None:
        print(
            f"without {SPEAKER}, which needs the package onnx: pip install 'chns_jax[onnx]'",
            file=sys.stderr,
        )
        return
    from chns_jax import SpeakerEncoder
    from chns_jax.interop import onnx_models

    encoder = SpeakerEncoder.load(out)
    proto = onnx_models.make(encoder.model, encoder.calibration).speaker
    with replacing(out / SPEAKER, "wb") as file:
        file.write(proto.SerializeToString())


def _about(chosen: Namespace) -> About | None:
    """What the card is to say; None where nothing is given."""
    from chns_jax.verification.model_card import About, check, read_result

    if not (chosen.license or chosen.trained_on or chosen.result):
        return None
    results = {}
    for given in chosen.result:
        name, equals, path = given.partition("=")
        if not (name and equals and path):
            raise UserError(f"--result {given} is not NAME=FILE: name the list, and the file")
        if name in results:
            raise UserError(f"--result {name} is given twice: leave one out")
        results[name] = read_result(path)
    about = About(chosen.license, chosen.trained_on, results)
    check(about)
    return about


if __name__ == "__main__":
    run(main)
