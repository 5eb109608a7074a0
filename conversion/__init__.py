"""Checkpoint conversion: tables of rules, read forwards and backwards.

The way of a checkpoint: `readers` (bytes to named tensors) -> `registry` (which source and form) -> `rules` with
`names` and `layouts` (to our names) -> `config_building`, `labels`, `preprocessing` (what describes the model) ->
`strict_loading` -> `staging` (all or nothing on disk). `convert` walks it, `export` walks the same table back.

A new source is one module with a `source.Source` in it: its forms, each with the names that tell it apart and its
table of rules, and the numbers that the reference has in its code. An `Architecture` names it in `conversions`, and
it is found, read, reported and exported like the others; nothing here knows any by name.
"""
