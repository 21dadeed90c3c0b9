"""A headless Chromium, driven over its DevTools protocol: for a page that changes while one looks.

Needs the program ``chromium`` (``CHROMIUM`` is None where it is missing).
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

from tests.helpers.cluster import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

#: What a laptop's screen of 1366 by 768 leaves to a page.
WIDTH, HEIGHT = 1366, 657

_MAX_BYTES = 1 << 26


class Browser:
    """One page. profile: an empty folder of its own. errors: what its console complained of."""

    def __init__(self, profile: Path) -> None:
        self.errors: list[str] = []
        self._profile = profile
        self._number = 0

    def __enter__(self) -> Browser:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        where = ["--remote-debugging-port=0", f"--user-data-dir={self._profile}", f"--window-size={WIDTH},{HEIGHT}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([str(CHROMIUM), *options, *where, "about:blank"], **silent)  # type: ignore[call-overload]
        self._loop = asyncio.new_event_loop()
        try:
            port = wait_until(self._port, "chromium to start", 60)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                (page,) = (page for page in json.load(answer) if page["type"] == "page")
            self._socket = self._loop.run_until_complete(self._connect(page["webSocketDebuggerUrl"]))
            for domain in ("Page", "Runtime", "Log"):
                self._call(f"{domain}.enable")
            self._call(
                "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._loop.close()

    def _port(self) -> int:
        file = self._profile / "DevToolsActivePort"
        lines = file.read_text().splitlines() if file.exists() else []
        return int(lines[0]) if len(lines) > 1 else 0

    async def _connect(self, url: str) -> Any:
        return await websocket_connect(url, max_message_size=_MAX_BYTES)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; None where it raises."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value") if "exceptionDetails" not in found else None

    def wait_until(self, expression: str, limit_s: float = 60.0) -> Any:
        """The first true value of a JavaScript expression; raises ``TimeoutError``."""
        return wait_until(lambda: self.value(expression), f"{expression} (console: {self.errors})", limit_s)

    def screenshot(self, target: Path) -> None:
        """What is on the screen, as PNG."""
        target.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._loop.run_until_complete(self._ask(method, parameters))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            text = await asyncio.wait_for(self._socket.read_message(), 60)
            if text is None:
                raise ConnectionError("chromium is gone")
            message = json.loads(text)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:2000])
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
