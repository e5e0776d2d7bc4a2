"""``defectnet app``: the web page."""

from __future__ import annotations

import os
import sys


def app(*, host: str = "127.0.0.1", port: int = 8765, open: bool = True) -> None:
    """Start the page: drop two files, choose the crystal, click elements, and see the answer. Ctrl-C ends it.

    It runs on this machine and sends nothing anywhere. See docs/app.md.

    Args:
        host: Address to listen at. With another than 127.0.0.1 everybody who reaches this machine can use the page.
        port: Port to listen at, 1 to 65535; 0 for any that is free.
        open: Open the page in the browser, where there is a screen; --no-open leaves that out.
    """
    from defectnet.errors import ConfigError

    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}", fix="Use 1 to 65535, or 0 for any that is free")
    if not host.strip():
        raise ConfigError("--host is empty", fix="Use 127.0.0.1, or an address of this machine")
    from defectnet.app.server import serve

    def ready(address: str) -> None:
        print(f"defectnet is at {address} (Ctrl-C ends it)", flush=True)
        screen = sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))
        if open and screen:
            import webbrowser

            webbrowser.open(address)

    print("starting, some seconds ...", file=sys.stderr, flush=True)
    serve(host, port, ready)
