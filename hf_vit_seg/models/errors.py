"""The base class of the errors that users see as one sentence.

It is defined here, among the files that the Hub copies, so that a model loaded from there raises it too. Everything
else imports it from `hf_vit_seg.errors`.
"""


class HfVitSegError(ValueError):
    """Input that cannot be used: what was found, what was expected, and how to fix it, in one sentence.

    Any other exception is a bug, of this package or of a library: commands show its traceback and exit with code 70.
    """
