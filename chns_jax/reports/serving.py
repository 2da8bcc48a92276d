"""A web server for this machine alone: a browser opens scripts and models from nowhere else."""

from __future__ import annotations

import errno
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chns_jax.common.errors import UserError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        # Whatever this machine's tables say: browsers run scripts of no other types.
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a page that is written again is new
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, port: int) -> None:
    """Serve a folder to this machine until Ctrl-C, and print the address; port 0 is any that is
    free. Raises UserError when the port is taken."""
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(f"--port {port} cannot be used: {error.strerror}: give another") from error
    with server:
        print(f"http://{HOST}:{server.server_port}/", flush=True)
        print("Ctrl-C ends it", file=sys.stderr)
        server.serve_forever()
