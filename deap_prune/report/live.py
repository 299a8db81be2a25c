"""The report of a run that goes on, served to a browser on this machine."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

from deap_prune.errors import PruneError, RunError
from deap_prune.evolution.front import ParetoFront
from deap_prune.report.facts import Facts, gather, read_history, read_versions
from deap_prune.report.page import content, page
from deap_prune.search.live_state import LIVE, read_live

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Watched:
    """A run that is served.

    Attributes:
        folder: The run folder.
        address: Address of the page; it holds a secret token, without which nothing is answered.
    """

    folder: Path
    address: str


@contextmanager
def served(run: str | Path, *, port: int = 0) -> Iterator[Watched]:
    """Serve the live page of a run while the context is open.

    The server listens on 127.0.0.1, answers requests with the token alone, and only reads the run folder; no network
    is opened and no code imported.

    Args:
        run: The run folder; the run may not have begun yet.
        port: Port to listen on; 0: any free one.

    Raises:
        RunError: If the port can't be used.
    """
    folder, token = Path(run), secrets.token_urlsafe(16)
    if folder.is_file():
        raise RunError(f"'{folder}' is a file; give a run folder")
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(folder, token))
    except (OSError, OverflowError) as error:
        raise RunError(f"port {port} can't be used ({error}); leave --port out for a free one") from error
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Watched(folder, f"http://{HOST}:{server.server_address[1]}/{token}/")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait() -> None:
    """Wait until the user interrupts the program."""
    Event().wait()


def live_facts(folder: Path) -> Facts:
    """The state of a run: that of its last generation while it goes on, else its front.

    Raises:
        RunError: If a file of the run can't be read.
    """
    live, front = folder / LIVE, folder / "front.json"
    if front.is_file() and not (live.is_file() and live.stat().st_mtime > front.stat().st_mtime):
        return gather(folder, result=None, singles=0, network=False, progress=False)
    if not live.is_file():
        empty = ParetoFront.of([], {"accuracy": 1.0, "flops": -1.0}, {"flops": 0, "params": 0})
        return Facts(folder, empty, {}, [], "", read_versions(folder / "versions.json"), status=_not_begun(folder))
    state = read_live(folder)
    config = folder / "config.yaml"
    last = state.generation == state.generations
    doing = "The end of the search follows; refinement changes the values." if last else "The search goes on."
    return Facts(
        folder,
        state.front,
        state.layers,
        read_history(folder / "history.csv"),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        read_versions(folder / "versions.json"),
        run_versions=(folder / "versions.json").is_file(),
        status=f"Generation {state.generation} of {state.generations}. {doing}",
    )


def _not_begun(folder: Path) -> str:
    return f"Waiting for the first generation of '{folder}'."


def _handler(folder: Path, token: str) -> type[BaseHTTPRequestHandler]:
    """The request handler of a run's server."""

    class Handler(BaseHTTPRequestHandler):
        """Answers ``/TOKEN/`` and ``/TOKEN/facts``."""

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").partition(":")[0]
            given, _, name = self.path.removeprefix("/").partition("/")
            known = secrets.compare_digest(given.encode(), token.encode()) and self.path.count("/") == 2
            if host not in (HOST, "localhost") or not known or name not in ("", "facts"):
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "nothing here: the address needs its token")
                return
            try:
                facts = live_facts(folder)
                text = page(facts, live=True) if name == "" else content(facts, live=True)
            except (PruneError, OSError, ValueError, csv.Error) as error:  # a file changes, or is being replaced
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
                return
            self._answer(HTTPStatus.OK, "text/html" if name == "" else "application/json", text)

        def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            for header, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
            ):
                self.send_header(header, value)
            with suppress(ConnectionError):  # the browser has left
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are not logged: their paths hold the token."""

    return Handler
