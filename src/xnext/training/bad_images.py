"""Training goes on beside a few unreadable images, lists them, and stops when they are too many."""

from collections.abc import Iterable

from xnext.data import ImageSource
from xnext.errors import UserError
from xnext.training.run import Run

_NAMED_IN_ERROR = 3


class BadImages:
    """The unreadable images of one source, each listed once in the run's `bad_images.txt`."""

    def __init__(self, run: Run | None, source: ImageSource, limit: float = 1.0) -> None:
        """Start with none.

        Args:
            run: Where they are listed; None lists them nowhere.
            source: What the indices belong to.
            limit: Share of the source, 0 to 1, above which the run stops.
        """
        self._run = run
        self._source = source
        self._limit = limit
        self._names: dict[int, str] = {}

    @property
    def indices(self) -> list[int]:
        """Indices in the order in which they were found."""
        return list(self._names)

    @property
    def names(self) -> list[str]:
        """File names in the order in which they were found."""
        return list(self._names.values())

    def clear(self) -> None:
        """Forget all of them."""
        self._names = {}

    def add(self, indices: Iterable[int]) -> None:
        """List images by their index in the source; one that is listed already is left out.

        Raises:
            UserError: More of the source is unreadable than the limit allows.
        """
        new = {index: self._source.name(index) for index in indices if index not in self._names}
        if not new:
            return
        self._names |= new
        if self._run is not None:
            self._run.append_bad_images(new.values())
        check_bad_images(self.names, len(self._source), self._limit)


def check_bad_images(names: list[str], images: int, limit: float) -> None:
    """Stop a training on too many unreadable images.

    Args:
        names: File names of the unreadable images.
        images: Number of training images, the unreadable ones included.
        limit: Share of them, 0 to 1, that may be unreadable.

    Raises:
        UserError: There are more; the line names the first files and the option.
    """
    if len(names) > limit * images:
        shown = ", ".join(names[:_NAMED_IN_ERROR]) + (", …" if len(names) > _NAMED_IN_ERROR else "")
        raise UserError(
            f"{len(names)} of {images} training images cannot be read ({shown}), more than"
            f" --max-bad-images {limit:g} allows; repair or remove them, or raise the limit,"
            " which lists all in the run's bad_images.txt"
        )
