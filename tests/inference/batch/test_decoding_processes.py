"""Processes that decode images end with the process that uses them."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, time
from pathlib import Path
from hf_vit_seg.inference.batch.preparation import ImagePreparation, decoding_processes
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import PredictOptions

if __name__ == "__main__":
    with decoding_processes(1, ImagePreparation(None, Protocol(), 3, PredictOptions())) as processes:
        print(processes.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="requires POSIX signals")
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_remains(tmp_path, kind):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    owner = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    decoder = int(owner.stdout.readline())
    if kind == "SIGINT":  # a terminal sends it to all processes
        os.killpg(owner.pid, signal.SIGINT)
    else:
        os.kill(owner.pid, getattr(signal, kind))
    output, errors = owner.communicate(timeout=60)  # the pipes are closed when all processes have ended
    for _ in range(600):
        if not is_alive(decoder):
            break
        time.sleep(0.1)
    assert not is_alive(decoder)
    assert "SpawnProcess" not in output + errors
