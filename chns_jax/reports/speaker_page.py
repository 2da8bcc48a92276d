"""A static page that compares voices in the browser: its files, and the model beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from chns_jax.common.errors import UserError
from chns_jax.common.files import check_file, replacing
from chns_jax.embedding.buckets import LONGEST_BUCKET_SECONDS
from chns_jax.scoring import calibration as calibrations

WEB = Path(__file__).with_name("web")
PAGE = ("index.html", "page.css", "page.js", "model.js", "audio.js", "scoring.js")
MODEL, ABOUT, RUNTIME = "speaker.onnx", "model.json", "onnxruntime"
RUNTIME_VERSION = "1.30.0"  # that the page was tested with
# Of the npm package onnxruntime-web: what runs on the processor, without what is for GPUs.
GLUE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


def check_folder(out: Path) -> None:
    """Raises UserError for a folder that holds other things than an earlier page."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder")
    there = set(os.listdir(out)) if out.is_dir() else set()
    if there - {*PAGE, MODEL, ABOUT, RUNTIME} or (PAGE[0] in there and ABOUT not in there):
        raise UserError(f"{out} holds other things than a page: give a new folder")
    check_file(out / PAGE[0])


def runtime_files(package: Path) -> dict[str, Path]:
    """The files of onnxruntime-web that the page needs, by name, in its npm package. Raises
    UserError, which says how to get it, where they are not there."""
    files = {name: package / "dist" / name for name in (GLUE, WASM)}
    if not all(path.is_file() for path in files.values()):
        raise UserError(
            f"{package} does not hold onnxruntime-web: run npm install "
            f"onnxruntime-web@{RUNTIME_VERSION} in this folder, or name the package's folder by "
            "--onnxruntime_web"
        )
    return files


def describe(metadata: Mapping[str, str], name: str = MODEL) -> dict[str, object]:
    """What the page must know of a speaker.onnx, by the metadata that chns_jax.export gave it.
    `name` is that of the file, for sentences.

    Raises UserError for other models, and for a calibration that the page cannot follow.
    """
    try:
        rate = int(metadata["sample_rate"])
        shortest = round(float(metadata["shortest_seconds"]) * rate)
        digest, text = str(metadata["digest"]), metadata.get("calibration")
        made = None if text is None else calibrations.from_json(text)
        if not (8000 <= rate <= 96_000 and 0 < shortest <= LONGEST_BUCKET_SECONDS * rate):
            raise ValueError  # a browser decodes to no other rates
    except (KeyError, ValueError, OverflowError) as error:
        raise UserError(
            f"the metadata of {name} are not those of a {MODEL} that chns_jax.export wrote: give "
            "one"
        ) from error
    if made is not None and made.scores["norm"] is not None:
        raise UserError(
            "the run's calibration is for --norm as-norm, whose impostors the page does not have: "
            "calibrate without --norm"
        )
    seconds = made and made.scores["segments"]
    return {
        "sample_rate": rate,
        "shortest": shortest,
        "longest": round(LONGEST_BUCKET_SECONDS * rate),
        "segment": None if seconds is None else round(seconds * rate),
        "digest": digest,
        "calibration": made
        and {
            "scale": made.scale,
            "offset": made.offset,
            "duration": made.quality.get("duration", 0.0),
            "threshold": made.threshold,
            "set_for": made.set_for,
        },
    }


def write(
    out: Path, model: bytes, about: Mapping[str, object], runtime: Mapping[str, Path]
) -> None:
    """Write the page into the folder `out`, with its model, what `describe` says of that, and the
    files of `runtime_files`."""
    files = {name: (WEB / name).read_bytes() for name in PAGE}
    files |= {f"{RUNTIME}/{name}": path.read_bytes() for name, path in runtime.items()}
    files[MODEL] = model
    written = {
        name: {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        for name in (MODEL, f"{RUNTIME}/{WASM}")
    }
    files[ABOUT] = json.dumps({**about, "files": written}, indent=1).encode()
    for name, data in files.items():
        with replacing(out / name, "wb") as file:
            file.write(data)
