"""Commands that stress the package, `python -m tests.reliability NAME`, and write docs/reliability.md."""
