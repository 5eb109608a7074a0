"""Python code in another process."""

import os
import subprocess
import sys


def output_of(script: str, *arguments: object) -> str:
    """Run Python code that may import the modules that tests import, and return what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
