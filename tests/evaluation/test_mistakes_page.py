"""The worst and the most surprising mistakes, and the page that shows them."""

import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import ImageNetInfo

import xnext
from xnext import cli
from xnext.evaluation import cam
from xnext.evaluation import mistakes_page as module
from xnext.evaluation.answers import Answers
from xnext.evaluation.mistakes import Mistakes
from xnext.models import save_checkpoint

CLASSES = ("<b>cat", 'dog & "co"', "owl")
PREPROCESSING = {
    "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
    "in_chans": 3,
}  # fmt: skip


def answers_of(labels, said, confidence, loss) -> Answers:
    """Return answers to images with one right class each."""
    count, classes = len(labels), 2 + max(*labels, *said)
    top = np.array([[first, (first + 1) % classes] for first in said])
    return Answers(
        right=np.eye(classes, dtype=bool)[list(labels)], top=top, confidence=np.array(confidence),
        loss=np.array(loss), nearest=np.array(labels), sources=np.arange(count), bad_images=[],
    )  # fmt: skip


def test_the_worst_are_not_the_most_surprising():
    # Class 0 is always recognised but once; class 1 is mostly taken for 2, with greater losses.
    labels = [0] * 10 + [1] * 10
    said = [0] * 9 + [3] + [1] * 2 + [2] * 8
    confidence = [0.9] * 9 + [0.8] + [0.9] * 10
    loss = [0.1] * 9 + [1.8] + [0.1] * 2 + [3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3]
    mistakes = Mistakes.of(answers_of(labels, said, confidence, loss))
    assert mistakes.places.tolist() == [9, *range(12, 20)]
    assert mistakes.worst(2) == [1, 2] and mistakes.most_surprising(2) == [0, 1]
    assert mistakes.worst(99)[-1] == 0
    assert mistakes.recognised[:2].tolist() == [[9, 9], [2, 9]]
    assert mistakes.trusted[:2].tolist() == [[0, 0], [0, 7]]
    assert mistakes.surprise[:2] == pytest.approx([0.8 * 10 / 11 * 1 / 2, 0.9 * 3 / 11 * 1 / 9])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_others_are_counted_without_the_image_itself(pairs):
    labels, said = zip(*pairs, strict=True)
    mistakes = Mistakes.of(answers_of(labels, said, [0.5] * len(pairs), [1.0] * len(pairs)))
    assert mistakes.places.tolist() == [place for place, (right, first) in enumerate(pairs) if right != first]
    for place, recognised, trusted in zip(
        mistakes.places, mistakes.recognised.tolist(), mistakes.trusted.tolist(), strict=True
    ):
        right, first = pairs[place]
        others = pairs[:place] + pairs[place + 1 :]
        assert recognised == [others.count((right, right)), sum(one == right for one, _ in others)]
        assert trusted == [others.count((first, first)), sum(one == first for _, one in others)]
    assert all(0 < value < 1 for value in mistakes.surprise)


@pytest.fixture
def images(tmp_path):
    """Return a folder of three classes with odd names, two held-out images each."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in CLASSES:
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"<i>{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def checkpoint(tmp_path):
    """Return what writes a network that gives one answer to all, and if blind looks nowhere."""

    def write(said=1, blind=False, path=tmp_path / "network.safetensors", classes=CLASSES, **extra):
        torch.manual_seed(0)
        model = xnext.create_model("inceptionnext_debug", num_classes=len(classes))
        with torch.no_grad():
            model.head.fc.weight.mul_(not blind)
            model.head.fc.bias.copy_(8.0 * (torch.arange(len(classes)) == said))
        save_checkpoint(
            path, model, model_name="inceptionnext_debug", model_args={}, classes=classes,
            preprocessing=PREPROCESSING, extra=extra,
        )  # fmt: skip
        return path

    return write


class Page(HTMLParser):
    """What a page holds: its text, its tags and its pictures."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.alts = "", [], []
        self.source = path.read_text()
        self.feed(re.sub("<style>.*?</style>", "", self.source, flags=re.DOTALL))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            assert dict(attrs)["src"].startswith("data:image/jpeg;base64,")
            self.alts.append(dict(attrs)["alt"])

    def handle_data(self, data):
        self.text += data + " "


def errors(capsys, *words):
    """Run the command, which must succeed; return what it printed."""
    code = cli.main(["errors", *map(str, words)])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out.splitlines()


def test_the_page_shows_every_mistake_once_and_nothing_is_taken_for_html(
    capsys, images, checkpoint, tmp_path
):
    (images / "val" / "owl" / "bad.png").write_bytes(b"nothing")
    output = tmp_path / "page.html"
    summary, bad, wrote = errors(capsys, checkpoint(), "--data", images, "--output", output)
    assert summary == "6 images, 4 mistakes, top-1 33.33 %"
    assert bad.endswith("bad.png") and bad.startswith("unreadable, not counted: ")
    assert wrote == f"wrote {output}"
    page = Page(output)
    assert summary in page.text and "Unreadable, not counted:" in page.text and "bad.png" in page.text
    assert page.text.count("shown above as number") == 4 and len(page.alts) == 12
    assert "i" not in page.tags and page.tags.count("b") == 8, "names are text"
    assert page.text.count("<i>") == 8 and "img" in page.tags
    assert page.alts[:3] == ["the image", 'map for dog & "co"', "map for <b>cat"]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.source), "it asks the network for nothing"


def test_numbers_are_those_of_the_network(capsys, images, checkpoint, tmp_path):
    """It answers the second class with 99.93 %: the others get 0.03 % and a loss of 8."""
    output = tmp_path / "page.html"
    summary, _ = errors(capsys, checkpoint(blind=True), "--data", images, "--output", output, "--count", "3")
    page = Page(output)
    assert summary == "6 images, 4 mistakes, top-1 33.33 %"
    assert page.text.count("99.93 %") == 3 and page.text.count("0.03 %") == 3
    assert page.text.count("loss 8.00; 0 of 1 other images of") == 6
    assert page.text.count('2 of 5 other answers dog & "co" right') == 6
    assert "In 4 of the mistakes the network is at least 95% sure of its answer" in page.text
    assert 'owl taken for dog & "co" : 2' in page.text or 'owl taken for dog & "co": 2' in page.text
    assert page.text.count("no place stands out") == 6 and len(page.alts) == 3, "what is silent is not drawn"


def test_without_mistakes_the_page_says_so(capsys, images, checkpoint, tmp_path):
    rows = ["path,label,split"]
    for name in CLASSES:
        folder = name.replace('"', '""')
        parts = ("train", "val") if name == "owl" else ("train",)
        rows += [f'"{part}/{folder}/<i>0.png","{folder}",{part}' for part in parts]
    (images / "table.csv").write_text("\n".join(rows))
    output = tmp_path / "page.html"
    words = [checkpoint(said=2), "--data", images / "table.csv", "--output", output]
    assert errors(capsys, *words)[0] == "1 image, no mistake, top-1 100.00 %"
    page = Page(output)
    assert "1 image, no mistake, top-1 100.00 %" in page.text
    assert "h2" not in page.tags and not page.alts


def test_a_run_gets_the_page_of_its_own_images(capsys, images, checkpoint, monkeypatch, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("model: inceptionnext_debug")
    best = checkpoint(
        path=tmp_path / "run" / "checkpoints" / "best.safetensors", train_config={"data": str(images)}
    )
    monkeypatch.chdir(tmp_path)
    assert errors(capsys, "run")[-1] == "wrote run/errors.html"
    assert f"run on {images}" in Page(tmp_path / "run" / "errors.html").text
    assert errors(capsys, best)[-1] == "wrote errors.html"


def test_of_a_set_of_fewer_classes_their_own_names_are_told(capsys, monkeypatch, tmp_path):
    """ImageNet-A's first class is stingray, the seventh of ImageNet's."""
    names = [name.split(",")[0] for name in ImageNetInfo().label_descriptions()]
    model = xnext.create_model("xception_debug", num_classes=1000)
    with torch.no_grad():
        model.head.fc.bias.zero_()
        model.head.fc.bias[names.index("stingray")] = 99
        model.head.fc.bias[0] = 999  # a class that ImageNet-A has not
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for wnid in ("n01498041", "n01531178"):
        (tmp_path / "a" / wnid).mkdir(parents=True)
        Image.new("RGB", (64, 64), "teal").save(tmp_path / "a" / wnid / "one.png")
    asked = []
    monkeypatch.setattr(module, "explain", lambda *words: asked.append(words[2]) or cam.explain(*words))
    output = tmp_path / "page.html"
    words = ["--checkpoint", tmp_path / "weights.pth", "--model", "xception_debug", "--set", "a", "--tta"]
    lines = errors(capsys, *words, "--data", tmp_path / "a", "--output", output)
    assert lines[0] == "2 images, 1 mistake, top-1 50.00 %"
    assert "1. goldfinch taken for stingray" in Page(output).text
    assert asked == [[names.index("stingray")], [names.index("goldfinch")]], (
        "the answer, then the right class"
    )


def test_several_classes_an_image_are_refused(capsys, images, checkpoint, tmp_path):
    rows = [f"{part}/owl/<i>0.png,bird|owl,{part}" for part in ("train", "val")]
    (images / "table.csv").write_text("\n".join(["path,labels,split", *rows]))
    path = checkpoint(classes=("bird", "owl"), multilabel=True)
    assert cli.main(["errors", str(path), "--data", str(images / "table.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{images / 'table.csv'} has several classes an image" in line


def test_a_name_that_is_no_text(capsys, images, checkpoint, tmp_path):
    odd = images / "val" / "owl" / os.fsdecode(b"not-utf8-\xff.png")
    (images / "val" / "owl" / "<i>0.png").rename(odd)
    (images / "val" / "owl" / "<i>1.png").rename(odd.with_name("two\nlines.png"))
    output = tmp_path / "page.html"
    errors(capsys, checkpoint(said=0), "--data", images, "--output", output)
    assert "not-utf8-\\udcff.png" in Page(output).text and "two\\nlines.png" in Page(output).text


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_every_picture(browser_page, capsys, images, checkpoint, tmp_path, width):
    output = tmp_path / "page.html"
    errors(capsys, checkpoint(), "--data", images, "--output", output)
    with browser_page(output.as_uri(), viewport={"width": width, "height": 800}) as page:
        sizes = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        assert len(sizes) == 12 and min(sizes) > 100
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        assert [url for url in page.asked if not url.startswith("data:")] == [output.as_uri()]
        assert not page.complaints


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--output", "page.png"], ["page.png", ".html"]),
        (["--output", "none/page.html"], ["none/page.html", "folder does not exist"]),
        (["--output", "folder.html"], ["folder.html", "there is a folder of that name"]),
        (["--count", "0"], ["--count", "0"]),
        (["--set", "imagenet-a"], ["--set", "'imagenet'"]),
        (["--set", "a"], ["1000 classes", "3"]),
        (["--set", "corrupted"], ["--set 'corrupted' is unknown"]),
        (["--model", "xception_debug"], ["inceptionnext_debug", "xception_debug"]),
    ],
)
def test_mistakes_of_words(capsys, images, checkpoint, monkeypatch, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    path, before = checkpoint(), sorted(tmp_path.iterdir())
    assert cli.main(["errors", str(path), "--data", str(images), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in named), line
    assert sorted(tmp_path.iterdir()) == [*before]
