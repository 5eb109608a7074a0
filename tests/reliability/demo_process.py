"""`python -m tests.reliability.demo_process PORT SECONDS`: the demo; files are deleted after SECONDS, not an hour."""

import sys

import hf_vit_seg.demo
from hf_vit_seg.demo import upload_folder


def main(port: int, seconds_kept: float) -> None:
    """Serve the built-in model until the process is ended."""
    upload_folder.SECONDS_KEPT = upload_folder.SECONDS_STALLED = seconds_kept
    upload_folder.SECONDS_BETWEEN = 5
    hf_vit_seg.demo.launch(port=port, quiet=True, _frontend=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
