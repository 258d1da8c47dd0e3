"""A page on this machine to try networks: what each says of a picture, where it looks, how fast it is."""

import socket
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xnext._page import escape, figure, picture
from xnext._timing import time_calls
from xnext.data import build_eval_transform, decode_image
from xnext.errors import UserError, shown
from xnext.evaluation.cam import explain, network_view, overlay
from xnext.evaluation.predict import Classifier, most_probable

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from gradio_client.utils import is_http_url_like
except ImportError as error:
    raise UserError("the page needs Gradio: pip install 'xnext[demo]'") from error

_TOP = 5  # classes
_CALLS = 5  # forward passes of which the median is told
_WAITING = 32  # pictures, of all who have the page open
_KEPT = 600  # seconds that an uploaded file is kept, at most twice
_GRACE = 1  # seconds for what is under way when the page ends

_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""What a browser may fetch for the page: nothing from elsewhere, whatever Gradio's page asks for."""

_STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important }
.name h2 { font-size: 1.2rem; margin: 0 } .name p { font-size: .8rem; opacity: .75; margin: 0 }
.name p { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.said table { width: 100%; border-collapse: collapse; font-size: .9rem; table-layout: fixed }
.said :is(table, tr, td) { border: 0 !important }
.said td { padding: .15rem .5rem .15rem 0; overflow-wrap: anywhere; vertical-align: middle }
.said td:first-child { width: 40% } .said td:last-child { width: 5rem; text-align: right }
.said .bar { background: #0072B2; height: .7rem; border-radius: .2rem; min-width: 2px }
.said .views { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; margin: .8rem 0 }
.said figure { margin: 0 } .said figcaption, .said .note { font-size: .8rem; opacity: .75 }
.said img { width: 100%; height: auto; border-radius: .3rem; margin: 0 }
.error { color: var(--error-text-color, #b3261e); font-weight: 600 }
"""


def build_page(networks: Sequence[tuple[str, Classifier]], max_megabytes: int, max_pixels: int) -> FastAPI:
    """Return the page as a web application.

    Args:
        networks: Where each network comes from, in words, and the network itself.
        max_megabytes: Largest file that is taken.
        max_pixels: Largest picture that is decoded.
    """

    def judge(path: str | None) -> list[str | None]:
        """Return an empty upload, a line about the picture, and what each network says."""
        try:
            if path is None:  # as no browser sends it
                raise UserError("there is no picture")
            image = decode_image(Path(path), Path(path).name, max_pixels)
            told = [_tell(classifier, image) for _, classifier in networks]
        except UserError as error:
            return [None, f'<p class="error" role="alert">{escape(error)}</p>', *[""] * len(networks)]
        size = f"{image.width:,} × {image.height:,} pixels"
        return [None, f'<p role="status">{escape(shown(Path(path).name))}, {size}</p>', *told]

    with gr.Blocks(title="xnext", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        limits = f"up to {max_megabytes} MB and {max_pixels / 1e6:.0f} megapixels"
        upload = gr.File(label=f"Drop a picture here ({limits})", height=140)
        _take_no_addresses(upload)
        line = gr.HTML()
        answers = []
        with gr.Row():
            for source, classifier in networks:
                with gr.Column(min_width=300):
                    gr.HTML(_head(source, classifier), elem_classes="name")
                    answers.append(gr.HTML(elem_classes="said"))
        # One picture at a time, whichever network it is for, or latencies would be those of a crowd.
        upload.upload(judge, upload, [upload, line, *answers], api_name="classify", concurrency_limit=1)
    blocks.queue(max_size=_WAITING)
    blocks.has_launched = True  # mounting forgets it, and then a client may name any file of this machine
    font = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks, "/", footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, max_file_size=max_megabytes * 2**20, css=_STYLE,
        theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip


def _take_no_addresses(upload: gr.File) -> None:
    """Let an upload refuse an address that a client sends instead of a file, which Gradio would fetch."""
    take = upload.async_move_resource_to_block_cache

    async def take_file(place: str | Path | None) -> str | None:
        if is_http_url_like(str(place)):
            raise gr.Error("an address is not fetched; send the picture itself", print_exception=False)
        return await take(place)

    # Gradio would write a file beside the module of a derived class.
    upload.async_move_resource_to_block_cache = take_file  # type: ignore[assignment]


def _head(source: str, classifier: Classifier) -> str:
    where = escape(shown(source))
    return f'<h2>{escape(shown(classifier.name))}</h2><p title="{where}">{where}</p>'


def _tell(classifier: Classifier, image: Image.Image) -> str:
    """Return what a network says of a picture, as HTML."""
    inputs = build_eval_transform(classifier.preprocessing)(image)[None].to(classifier.device)
    (classes,) = most_probable(classifier, inputs, _TOP)
    with torch.inference_mode():
        times = time_calls(lambda: classifier.model(inputs), classifier.device, _CALLS, warm_up=1)
    rows = "".join(
        f"<tr><td>{escape(shown(name))}</td>"
        f'<td><div class="bar" style="width: {100 * value:.1f}%"></div></td><td>{100 * value:.2f} %</td></tr>'
        for name, value in classes
    )
    answer, where = shown(classes[0][0]), "no place stands out"
    try:
        seen = explain(classifier, [image])
        if not seen.silent:
            where = picture(overlay(seen.views[0], seen.maps[0]), f"map for {answer}")
    except UserError as error:  # a network of which there is no map has all else
        where = escape(error)
    views = figure(
        picture(network_view(image, classifier.preprocessing), "the picture"), "what the network sees"
    )
    views += figure(where, f"where it looks for {escape(answer)}")
    return (
        f'<table>{rows}</table><div class="views">{views}</div>'
        f'<p class="note">{1e3 * statistics.median(times):.1f} ms: median of {_CALLS} forward passes of this'
        f" picture alone, on {escape(classifier.device)}</p>"
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that the page can be served on; port 0 is any that is free.

    Raises:
        UserError: There is no such host here, or the port is in use or not allowed.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UserError(
            f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host"
        ) from error


def serve(page: FastAPI, listening: socket.socket) -> None:
    """Serve a page until SIGINT or SIGTERM, which then do what they do elsewhere."""
    config = uvicorn.Config(
        _restrict(page), log_level="critical", timeout_graceful_shutdown=_GRACE, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listening])


def _restrict(app: Callable[..., Any]) -> Callable[..., Any]:
    """Let every response of a web application carry the policy."""

    async def restricted(scope: Any, receive: Any, send: Any) -> None:
        async def send_restricted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await app(scope, receive, send_restricted)

    return restricted
