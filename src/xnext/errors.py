"""The one exception that means "the user can fix this", and the nearest names to suggest."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with the candidates nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
