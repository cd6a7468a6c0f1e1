"""The whole page, and the server that shows it: nothing on it comes from another host."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from paella_jax.serving.draw_tab import AT_ONCE, DrawTab
from paella_jax.serving.studio import Studio
from paella_jax.serving.study import Study
from paella_jax.serving.study_tab import KEYS, ResultsTab, StudyTab

TITLE = "paella_jax"
SMALL = 128  # pixels; images below are enlarged with sharp pixels
CSS = "footer {display: none !important}"
SHARP = ".small-images img {image-rendering: pixelated}"
ENLARGED = ".small-images img {width: 100% !important; height: 100%; object-fit: contain}"
FONTS = ["system-ui", "sans-serif"]
# Browsers refuse what a page asks of other hosts, whatever the libraries below would like.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

Application = Callable[[Any, Any, Any], Awaitable[None]]


def build(
    studio: Studio,
    defaults: dict[str, str],
    study: Study | None = None,
    secret: str = "",
    folder: Path | None = None,
) -> gr.Blocks:
    """The page's components and events.

    Args:
      studio: draws.
      defaults: what empty fields mean, by name.
      study: of the studio's two runs; None leaves its tabs out.
      secret: of the study's file.
      folder: for the study's images and tables; it must be there.
    """
    page = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600))
    page.queue(max_size=studio.limits.waiting)
    with page:
        with gr.Tab("Draw"):
            drawing = DrawTab(studio, defaults)
        page.load(drawing.at_first, None, drawing.status, **AT_ONCE)
        page.unload(drawing.gone)
        if study is not None and folder is not None:
            with gr.Tab("Blind study"):
                StudyTab(study, secret, folder)
            with gr.Tab("Results") as tab:
                first, second = (run.name for run in studio.runs)
                ResultsTab(tab, study, (first, second), folder)
    return page


def application(page: gr.Blocks, studio: Studio) -> Application:
    """The page as an ASGI application."""
    small = min(run.pipe.config.data.image_size for run in studio.runs) < SMALL
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=studio.limits.megabytes * 2**20,
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=CSS + (SHARP + ENLARGED if small else ""),
        head=KEYS,
    )
    return with_headers(app)


def with_headers(app: Application) -> Application:
    """Adds the headers of `HEADERS` to every answer."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await app(scope, receive, send_more)

    return wrapped


def serve(app: Application, listening: socket.socket) -> None:
    """Answers on a socket that listens, until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])
