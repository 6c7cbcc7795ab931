"""The HTTP listener of the control plane: /metrics for Prometheus, /healthz for load balancers."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """The socket came bound."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a scrape ended early", exc_info=True)


class HttpListener:
    """Serves an inherited listening socket in threads of its own."""

    def __init__(
        self, listener: socket.socket, registry: CollectorRegistry, ready: Callable[[], bool]
    ) -> None:
        listener.setblocking(True)
        host, port = listener.getsockname()[:2]
        self._server = _Server((host, port), _Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.server_name, self._server.server_port = host, port
        self._server.setup_environ()
        self._server.set_app(_application(registry, ready))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        return self._server.server_name, self._server.server_port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _application(registry: CollectorRegistry, ready: Callable[[], bool]) -> Callable[..., Any]:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path == "/healthz":
            is_ready = ready()
            status = "200 OK" if is_ready else "503 Service Unavailable"
            body = b"ready\n" if is_ready else b"not ready\n"
        else:
            status, body = "404 Not Found", b"see /metrics and /healthz\n"
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    return application
