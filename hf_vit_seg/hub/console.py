"""The commands `push` and `push-space` and their output. Raises PushError."""

from collections import Counter
from pathlib import Path

from rich import filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.provenance import CARD

from .formats import OWN
from .push import prepare
from .repository import Content, Target
from .space import prepare_space

NOTHING_SENT = "dry run: nothing was sent"


def push_command(
    directory: str | Path,
    target: Target,
    *,
    sample_image: bool = False,
    dry_run: bool = False,
    model_format: str = OWN,
) -> None:
    """List the files of a model and push them, unless it is a dry run."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    prepared = prepare(directory, target, sample_image=sample_image, dry_run=dry_run, model_format=model_format)
    for note in prepared.notes:
        console.print(note)
    print_files(console, prepared.content)
    if prepared.left_out:
        console.print(f"left out: {', '.join(prepared.left_out)}")
    if dry_run:
        prepared.temporary.close()
        console.print(NOTHING_SENT)
        return
    done = prepared.commit()
    console.print(f"pushed {len(done.files)} files: {done.commit.pr_url or done.commit.commit_url}")
    if done.model.provenance.license is None:
        console.print(
            f"the license is unknown: add `license: ...` at the top of {done.model.path / CARD}, and push again"
        )


def push_space_command(model: str, target: Target, *, dry_run: bool = False) -> None:
    """List the files of a Space and push them, unless it is a dry run."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    prepared = prepare_space(model, target, dry_run=dry_run)
    print_files(console, prepared.content)
    if dry_run:
        console.print(NOTHING_SENT)
        return
    done = prepared.commit()
    console.print(f"pushed a Space: {done.pr_url or done.commit_url}")


def print_files(console: Console, content: Content) -> None:
    """Print the files and their sizes; those of this package on one line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    sizes: Counter[str] = Counter()
    for path, file in content.items():
        name = f"{PACKAGE}/ (this package)" if path.startswith(f"{PACKAGE}/") else path
        sizes[name] += len(file) if isinstance(file, bytes) else file.stat().st_size
    for name, size in sorted(sizes.items()):
        table.add_row(Text(name), filesize.decimal(size))
    console.print(table)
