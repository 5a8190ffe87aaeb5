"""A headless Chromium, driven through its debugging pipe: no package, no port, no download."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.patience import patience

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-proxy-server",
)
_PATIENCE_SECONDS = 30.0


class Browser:
    """One page in one browser, within a `with` block. https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, home: Path) -> None:
        self.errors: list[str] = []
        """What the page reported: exceptions, and what the content security policy refused."""
        self._home = home
        self._replies: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._count = 0
        self._session = ""

    def __enter__(self) -> "Browser":
        assert CHROMIUM is not None
        read_by_it, self._out = os.pipe()
        self._in, written_by_it = os.pipe()
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        command = [CHROMIUM, *_FLAGS, *sandbox, f"--user-data-dir={self._home}", "about:blank"]
        # Chromium reads commands from 3 and writes to 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}', "bash", *command]
        self._process = subprocess.Popen(
            shell, pass_fds=(read_by_it, written_by_it), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        pages = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._out)
        self._reader.join(5)
        os.close(self._in)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self._replies, patience(_PATIENCE_SECONDS)), (
                f"no reply to {method}"
            )
            reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    def show(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address in a window of a size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of its promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 15.0) -> Any:
        """Wait until an expression is true, and return its value."""
        until = time.monotonic() + patience(seconds)
        while not (found := self.value(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()")):
            assert time.monotonic() < until, f"never true: {expression}; errors: {self.errors}"
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        """Press keys, by their names."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        for key in keys:
            more = {"text": "\r"} if key == "Enter" else {}
            event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], **more}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Save what the window shows, or the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._in, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for text in messages:
                self._take(json.loads(text))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._arrived:
                self._replies[message["id"]] = message
                self._arrived.notify_all()
            return
        entry = message.get("params", {})
        found: dict[str, Callable[[], str]] = {
            "Runtime.exceptionThrown": lambda: str(entry["exceptionDetails"].get("exception", entry)),
            "Log.entryAdded": lambda: f"{entry['entry']['text']} {entry['entry'].get('url', '')}",
        }
        if message.get("method") in found and entry.get("entry", {}).get("level", "error") == "error":
            self.errors.append(found[message["method"]]())
