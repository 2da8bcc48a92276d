"""Who is speaking, of some enrolled speakers: `python -m chns_jax.gallery`."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from chns_jax.common.command_line import Parser, add_model, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.files import check_place
from chns_jax.common.reading import check_readable
from chns_jax.common.values import PositiveInt
from chns_jax.runs.published import find_model


def main(argv: list[str]) -> None:
    parser = make_parser("Enroll speakers, and identify who speaks in a recording.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{enroll,identify,list,remove}"
    )
    enroll = _add_command(commands, "enroll", "Add a speaker.")
    enroll.add_argument("name", type=str, help="The speaker's name.")
    enroll.add_argument("files", type=str, nargs="+", help="Recordings of nobody else.")
    identify = _add_command(
        commands,
        "identify",
        "Print the names whose voices are nearest to that of a recording, as one JSON object; the "
        "first of them is who speaks, or nobody where all are under the run's threshold. That is "
        "set for one name: of n names, impostors are accepted up to n times as often.",
    )
    identify.add_argument("file", type=str, help="A recording.")
    identify.add_argument("--names", type=PositiveInt, default=5, help="Names to print at most.")
    for command in (enroll, identify):
        add_model(command)
    _add_command(commands, "list", "Print who is enrolled, as one JSON object.")
    remove = _add_command(commands, "remove", "Remove a speaker.")
    remove.add_argument("name", type=str, help="The speaker's name.")
    chosen = parse(parser, argv)
    folder = Path(chosen.gallery).expanduser()
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{chosen.gallery} is no folder: give that of a gallery")
    if "model" in chosen:
        chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported
        if chosen.command == "enroll" and folder.is_dir():
            check_place(folder / "speaker.json", shown=folder)
        for path in chosen.files if chosen.command == "enroll" else [chosen.file]:
            check_readable(path, "an audio file")
    actions = {"enroll": _enroll, "identify": _identify, "list": _list, "remove": _remove}
    actions[chosen.command](folder, chosen)


def _add_command(commands: Any, name: str, description: str) -> Parser:
    command = commands.add_parser(name, description=description, help=description.partition(".")[0])
    command.add_argument("--gallery", type=str, required=True, help="Folder of the gallery.")
    return command


def _enroll(folder: Path, options: Namespace) -> None:
    from chns_jax import SpeakerEncoder
    from chns_jax.verification import gallery as galleries

    encoder = SpeakerEncoder.load(options.model, options.checkpoint, quick=True)
    speaker = galleries.enroll(folder, options.name, options.files, encoder)
    print(
        f"enrolled {speaker.name} with {speaker.seconds:.1f} s of {speaker.recordings} recordings",
        file=sys.stderr,
    )


def _identify(folder: Path, options: Namespace) -> None:
    from chns_jax import SpeakerEncoder
    from chns_jax.common.console import say
    from chns_jax.verification import gallery as galleries

    encoder = SpeakerEncoder.load(options.model, options.checkpoint, quick=True)
    enrolled = galleries.voiceprints(folder, encoder)
    voice = encoder.voiceprint([options.file])
    if encoder.calibration is None:
        say(f"{encoder.uncalibrated}, so that nobody can be rejected: chns_jax.calibrate sets a "
            "threshold")  # fmt: skip
        cosines = {
            name: float(other.embedding @ voice.embedding) for name, other in enrolled.items()
        }
        nearest = sorted(cosines, key=cosines.__getitem__, reverse=True)[: options.names]
        found = [{"name": name, "cosine": cosines[name]} for name in nearest]
        print(json.dumps({"calibrated": False, "nearest": found}))
        return
    decisions = {name: encoder.decide(other, voice) for name, other in enrolled.items()}
    nearest = sorted(decisions, key=lambda name: -decisions[name].log_likelihood_ratio)
    best = decisions[nearest[0]]
    found = [
        {
            "name": name,
            "cosine": decisions[name].cosine,
            "log_likelihood_ratio": decisions[name].log_likelihood_ratio,
        }
        for name in nearest[: options.names]
    ]
    name = nearest[0] if best.same_speaker else galleries.UNKNOWN
    about = {"threshold": best.threshold, "set_for": best.set_for}
    print(json.dumps({"name": name, **about, "nearest": found}))


def _list(folder: Path, options: Namespace) -> None:
    from chns_jax.verification import gallery as galleries

    speakers = [
        {"name": speaker.name, "recordings": speaker.recordings, "seconds": speaker.seconds}
        for speaker in galleries.read(folder)
    ]
    print(json.dumps({"speakers": speakers}))


def _remove(folder: Path, options: Namespace) -> None:
    from chns_jax.verification import gallery as galleries

    galleries.remove(folder, options.name)
    print(f"removed {options.name}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
