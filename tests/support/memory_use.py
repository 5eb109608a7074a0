"""Resident memory of a process (Linux), for tests that limit it.

`ru_maxrss` is not used: a process inherits the peak of the one that started it, here a worker of pytest.
"""

import os
import subprocess
import sys
from pathlib import Path


def peak() -> int:
    """Return the largest resident memory since the start of the process or `reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Forget the peak; returns the resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def output_of(script: str, *arguments: object) -> str:
    """Run Python code that may import the modules of this folder in another process, and return what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
