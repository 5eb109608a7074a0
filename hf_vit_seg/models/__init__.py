"""The architectures, one flat folder.

Files here import only torch, transformers, huggingface_hub, the standard library and siblings, as `from .sibling import
name`: the Hub copies exactly those files for users without this package. The only exceptions are the `plugin_*.py`
records, which no sibling imports, so the Hub never copies them.
"""
