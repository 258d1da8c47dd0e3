"""The one exception that means "the user can fix this", and how it speaks of names."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with the candidates nearest to ``name``, or an empty string."""
    names = {other.lower(): other for other in candidates}
    name = str(name).lower()  # in a file it may be a number
    longer = [other for other in names if len(name) > 2 and other.startswith(name)]
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    near = [names[other] for other in dict.fromkeys(longer + close)][:3]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return names as ``'a', 'b' and 3 more``."""
    rest = len(names) - limit
    return ", ".join(map(repr, names[:limit])) + (f" and {rest} more" if rest > 0 else "")


def shown(name: str) -> str:
    """Return a name that stays on its line, of a table or a page."""
    return name if name.isprintable() else repr(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether there was too little memory, of the host or of a device."""
    import torch  # which most commands that end with a mistake have no need of

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
