"""Checkpoint conversion by tables of invertible rules.

`convert` runs `readers` (bytes to named tensors), `registry` (detect source and form), `rules` with `names` and
`layouts` (translate to our names), `config_building`, `labels`, `preprocessing`, and `strict_loading`. `export` applies
the inverse table. `staging` checks and locks outputs.

A new source is one module with a `source.Source`: its forms, each with characteristic names and a table of rules, and
the constants of the reference's code. An `Architecture` lists it in `conversions`; no other code needs to change.
"""
