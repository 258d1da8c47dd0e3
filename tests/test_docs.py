"""What the pages say must be so: tables against the code, links against the files."""

import dataclasses
import re
from pathlib import Path

import pytest
import timm

import xnext
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.models import MetaNeXtConfig, NexceptionPyramidConfig, XceptionConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def readme_rows() -> dict[str, tuple[str, str, str]]:
    row = re.compile(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE)
    return {name: rest for name, *rest in row.findall((ROOT / "README.md").read_text())}


def test_the_readme_lists_every_network():
    assert set(readme_rows()) == {n for n in xnext.list_models() if not n.endswith("_debug")}


@pytest.mark.parametrize("name", sorted(readme_rows()))
def test_the_readme_table_is_what_the_networks_have(name):
    size, params, macs = readme_rows()[name]
    model = timm.create_model(name, device="meta")
    input_size = tuple(model.pretrained_cfg["input_size"])
    assert input_size == (3, int(size), int(size))
    assert params == f"{count_parameters(model) / 1e6:.2f}"
    assert macs == f"{count_macs(model, input_size) / 1e9:.3f}"


@pytest.mark.parametrize("config", [XceptionConfig, NexceptionPyramidConfig, MetaNeXtConfig])
def test_every_field_of_a_config_is_documented(config):
    page = (ROOT / "docs" / "models.md").read_text()
    assert not [field.name for field in dataclasses.fields(config) if f"`{field.name}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
