"""Write a web page that compares voices in the browser: `python -m chns_jax.page`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chns_jax.common.command_line import MODEL, add_checkpoint, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import between
from chns_jax.runs.published import find_model

if TYPE_CHECKING:
    from onnx import ModelProto


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write a static web page in which visitors record or drop two clips and are told whether "
        "it is one speaker, or enrol names and ask who speaks, all in their browser; or serve it "
        "to this machine alone."
    )
    parser.add_argument("run", type=str, help=f"{MODEL}, or a speaker.onnx of chns_jax.export.")
    add_checkpoint(parser)
    parser.add_argument("--out", type=str | None, default=None, help="Folder to write.")
    parser.add_argument(
        "--serve", action="store_true", help="Serve the page to this machine until Ctrl-C."
    )
    parser.add_argument(
        "--port",
        type=Annotated[int, between(0, 65_535)],
        default=8000,
        help="Port to serve at; 0 is any that is free.",
    )
    parser.add_argument(
        "--onnxruntime_web",
        type=str,
        default="node_modules/onnxruntime-web",
        help="Folder of the npm package onnxruntime-web, which computes in the browser.",
    )
    chosen = parse(parser, argv)
    if chosen.out is None and not chosen.serve:
        raise UserError("give --out DIR to write the page, or --serve to look at it")
    if not chosen.run.endswith(".onnx"):
        chosen.run = find_model(chosen.run)  # what is wrong is said before JAX is imported
    source = Path(chosen.run).expanduser()

    from chns_jax.reports import serving, speaker_page

    runtime = speaker_page.runtime_files(Path(chosen.onnxruntime_web).expanduser())
    if chosen.out is not None:
        speaker_page.check_folder(Path(chosen.out).expanduser())
    model = _model(source, chosen.checkpoint)

    from chns_jax.interop import onnx_digest

    if not onnx_digest.is_as_described(model):
        raise UserError(
            f"{source} is not what chns_jax.export wrote, or was changed since: export it again"
        )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    about = speaker_page.describe(metadata, source.name)
    with tempfile.TemporaryDirectory(prefix="chns_jax_page_") as temporary:
        out = Path(chosen.out or temporary).expanduser()
        speaker_page.write(out, model.SerializeToString(), about, runtime)
        if chosen.out is not None:
            print(f"{out}: a page for any web server", file=sys.stderr)
        if chosen.serve:
            serving.serve(out, chosen.port)


def _model(source: Path, checkpoint: str) -> ModelProto:
    """A speaker.onnx, of a file or of a run."""
    from chns_jax.common.reading import check_readable

    try:
        import onnx
    except ImportError:
        raise UserError(
            "the page's model needs onnx, which pip install 'chns_jax[onnx]' brings"
        ) from None
    if source.suffix == ".onnx":
        data = check_readable(source, "a run folder or a speaker.onnx").read_bytes()
        try:
            return onnx.load_model_from_string(data)
        except Exception as error:  # protobuf's, which onnx does not name
            raise UserError(f"{source} is no ONNX model: export it again") from error

    from chns_jax import SpeakerEncoder
    from chns_jax.interop import onnx_models

    encoder = SpeakerEncoder.load(source, checkpoint)
    if encoder.calibration is None:
        print(f"{encoder.uncalibrated}: the page will show cosines alone", file=sys.stderr)
    return onnx_models.make(encoder.model, encoder.calibration).speaker


if __name__ == "__main__":
    run(main)
