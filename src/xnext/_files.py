"""The one way this project writes a file: whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from xnext.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file size limit is reached; raise it",
    errno.EACCES: "no permission to write there; choose another place",
    errno.EPERM: "no permission to write there; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "the folder does not exist; create it",
    errno.ENOTDIR: "a part of the path is not a folder; choose another place",
    errno.EISDIR: "there is a folder of that name; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class WriteError(UserError):
    """A file that cannot be written."""


def is_unwritable(error: BaseException) -> bool:
    """Whether nothing can be written, of which whatever was to be written is innocent."""
    return isinstance(error, WriteError) or (isinstance(error, OSError) and error.errno in _FULL)


def write_error(path: Path, error: OSError) -> WriteError:
    """Turn a failed write to ``path`` into the line that tells the user what to do."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    if error.errno == errno.ENOENT and path.parent.exists():
        reason = "nothing can be created in that folder; choose another place"
    return WriteError(f"cannot write {path}: {reason}")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: The folder cannot be created; the line names it and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that a kill at any instant leaves the old file or the new one, never a part.

    Raises:
        UserError: The file cannot be written; an earlier file of that name is untouched.
    """
    save_atomic(path, lambda temporary: temporary.write_bytes(data))


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before any work is done; nothing is left there.

    Raises:
        UserError: As :func:`write_atomic` would; the line names the file and the reason.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise write_error(path, error) from error


def save_atomic(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file beside ``path``, make it durable and rename it into place.

    Raises:
        UserError: The file cannot be written; an earlier file of that name is untouched.
    """
    temporary = None
    try:
        # Same folder, since a rename is atomic only within one file system.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a killed process left in the middle of a write."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask, which only setting it reveals (mkstemp ignores it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
