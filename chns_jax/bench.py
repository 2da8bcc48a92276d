"""Measure how fast this is, on this machine: `python -m chns_jax.bench`."""

from __future__ import annotations

import json
import sys

from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.errors import UserError, run

ROWS = (
    "ecapa", "thin_resnet", "redimnet2", "features", "losses", "plans", "refresh", "loading",
    "embedding", "error_rates", "start", "pages", "loop", "encoders",
)  # fmt: skip
HEADER = "| what | ours | compared with | theirs | ratio | target | met |"


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Print a table of times and memory on this machine. What is compared runs in turn, A B A "
        "B, and figures are medians, so that ratios hold on a busy machine; times do not."
    )
    parser.add_argument(
        "--rows",
        type=str,
        nargs="+",
        default=list(ROWS),
        help=f"Groups of rows to measure: {', '.join(ROWS)}. All when not given.",
    )
    parser.add_argument("--quick", action="store_true", help="Small problems, to try it out.")
    parser.add_argument("--json", action="store_true", help="One JSON object instead of a table.")
    chosen = parse(parser, argv)
    unknown = sorted(set(chosen.rows) - set(ROWS))
    if unknown:
        raise UserError(f"there are no rows {unknown[0]}: choose of {', '.join(ROWS)}")

    import jax

    from chns_jax.benchmarks import contrast, data, encoders, loop, measure, start, training
    from chns_jax.devices.sharding import find_devices

    groups = {
        "ecapa": training.ecapa,
        "thin_resnet": training.thin_resnet,
        "redimnet2": training.redimnet2,
        "features": training.features,
        "losses": contrast.losses,
        "plans": data.plans,
        "refresh": data.refresh,
        "loading": data.loading,
        "embedding": data.embedding,
        "error_rates": data.error_rates,
        "start": start.start,
        "pages": start.pages,
        "loop": loop.loop,
        "encoders": encoders.encoders,
    }
    sizes = measure.QUICK if chosen.quick else measure.Sizes()
    device = find_devices()[0].device_kind
    why = measure.why_no_torch()
    if why is not None:
        print(
            f"rows against PyTorch and SpeechBrain are left out, as they do not import ({why}): "
            'pip install "chns_jax[bench]"',
            file=sys.stderr,
        )
    measured = []
    if not chosen.json:
        print(f"{device}, JAX {jax.__version__}, medians of {sizes.repeats}\n")
        print(HEADER, "|---|---|---|---|---|---|---|", sep="\n", flush=True)
    for name in chosen.rows:
        for row in groups[name](sizes):
            measured.append(row)
            if not chosen.json:
                print(_line(row), flush=True)
    if chosen.json:
        rows = [row._asdict() for row in measured]
        print(json.dumps({"device": device, "jax": jax.__version__, "rows": rows}, indent=1))


def _line(row) -> str:
    theirs = "" if row.theirs is None else _figure(row.theirs, row.unit)
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "yes", False: "no", None: ""}[row.met]
    cells = (row.what, _figure(row.ours, row.unit), row.other, theirs, ratio, row.target, met)
    return f"| {' | '.join(cells)} |"


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


if __name__ == "__main__":
    run(main)
