"""`python -m hf_vit_seg.cli`, for launchers such as `accelerate launch -m`."""

from . import app

if __name__ == "__main__":
    app()
