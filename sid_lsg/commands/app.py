"""`app`: try a generator in the browser, beside its teacher."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Any, NoReturn

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import Interrupted, UsageError
from sid_lsg.options.choices import Precision

_EXAMPLES = 6
# Keeps the browser from loading anything from other servers, whatever the libraries contain.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)


def app(
    model: str,
    teacher: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    resolution: int | None = None,
    dtype: Precision = "float32",
    examples: str = "package:demo/fashion/prompts.txt",
    host: str = "127.0.0.1",
    port: int = 7860,
    accelerator: str = "auto",
) -> NoReturn:
    """Serve a web page on which to try a generator, beside its teacher.

    For the same prompt and seed, the images are those of `generate`. Needs gradio: pip install
    'sid-lsg[app]'. Ctrl-C ends the command.

    Args:
        model: A run directory, one of its checkpoints, an exported folder, any diffusers folder, or
            a Hub id.
        teacher: A Stable Diffusion folder or Hub id, which is sampled with DDIM. Its steps and
            guidance are set on the page.
        num_steps: Initial number of the model's steps on the page. Required for a model that this
            project did not train.
        guidance: Guidance scale of a model that this project did not train.
        resolution: Side of the images in pixels; by default the models'.
        dtype: Precision of the networks: float32, bfloat16 or float16.
        examples: A file of prompts; the page offers the first ones.
        host: The address to listen on; 0.0.0.0 lets other machines connect, without a password.
        port: The port to listen on; 0 for any free port.
        accelerator: auto, cpu, gpu, ...

    Raises:
        UsageError: If gradio is missing, a model cannot be loaded, or the port is taken.
    """
    # Disable telemetry, before gradio is imported.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        from sid_lsg.app.page import build_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UsageError("app needs gradio: pip install 'sid-lsg[app]'.") from None
    from sid_lsg.data.corpus import find_files, read_corpus
    from sid_lsg.distributed.processes import launch
    from sid_lsg.generation.models import open_model

    corpus = read_corpus(find_files(examples, "--examples"), None, "--examples", None)
    prompts = list(islice(dict.fromkeys(islice(corpus, 1000)), _EXAMPLES))
    with _listen(host, port) as listening:
        device = launch(accelerator, 1, 1).device
        common: dict[str, Any] = {"resolution": resolution, "dtype": dtype, "device": device}
        student = open_model(model, **common)
        beside = open_model(teacher, "ddim", option="teacher", **common) if teacher else None
        work = _Work()
        page = build_page(student, beside, guidance, num_steps, prompts, work.run)
        student(num_steps, guidance).sample(["warm"], [0])  # a warm-up, for the times on the page
        if beside:
            beside(1, 2.0).sample(["warm"], [0])
        threading.Thread(target=work.beside, args=(_serve, page, listening), daemon=True).start()
        name, number, *_ = listening.getsockname()
        url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
        print(f"The page is at {url} (Ctrl-C ends it).", flush=True)
        try:
            work.serve()
        except Interrupted as error:
            raise Interrupted(f"the page at {url} is closed.", int(error.code or 0)) from None


class _Work:
    """Run functions of other threads in the main thread, one after the other.

    So a signal can end the program at any time, and no other thread is running a network then.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | Exception] = SimpleQueue()

    def run(self, function: Callable[[], Any]) -> Any:
        """Call a function in the main thread; return its result or raise its error."""
        future: Future[Any] = Future()
        self._asked.put((function, future))
        return future.result()

    def beside(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in this thread; `serve` raises its error."""
        try:
            function(*arguments)
        except Exception as error:
            self._asked.put(error)

    def serve(self) -> NoReturn:
        """Call the queued functions until a signal or an error of `beside` ends the program."""
        while True:
            asked = self._asked.get()
            if isinstance(asked, Exception):
                raise asked
            function, future = asked
            try:
                future.set_result(function())
            except Exception as error:  # raised again in `run`
                future.set_exception(error)


def _listen(host: str, port: int) -> socket.socket:
    """Open the port before anything is loaded.

    Raises:
        UsageError: If the port cannot be opened.
    """
    if not 0 <= port <= 65535:
        refuse("port", port, "0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port: {port} is in use on {host}. Give another one, or 0 for any free port."
            ) from error
        raise UsageError(
            f"--host, --port: cannot listen on {host!r}, port {port} ({error.strerror or error}). "
            "Give an address of this machine and a port that you may use."
        ) from error


def _refuse() -> str:
    return "This page accepts no files."


def _serve(page: Any, listening: socket.socket) -> None:
    """Serve the page with the content security policy."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from sid_lsg.app.page import CSS, THEME

    own = FastAPI(openapi_url=None)
    for name in ("upload", "process_recording"):  # any web site could fill the disk through them
        own.add_api_route(f"/gradio_api/{name}", _refuse, methods=["POST"], status_code=403)
    server = gradio.mount_gradio_app(
        own,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=THEME,
        css=CSS,
    )
    headers = [("Content-Security-Policy", _POLICY)]
    config = uvicorn.Config(server, log_level="warning", headers=headers)
    uvicorn.Server(config).run(sockets=[listening])
