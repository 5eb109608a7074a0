"""The commands `push` and `push-space` in a console: what they print. PushError is for the caller."""

from pathlib import Path

from rich.console import Console

from hf_vit_seg.provenance import CARD

from .push import push
from .repository import Target
from .space import push_space


def push_command(directory: Path, target: Target) -> None:
    """Push a model, and tell where it is and what was left out."""
    console = Console(soft_wrap=True, highlight=False)
    done = push(directory, target)
    console.print(f"pushed {len(done.files)} files: {done.commit.pr_url or done.commit.commit_url}")
    if done.left_out:
        console.print(f"left out: {', '.join(done.left_out)}")
    if done.model.provenance.license is None:
        console.print(
            f"no licence is known: write `license: ...` at the top of {done.model.path / CARD}, and push again"
        )


def push_space_command(model: str, target: Target) -> None:
    """Push a Space, and tell where it is."""
    done = push_space(model, target)
    Console(soft_wrap=True, highlight=False).print(f"pushed a Space: {done.pr_url or done.commit_url}")
