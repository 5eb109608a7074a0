"""The commands `push`, `push-space` and `demo`."""

from enum import StrEnum
from typing import Annotated

import typer

from hf_vit_seg.error_reporting import is_json, print_json

from .app import FILES, REPOSITORY, command

SERVER = "Server"  # a panel of --help

CreatePrOption = Annotated[
    bool,
    typer.Option("--create-pr", help="Open a pull request instead of committing.", rich_help_panel=REPOSITORY),
]
MessageOption = Annotated[str | None, typer.Option(help="Commit message.", rich_help_panel=REPOSITORY)]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only list the files and their sizes; nothing is uploaded.", rich_help_panel=FILES),
]


class ModelFormat(StrEnum):
    """Formats of published models."""

    own = "own"
    transformers = "transformers"


@command(example="hf-vit-seg push out me/nuclei --dry-run", prints_result=True)
def push(
    directory: Annotated[
        str,
        typer.Argument(help="Model directory, a run directory to push its best model, or a checkpoint to convert."),
    ],
    repo: Annotated[str, typer.Argument(help="Hub repository, such as me/my-model. Created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the repository; an existing one must match.",
            rich_help_panel=REPOSITORY,
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="Commit to this branch. Created if it does not exist.", rich_help_panel=REPOSITORY),
    ] = None,
    create_pr: CreatePrOption = False,
    message: MessageOption = None,
    sample_image: Annotated[
        bool,
        typer.Option(
            "--sample-image",
            help="Also publish one evaluated image with its prediction and label.",
            rich_help_panel=FILES,
        ),
    ] = False,
    model_format: Annotated[
        ModelFormat,
        typer.Option(
            "--format",
            help="own, or transformers: loads without this package and without remote code.",
            rich_help_panel=FILES,
        ),
    ] = ModelFormat.own,
    handler: Annotated[
        bool,
        typer.Option(
            "--handler/--no-handler", help="Also publish handler.py for Inference Endpoints.", rich_help_panel=FILES
        ),
    ] = True,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a model on the Hub: weights, image processor, model code, model card and metrics.

    The files are listed before the upload. They contain no absolute paths of this machine, and images only with
    --sample-image. Everything is uploaded in one commit; run the same command again to resume an interrupted upload.
    Log in with hf auth login.
    """
    from hf_vit_seg.hub.push_commands import push_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, branch=branch, create_pr=create_pr, message=message)
    push_command(
        directory,
        target,
        sample_image=sample_image,
        dry_run=dry_run,
        model_format=model_format.value,
        handler=handler,
    )


@command("push-space", example="hf-vit-seg push-space out me/nuclei-demo --dry-run", prints_result=True)
def push_space(
    model: Annotated[str, typer.Argument(help="Model directory, run directory, Hub ID, or nuclei (built in).")],
    repo: Annotated[str, typer.Argument(help="Space on the Hub, such as me/my-demo. Created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the Space; an existing one must match.",
            rich_help_panel=REPOSITORY,
        ),
    ] = None,
    create_pr: CreatePrOption = False,
    message: MessageOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a demo of a model as a Space. It contains this package and pins the installed versions."""
    from hf_vit_seg.hub.push_commands import push_space_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, create_pr=create_pr, message=message)
    push_space_command(model, target, dry_run=dry_run)


@command(example="hf-vit-seg demo out/best", prints_result=True)
def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Directories, exported models or Hub IDs. Default: the built-in nuclei model."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port. Default: the first free port from 7860.", rich_help_panel=SERVER),
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Create a public gradio link, valid for one week.", rich_help_panel=SERVER),
    ] = False,
) -> None:
    """Start a web demo of models for segmentation, classification and pose estimation.

    Without MODELS, the models in the environment variable HF_VIT_SEG_MODELS are added. With --json, the address is
    printed when the demo has started.
    """
    from hf_vit_seg.demo import launch

    if not is_json():
        launch(*(models or ()), port=port, share=share)
        return
    server, url, share_url = launch(*(models or ()), port=port, share=share, prevent_thread_lock=True)
    print_json(lambda: {"url": url, "share_url": share_url})
    server.get_blocks().block_thread()
