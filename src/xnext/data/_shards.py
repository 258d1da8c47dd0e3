"""WebDataset shards: tar files in which the files of one sample have one name and different endings."""

import copy
import glob
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from xnext.data._decode import image_extensions, read_image
from xnext.data._labels import join_parts, number_labels
from xnext.data._sources import ImageData, ImageSource, digest, unlabelled, user_path
from xnext.errors import UserError, suggest

_REMOTE = re.compile(r"pipe:|\w+://", re.IGNORECASE)
_BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}")
# Of a/b.seg.png the key is a/b and the ending seg.png; names that begin with a dot are hidden.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh91AY": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_BLOCK = 512  # bytes
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)

_Labels = tuple[tuple[int | str, ...], bool]  # the labels of a picture, and whether it may have several


class _Sample(NamedTuple):
    """A picture in a shard: where it lies and what it shows."""

    shard: str
    member: str
    start: int
    size: int
    labels: tuple[int | str, ...]
    several: bool

    @property
    def name(self) -> str:
        return f"{self.shard}:{self.member}"


class ShardSource(ImageSource):
    """Pictures in tar files, each read from its place.

    WebDataset streams its shards, shuffles within a buffer, and guesses how many samples a process will see.
    Here the place of every picture is known beforehand. So the length is exact, the order of an epoch is
    drawn over all shards, and each process of a distributed run takes its exact share of every epoch.

    A shard is opened for each picture, as a file is: nothing is left to share when a process forks, or to
    leave out when the source is pickled.

    Args:
        samples: The pictures.
        labels: As ``ImageSource.labels``.
    """

    def __init__(self, samples: Sequence[_Sample], labels: np.ndarray):
        self._names = [(sample.shard, sample.member) for sample in samples]
        self._spans = np.array([(sample.start, sample.size) for sample in samples], dtype=np.int64)
        self.labels = labels

    def name(self, index: int) -> str:
        """Return the shard of picture ``index`` and its name there."""
        return ":".join(self._names[index])

    def content(self, index: int) -> bytes:
        """Read picture ``index`` from its shard."""
        start, size = self._spans[index].tolist()
        return read_image(Path(self._names[index][0]), self.name(index), start, size)

    def part(self, begin: int, end: int) -> "ShardSource":
        """Return the pictures from ``begin`` to before ``end``."""
        part = copy.copy(self)
        part._names, part._spans = self._names[begin:end], self._spans[begin:end]
        part.labels = self.labels[begin:end]
        return part

    def fingerprint(self) -> str:
        """Return what differs where a picture has another name, or lies elsewhere in its shard."""
        return digest([super().fingerprint(), str(self._spans.tolist())])


def load_shards(spec: str, target: str, options: dict[str, str], seed: int) -> ImageData:
    """Load ``wds:TARGET``; see ``load_data`` for the options.

    Args:
        spec: The whole spec, for errors.
        target: A pattern of tar files.
        options: Any of ``val`` and ``classes``.
        seed: Decides the split where there are no shards to hold out.

    Raises:
        UserError: A shard is missing or damaged, or a sample has no picture or no label.
    """
    patterns = [target, options["val"]] if "val" in options else [target]
    classes = _read_classes(user_path(options["classes"])) if "classes" in options else None
    shards = [_find_shards(spec, pattern) for pattern in patterns]
    with ThreadPoolExecutor() as pool:
        parts = [list(chain.from_iterable(pool.map(_index_shard, files))) for files in shards]
    for part, pattern in zip(parts, patterns, strict=True):
        if not part:
            raise UserError(f"{spec}: no sample in {pattern}; each has a picture and its .cls or .json")
    several = _check_alike(spec, list(chain.from_iterable(parts)))
    names = [_name_labels(part, classes) for part in parts]
    found, labels = number_labels(
        names if several else [[name for (name,) in part] for part in names], several, classes
    )
    sources = [ShardSource(part, each) for part, each in zip(parts, labels, strict=True)]
    return join_parts(spec, found, sources, seed)


def shard_pictures(spec: str, target: str, options: dict[str, str]) -> ShardSource:
    """Return the pictures of ``wds:TARGET``, whatever is said of them there.

    Raises:
        UserError: A shard is missing or damaged, or there is no picture.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(_index_shard, labelled=False), _find_shards(spec, target))
        samples = list(chain.from_iterable(found))
    if not samples:
        raise UserError(f"{spec}: no picture in {target}")
    return ShardSource(samples, unlabelled(len(samples)))


def absolute_pattern(pattern: str) -> str:
    """Return a pattern of shards that names the same files from any working folder."""
    if user_path(next(_expand(pattern))).is_absolute():
        return pattern
    return f"{glob.escape(str(Path.cwd()))}/{pattern}"


def _expand(pattern: str) -> Iterator[str]:
    """Yield what the braces of a pattern stand for: ``{a,b}``, and ``{008..127}`` with its zeros."""
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    first, last, choices = found.groups()
    if choices is None:
        low, high = sorted((int(first), int(last)))
        padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        parts: Iterable[str] = (f"{number:0{width}}" for number in range(low, high + 1))
    else:
        parts = choices.split(",")
    for part in parts:
        yield from _expand(pattern[: found.start()] + part + pattern[found.end() :])


def _find_shards(spec: str, pattern: str) -> list[Path]:
    """Return the files of a pattern, each once."""
    if _REMOTE.match(pattern):
        raise UserError(
            f"{spec}: shards are read from local files; copy those of {pattern} to a folder first"
        )
    found: dict[Path, None] = {}
    for text in _expand(pattern):
        path = user_path(text)
        if path.is_dir():
            raise UserError(f"{spec}: {path} is a folder; name its shards, as in wds:{path}/*.tar")
        # Path.glob takes no absolute pattern.
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207
        if not matches:
            raise UserError(f"{spec}: no shard {path}; check the pattern")
        found.update(dict.fromkeys(matches))
    return list(found)


def _index_shard(path: Path, labelled: bool = True) -> list[_Sample]:
    """List the samples of a shard by its headers; of their contents, labels alone are read.

    Args:
        path: The shard.
        labelled: Whether each needs a label; else labels do not count.
    """
    try:
        with path.open("rb") as file:
            samples = _group_members(file)
    except Exception as error:  # of the file, and whatever damaged headers lead tarfile to
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as a tar file ({reason})") from error
    found = [_read_sample(path, key, members, labelled) for key, members in samples.items()]
    return [sample for sample in found if sample]


def _read_sample(path: Path, key: str, members: dict[str, Any], labelled: bool) -> _Sample | None:
    """Return one sample, or nothing for files beside the samples, such as a README."""
    images = [ending for ending in members if f".{ending}" in image_extensions()]
    labels = [ending for ending in _LABELS if ending in members and labelled]
    if not images and not labels:
        return None
    try:
        if len(images) != 1:
            raise ValueError(f"it has {len(images) or 'no'} pictures")
        found = next(filter(None, (_LABELS[ending](members[ending]) for ending in labels)), None)
        if not found and labelled:
            raise ValueError("it has no label: neither .cls, nor label or labels in .json")
    except (ValueError, RecursionError) as error:
        holds = ", ".join(f".{ending}" for ending in members)
        raise UserError(f"{path}: sample {key!r} (of {holds}): {error}") from error
    image = members[images[0]]
    return _Sample(str(path), image.name, image.offset_data, image.size, *(found or ((), False)))


def _group_members(file: BinaryIO) -> dict[str, dict[str, Any]]:
    """Return the samples of a shard: for each key and ending the member, or the bytes of a label.

    Raises:
        ValueError: The file is no whole tar file; tarfile raises others.
    """
    head = file.read(_BLOCK)
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"it is compressed, and pictures are read from their places: decompress it with {program}"
            )
    file.seek(0)
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0:  # would lead back to an earlier member, again and again
                raise ValueError(f"the header of {member.name!r} is damaged")
            match = _MEMBER.fullmatch(member.name)
            if not match or not member.isreg() or member.issparse():
                continue
            sample, ending = samples.setdefault(match[1], {}), match[2].lower()
            if ending in sample:
                raise ValueError(f"sample {match[1]!r} has more than one .{ending}")
            sample[ending] = member
            if ending in _LABELS:
                file.seek(member.offset_data)
                sample[ending] = file.read(member.size)
        # Where tarfile meets a damaged header it stops as at the end, which is a block of zeros.
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError("it is truncated or damaged; copy it again")
    return samples


def _read_cls(content: bytes) -> _Labels:
    """Return the class that a text gives, by number or by name."""
    text = content.decode().strip()
    return (_check_label(int(text) if _WHOLE.fullmatch(text) else text),), False


def _read_json(content: bytes) -> _Labels | None:
    """Return what stands under ``label`` or ``labels``, if one does."""
    values = json.loads(content)
    if not isinstance(values, dict):
        return None
    if "label" in values:
        return (_check_label(values["label"]),), False
    if "labels" not in values:
        return None
    if not isinstance(values["labels"], list):
        raise ValueError("its labels are no list")
    return tuple(map(_check_label, values["labels"])), True


_LABELS: dict[str, Callable[[bytes], _Labels | None]] = {"cls": _read_cls, "json": _read_json}


def _check_label(label: Any) -> int | str:
    if isinstance(label, str) and label.strip():
        label.encode()  # raises where a letter is half a surrogate pair, which nothing could print
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return label
    raise ValueError(f"its label {label!r} is neither a class number nor a name")


def _check_alike(spec: str, samples: Sequence[_Sample]) -> bool:
    """Return whether samples have several labels each. All or none must, and all be numbers or names."""
    amounts: dict[bool, _Sample] = {}
    kinds: dict[type, _Sample] = {}
    for sample in samples:
        amounts.setdefault(sample.several, sample)
        for label in sample.labels:
            kinds.setdefault(type(label), sample)
    if len(amounts) == 2:
        one, several = amounts[False].name, amounts[True].name
        raise UserError(f"{spec}: {one} has one label and {several} a list of them; write all alike")
    if len(kinds) == 2:
        number, name = kinds[int].name, kinds[str].name
        raise UserError(f"{spec}: {number} has a number as label and {name} a name; write all alike")
    return samples[0].several


def _read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one a line."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text; save it as UTF-8") from error
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: must name each class once, one a line, without empty lines between them")
    return tuple(names)


def _name_labels(samples: Sequence[_Sample], classes: Sequence[str] | None) -> list[list[str]]:
    """Return the names of each sample's classes."""
    if classes is None:
        return [[str(label) for label in sample.labels] for sample in samples]
    names = dict(enumerate(classes)) | {name: name for name in classes}
    for sample in samples:
        for label in sample.labels:
            if label not in names:
                near = suggest(label, classes) if isinstance(label, str) else ""
                raise UserError(
                    f"{sample.name}: label {label!r} is none of the {len(classes)} given classes.{near}"
                )
    return [[names[label] for label in sample.labels] for sample in samples]
