"""The page to try networks on: what it shows of good pictures, and how it survives every bad one."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
import torch
from samples import UNREADABLE, UNUSUAL, picture, save_bytes

import xnext
from xnext import cli
from xnext.cli._measured import load_networks
from xnext.evaluation.predict import knows_its_network
from xnext.models import read_metadata, save_checkpoint

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")

# The command, in a process that tells whom it calls.
TELLING = """
import sys
sys.addaudithook(lambda event, what: event == "socket.connect" and print("calls", what[1], file=sys.stderr))
from xnext.cli import main
sys.exit(main(sys.argv[1:]))
"""
ODD = ("<b>cat", "dog", "owl", "<i>", "bee", "ant")


@pytest.fixture(scope="module")
def blind(trained, tmp_path_factory):
    """A checkpoint of a network that looks nowhere, with an odd name of a class."""
    path = tmp_path_factory.mktemp("weights") / "blind.safetensors"
    model = xnext.create_model("xception_debug", num_classes=len(ODD))
    with torch.no_grad():
        model.head.fc.weight.zero_()
        model.head.fc.bias.copy_(torch.arange(len(ODD), 0, -1))
    metadata = read_metadata(trained / "checkpoints" / "best.safetensors")
    save_checkpoint(
        path, model, model_name="xception_debug", model_args={}, classes=ODD,
        preprocessing=metadata["preprocessing"],
    )  # fmt: skip
    return path


@contextmanager
def served(*words, ended_by=signal.SIGINT, folder, refusals=False):
    """Serve the page; at the end stop it by a signal and check what was said and left behind."""
    command = [sys.executable, "-c", TELLING, "demo", *map(str, words), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            line = process.stdout.readline()
            yield re.fullmatch(r"open (http://127\.0\.0\.1:\d+) in a browser; Ctrl-C ends it\n", line)[1]
            process.send_signal(ended_by)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + ended_by
    assert out == "" and "calls" not in errors and (refusals or not errors), errors
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def address(trained, blind, tmp_path_factory):
    limits = ["--max-megabytes", "1", "--max-megapixels", "1"]
    folder = tmp_path_factory.mktemp("uploads")
    with served("--checkpoint", trained, blind, *limits, folder=folder, refusals=True) as found:
        yield found


@pytest.fixture(scope="module")
def classify(address, tmp_path_factory):
    """Return what sends a file as programs do and returns the line and what both networks say."""
    client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
    folder = tmp_path_factory.mktemp("pictures")

    def send(name, content):
        (folder / name).write_bytes(content)
        upload, *rest = client.predict(gradio_client.handle_file(folder / name), api_name="/classify")
        assert upload is None, "there is room for the next one"
        return rest

    return send


def test_what_is_said_of_a_picture(classify):
    line, seeing, blind = classify("a.png", save_bytes("PNG"))
    assert line == '<p role="status">a.png, 24 × 20 pixels</p>'
    shares = [float(share) for share in re.findall(r"<td>([\d.]+) %", seeing)]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=0.1) and shares == sorted(shares)[::-1]
    assert seeing.count("<img") == 2 and "no place stands out" not in seeing
    assert re.search(r"\d+\.\d ms: median of 5 forward passes of this picture alone, on \w+", seeing)
    assert (
        blind.count("<td>") == 5 * 3
        and "<td>&lt;b&gt;cat</td>" in blind
        and "where it looks for &lt;b" in blind
    )
    assert blind.count("<img") == 1 and "no place stands out" in blind


def test_every_bad_file_gets_one_line(classify):
    for name, content in UNREADABLE.items():
        line, *answers = classify(name, content)
        assert line.startswith(f'<p class="error" role="alert">{name}: ') and line.count("<") == 2
        assert answers == ["", ""]


def test_an_unusual_picture_is_no_mistake(classify):
    sizes = {"exif-rotated.jpg": "20 × 24", "16-bit.png": "30 × 20", "one-pixel.png": "1 × 1"}
    for name, content in UNUSUAL.items():
        line, *answers = classify(name, content)
        assert line == f'<p role="status">{name}, {sizes.get(name, "24 × 20")} pixels</p>'
        assert [answer.count("<img") for answer in answers] == [2, 1]


def test_limits_of_size(address, classify):
    line, *_ = classify(
        "large.png", save_bytes("PNG", image=picture(mode="L", size=(1001, 1000)).point(bool))
    )
    assert "larger than 1 megapixels" in line
    for size, code in ((2**20, 200), (2**20 + 1, 413)):
        reply = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", bytes(size))})
        assert reply.status_code == code, reply.text


def test_only_what_was_uploaded_is_read(address):
    endpoint = f"{address}/gradio_api/call/classify"
    for data, said in (
        ({"path": "http://127.0.0.1:9/a.png"}, "an address is not fetched"),
        ({"path": "http://127.0.0.1:9/a.png", "is_stream": True}, "cannot be opened"),
        ({"path": __file__}, "it was not uploaded by a user"),
        ({"path": __file__, "is_stream": True}, "it was not uploaded by a user"),
        (None, "there is no picture"),
    ):
        sent = data and data | {"meta": {"_type": "gradio.FileData"}}
        event = httpx.post(endpoint, json={"data": [sent]}).json()["event_id"]
        assert said in httpx.get(f"{endpoint}/{event}", timeout=60).text
    assert httpx.get(f"{address}/gradio_api/file={__file__}").status_code == 403


def test_the_page_in_a_browser(browser_page, address, tmp_path):
    for name, content in (
        ("good.png", save_bytes("PNG")),
        ("bad.jpg", b"no picture"),
        ("again.webp", save_bytes("WEBP")),
    ):
        (tmp_path / name).write_bytes(content)
    with browser_page(address) as page:
        upload = page.locator("input[type=file]")
        page.locator("h2").nth(1).wait_for()
        assert page.locator("h2").all_inner_texts() == ["inceptionnext_debug", "xception_debug"]
        upload.set_input_files(tmp_path / "good.png")
        page.get_by_text("good.png, 24 × 20 pixels").wait_for()
        pictures = page.locator(".said img")
        assert pictures.count() == 3
        assert min(pictures.evaluate_all("all => all.map(one => one.naturalWidth)")) > 100
        assert page.get_by_text("<b>cat", exact=True).count() == 1, "a name is no HTML"
        assert page.get_by_text("ms: median of 5").count() == 2
        upload.set_input_files(tmp_path / "bad.jpg")
        page.get_by_text("bad.jpg: is no image").wait_for()
        assert pictures.count() == 0
        upload.set_input_files(tmp_path / "again.webp")
        page.get_by_text("again.webp, 24 × 20 pixels").wait_for()
        assert pictures.count() == 3
        strange = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
        assert not strange, "it asks nobody else"
        blocked = "fetch('https://example.org').then(() => 'fetched', () => 'blocked')"
        assert page.evaluate(blocked) == "blocked"
        assert any("Content Security Policy" in one for one in page.complaints)


@pytest.mark.slow
def test_it_ends_by_sigterm_with_a_browser_on_it(trained, browser_page, tmp_path):
    words = ["--checkpoint", trained]
    with ExitStack() as later, served(*words, ended_by=signal.SIGTERM, folder=tmp_path) as address:
        page = later.enter_context(browser_page(address))
        page.locator("h2").wait_for()


def test_a_port_in_use(fails, trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(
            "demo", "--checkpoint", trained, "--port", port, names=[port, "Address already in use", "--port"]
        )


def test_without_gradio(fails, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "xnext.demo", raising=False)
    fails("demo", "--checkpoint", trained, names=["pip install 'xnext[demo]'"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["--checkpoint", "--model", "xnext demo --help"]),
        (["--checkpoint", "a", "b", "c"], ["one network or two"]),
        (["--checkpoint", "none"], ["no run and no weight file", "none"]),
        (["--model", "xception_debu"], ["'xception_debug'"]),
        (["--model", "xception_debug"], ["no hub has weights for xception_debug"]),
        (["--checkpoint", "none", "--max-megapixels", "90"], ["--max-megapixels", "89"]),
        (["--checkpoint", "none", "--max-megabytes", "0"], ["--max-megabytes", "0"]),
        (["--checkpoint", "none", "--port", "65536"], ["--port", "65536"]),
        (["--checkpoint", "none", "--host", "no.such.host.invalid"], ["no.such.host.invalid", "--host"]),
        (["--checkpoint", "none", "--hots", "x"], ["--hots", "'--host'"]),
    ],
)
def test_words_that_are_wrong(fails, words, names):
    fails("demo", *(words if "--port" in words else [*words, "--port", "0"]), names=names)


def test_a_model_is_of_the_checkpoint_that_needs_one(trained, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    torch.save(xnext.create_model("xception_debug").state_dict(), weights)
    assert not knows_its_network(weights)
    asked = []
    monkeypatch.setattr(
        cli._measured, "load_classifier",
        lambda *words: asked.append(words) or type("Network", (), {"name": "x"}),
    )  # fmt: skip
    for checkpoints, models, expected in (
        ([trained], [], [(trained, None)]),
        ([], ["a", "b"], [(None, "a"), (None, "b")]),
        ([weights], ["a"], [(weights, "a")]),
        ([trained], ["a"], [(trained, None), (None, "a")]),
        ([trained, weights], ["a"], [(trained, None), (weights, "a")]),
        ([weights, weights], ["a", "b"], [(weights, "a"), (weights, "b")]),
    ):
        asked.clear()
        sources = [source for source, _ in load_networks(checkpoints, models, "demo")]
        assert asked == expected
        assert sources == [str(path or "published weights") for path, _ in expected]
