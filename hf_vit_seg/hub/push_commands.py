"""The commands `push` and `push-space` and their output. Raises PushError."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich import filesize
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.error_reporting import print_result
from hf_vit_seg.provenance import CARD
from hf_vit_seg.text_files import read_text

from .formats import OWN
from .push import PICTURE, WIDGET, PushPlan, prepare_push
from .repository import Content, Target
from .space import prepare_space

# Facts of a card that `push` lists, by their titles.
FACTS = {
    "license": "license",
    "task": "pipeline_tag",
    "base model": "base_model",
    "datasets": "datasets",
    "tags": "tags",
}
NOTHING_SENT = "dry run: nothing was sent"


def push_command(
    directory: str | Path,
    target: Target,
    *,
    sample_image: bool = False,
    dry_run: bool = False,
    model_format: str = OWN,
    handler: bool = True,
) -> None:
    """List the files of a model and push them, unless it is a dry run."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    prepared = prepare_push(
        directory, target, sample_image=sample_image, dry_run=dry_run, model_format=model_format, handler=handler
    )
    for note in prepared.notes:
        console.print(note)
    card = card_data(prepared)
    listed: dict[str, Any] = {
        "repo_id": target.repo_id,
        "files": file_sizes(prepared.content),
        "left_out": list(prepared.left_out),
        "notes": list(prepared.notes),
        "card": card.to_dict(),
    }
    images = [name for name in (PICTURE, WIDGET) if name in prepared.content]
    view = Group(files_view(prepared.content), "", facts_view(card, images))
    if dry_run:
        prepared.temporary.close()
        print_result(view, lambda: listed | {"url": None}, console)
        print_left_out(console, prepared.left_out)
        console.print(NOTHING_SENT)
        return
    console.print(view)
    print_left_out(console, prepared.left_out)
    done = prepared.commit()
    url = done.commit.pr_url or done.commit.commit_url
    print_result(f"pushed {len(done.files)} files: {url}", lambda: listed | {"url": url}, console)
    if done.model.provenance.license is None:
        console.print(
            f"the license is unknown: add `license: ...` at the top of {done.model.path / CARD}, and push again"
        )


def push_space_command(model: str, target: Target, *, dry_run: bool = False) -> None:
    """List the files of a Space and push them, unless it is a dry run."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    prepared = prepare_space(model, target, dry_run=dry_run)
    listed: dict[str, Any] = {"repo_id": target.repo_id, "files": file_sizes(prepared.content)}
    view = files_view(prepared.content)
    if dry_run:
        print_result(view, lambda: listed | {"url": None}, console)
        console.print(NOTHING_SENT)
        return
    console.print(view)
    done = prepared.commit()
    url = done.pr_url or done.commit_url
    print_result(f"pushed a Space: {url}", lambda: listed | {"url": url}, console)


def card_data(plan: PushPlan) -> ModelCardData:
    """Return the metadata of the card that would be published."""
    content = plan.content[CARD]
    text = content.decode() if isinstance(content, bytes) else read_text(content)
    metadata: Any = ModelCard(text, ignore_metadata_errors=True).data
    return metadata


def facts_view(card: ModelCardData, images: Sequence[str]) -> Table:
    """Return a table of the facts of a model card; a license without a value is unknown."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, name in FACTS.items():
        value = getattr(card, name, None)
        values = [value] if isinstance(value, str) else value or ["unknown" if name == "license" else "none"]
        table.add_row(title, Text(", ".join(map(str, values))))
    table.add_row("images", Text(", ".join(images) or "none; --sample-image publishes one"))
    for score in card.eval_results or ():
        split = score.dataset_split or score.dataset_name
        table.add_row("score", Text(f"{score.metric_name or score.metric_type} {score.metric_value:.4g} ({split})"))
    return table


def print_left_out(console: Console, names: Sequence[str]) -> None:
    """Print the names of the files in the directory that are not published."""
    if names:
        console.print(f"left out: {', '.join(names)}")


def file_sizes(content: Content) -> dict[str, int]:
    """Return the size in bytes of each file, by its path in the repository."""
    return {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in content.items()}


def files_view(content: Content) -> Table:
    """Return a table of the files and their sizes; those of this package on one line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    sizes: Counter[str] = Counter()
    for path, size in file_sizes(content).items():
        sizes[f"{PACKAGE}/ (this package)" if path.startswith(f"{PACKAGE}/") else path] += size
    for name, size in sorted(sizes.items()):
        table.add_row(Text(name), filesize.decimal(size))
    return table
