import signal
import subprocess
import sys

import pytest

BUSY = """
import sys, threading, time
from chns_jax.common.errors import run

def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("kept")

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_program_keeps_what_is_done_and_waits_for_nothing(number):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (output, errors) == ("kept\n", f"stopped by {number.name}\n")
