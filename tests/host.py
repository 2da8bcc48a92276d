"""One of two hosts that talk to each other and train nothing: `python host.py INDEX PORT FOLDER`.

Each writes what it saw to FOLDER/INDEX.json, and then the second makes a mistake.
"""

import json
import sys
import time
from pathlib import Path

from chns_jax.common.errors import UserError, run
from chns_jax.config import Hosts
from chns_jax.devices import processes
from chns_jax.devices.sharding import make_mesh
from chns_jax.training.stopping import stop_signals


def main(argv: list[str]) -> None:
    index, folder = int(argv[0]), Path(argv[2])
    hosts = Hosts(coordinator=f"localhost:{argv[1]}", count=2, index=index, heartbeat=10)
    with processes.joined(hosts), stop_signals() as stopped:
        agreement = processes.Agreement(make_mesh())
        step, stop = 0, agreement(stopped)
        (folder / f"{index}.ready").write_text("")
        while not stop:
            step, stop = step + 1, agreement(stopped)
            time.sleep(0.01)
        seen = {"step": step, "stop": stop, "wrong": None}
        try:
            processes.check_same(f"0{index}", "utterances or trials", "data.root and data.trials")
        except UserError as error:
            seen["wrong"] = str(error)
        (folder / f"{index}.json").write_text(json.dumps(seen))
        processes.barrier("what was seen is written")
        if not processes.is_first():
            raise UserError("differs in training.seed")
        while True:  # until the other is lost
            agreement(stopped)


if __name__ == "__main__":
    sys.exit(run(main))
