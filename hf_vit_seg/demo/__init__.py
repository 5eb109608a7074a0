"""Models in a browser: `hf-vit-seg demo`, and the Space in spaces/segmentation. Needs gradio (the extra "demo")."""

from typing import Any

from hf_vit_seg.loading.errors import ModelError

GRADIO = "gradio>=6.31,<7"  # as in pyproject.toml
ENVIRONMENT = "HF_VIT_SEG_MODELS"  # the variable that names models
NUCLEI = "nuclei"  # the name of the model that is built in


def launch(*models: str, port: int | None = None, share: bool = False, **options: Any) -> Any:
    """Start the demo and, unless `prevent_thread_lock` is among `options`, run until it is ended.

    `models` are local directories, exported files or Hub ids, by default those that the environment variable
    HF_VIT_SEG_MODELS names (commas or spaces between them) and the built-in nuclei model. `options` go to gradio's
    `launch`, whose result is returned. ModelError when gradio is not installed, or none of the models can be used.
    """
    try:
        from .page import start
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModelError(f"the demo needs gradio: pip install '{GRADIO}'") from None
    return start(models, port=port, share=share, **options)


__all__ = ["launch"]
