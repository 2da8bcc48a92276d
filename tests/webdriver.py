"""Chromium, driven by chromedriver through W3C's WebDriver protocol, which is JSON over HTTP."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the protocol gives to elements
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream",
]  # fmt: skip


class Browser:
    """One tab. Elements are named by CSS selectors."""

    def __init__(self, session: str):
        self.session = session

    def open(self, url: str) -> None:
        _ask("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str, *arguments):
        """What a script returns, or the promise that it returns."""
        body = {"script": script, "args": list(arguments)}
        return _ask("POST", f"{self.session}/execute/sync", body)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def click(self, selector: str) -> None:
        _ask("POST", f"{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Press keys in a field; of a file's, the file is chosen."""
        _ask("POST", f"{self._find(selector)}/value", {"text": text})

    def wait(self, selector: str, pattern: str, seconds: float = 60) -> str:
        """The text of an element, once it matches."""
        ends = time.monotonic() + seconds
        while not re.search(pattern, said := self.text(selector)):
            assert time.monotonic() < ends, f"{selector} says {said!r}, not {pattern!r}"
            time.sleep(0.05)
        return said

    def console(self) -> list[str]:
        """What was logged since this was asked last."""
        return [
            line["message"] for line in _ask("POST", f"{self.session}/se/log", {"type": "browser"})
        ]

    def picture(self, path: Path, width: int, dark: bool = False) -> None:
        """Write a screenshot of the whole page."""
        self._devtools("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ])  # fmt: skip
        self.resize(width)
        self.resize(width, self.run("return document.documentElement.scrollHeight"))
        time.sleep(0.6)  # what moves has come to rest
        path.write_bytes(base64.b64decode(_ask("GET", f"{self.session}/screenshot")))

    def resize(self, width: int, height: int = 800) -> None:
        """Show the page as a window of this many pixels does; a narrow one is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **size)

    def _devtools(self, command: str, **parameters):
        body = {"cmd": command, "params": parameters}
        return _ask("POST", f"{self.session}/goog/cdp/execute", body)

    def _find(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        found = _ask("POST", f"{self.session}/element", body)
        return f"{self.session}/element/{found[ELEMENT]}"


@contextmanager
def chromium(*flags: str):
    """A browser with an empty profile, which ends with the block."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} is on the PATH: apt-get install chromium chromium-driver")
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert driver.stdout is not None
        port = next(m[1] for m in (re.search(r"on port (\d+)\.", x) for x in driver.stdout) if m)
        options = {"args": [*FLAGS, *flags], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": wanted}}
        sessions = f"http://127.0.0.1:{port}/session"
        session = f"{sessions}/{_ask('POST', sessions, body)['sessionId']}"
        yield Browser(session)
        _ask("DELETE", session)
    finally:
        driver.terminate()
        driver.communicate()


def _ask(method: str, url: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    # No proxy of the environment is asked for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error
