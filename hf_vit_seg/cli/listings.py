"""The commands `models`, `plugins` and `env`."""

import typer

from hf_vit_seg.error_reporting import DONE, FAILED, print_result

from .app import command


@command(example="hf-vit-seg models --json", prints_result=True)
def models() -> None:
    """List the architectures and their variants. Exit code 1 if one cannot be loaded."""
    from hf_vit_seg.plugin_listing import list_variants, models_view

    rows, sentences = list_variants()
    print_result(models_view(rows), lambda: rows)
    for sentence in sentences:
        typer.echo(f"hf-vit-seg: {sentence}", err=True)
    raise typer.Exit(FAILED if sentences else DONE)


@command(example="hf-vit-seg plugins", prints_result=True)
def plugins() -> None:
    """List the installed plugins with their status. Exit code 1 if one cannot be loaded."""
    from hf_vit_seg.plugin_listing import list_plugins, plugin_rows, plugins_view

    installed = list_plugins()
    print_result(plugins_view(installed), lambda: plugin_rows(installed))
    failed = [plugin for plugin in installed if plugin.error]
    for plugin in failed:
        typer.echo(f"hf-vit-seg: {plugin.name} of {plugin.origin} cannot be loaded: {plugin.error}", err=True)
    raise typer.Exit(FAILED if failed else DONE)


@command(example="hf-vit-seg env --json", prints_result=True)
def env() -> None:
    """Print the environment for bug reports: versions, processor, devices, options; no user names or paths."""
    from hf_vit_seg.hub.environment import describe_environment, environment_view

    environment = describe_environment()
    print_result(environment_view(environment), lambda: environment)
