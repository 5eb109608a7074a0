"""Hold the lock of a directory until a line is received or the process is killed.

python lock_holder.py DIRECTORY_LOCK_MODULE DIRECTORY [fork]: the module is loaded by its path, without its package,
whose import takes seconds. With `fork`, a child process remains, like a worker of a data loader.
"""

import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen


@contextmanager
def hold_lock(directory: Path, *options: str) -> Iterator[Popen[str]]:
    """Another process that holds the lock of a directory; it is killed at the end."""
    from hf_vit_seg import directory_lock

    command = [sys.executable, __file__, directory_lock.__file__, str(directory), *options]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def kill(process: Popen[str]) -> None:
    """Kill it as with `kill -9`."""
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


if __name__ == "__main__":
    module, directory, *options = sys.argv[1:]
    with runpy.run_path(module)["lock_directory"](Path(directory)):
        if options and os.fork() == 0:
            sys.stdin.read()  # runs until the test ends
            os._exit(0)
        print("held", flush=True)
        sys.stdin.readline()
