"""Run timm's own model tests on this project's networks.

    python scripts/timm_tests.py [names…] [-- pytest arguments]

Fetches the source archive of the installed timm with pip (once, into .cache/), and runs its
tests/test_models.py, unchanged, with timm's list of models narrowed to this project's.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

import xnext

CACHE = Path(__file__).parents[1] / ".cache" / "timm-tests"


def fetch_tests(version: str) -> Path:
    """Return the folder of timm's source archive of this version, downloading it if need be."""
    folder = CACHE / f"timm-{version}"
    if not (folder / "tests" / "test_models.py").exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--no-binary", "timm", "--dest", CACHE, f"timm=={version}"], check=True)
        with tarfile.open(next(CACHE.glob(f"timm-{version}.tar.gz"))) as archive:
            archive.extractall(CACHE, filter="data")
    return folder


class OnlyThisProject:
    """A pytest plugin that narrows what timm's tests are parametrised with.

    Args:
        names: Models to test.
    """

    def __init__(self, names: set[str]):
        self.names = names

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests whose model is one of ours, leaving out the tests of downloads."""
        keep = [item for item in items if self._model(item) in self.names and "pretrained" not in item.name]
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep

    @staticmethod
    def _model(item: pytest.Item) -> str:
        name = getattr(item, "callspec", None) and item.callspec.params.get("model_name", "")
        return str(name).partition(".")[0]


def main() -> int:
    """Run the tests; return pytest's exit code."""
    arguments, _, pytest_arguments = " ".join(sys.argv[1:]).partition("--")
    names = set(arguments.split()) or set(xnext.list_models())
    # timm keeps lists of what has which interface by module; every network here has all of it.
    folder = fetch_tests(timm.__version__)
    tests = folder / "tests" / "test_models.py"
    list_models = timm.list_models
    timm.list_models = lambda *args, **kwargs: _with_ours(list_models, args, kwargs, names)
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={folder}", "-W", "ignore"]
    return pytest.main([*options, str(tests), *pytest_arguments.split()], plugins=[OnlyThisProject(names)])


def _with_ours(list_models: object, args: tuple, kwargs: dict, names: set[str]) -> list[str]:
    """Return timm's list, with this project's names wherever timm names modules of networks alike."""
    listed = list_models(*args, **kwargs)  # type: ignore[operator]
    return [*listed, *sorted(names - set(listed))] if "module" in kwargs else listed


if __name__ == "__main__":
    sys.exit(main())
