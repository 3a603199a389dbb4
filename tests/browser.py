"""A headless Chromium, steered over its DevTools protocol through a pipe: no library is needed for
that."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])),
    None,
)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
AT_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


class Page:
    """One tab. `console` holds what the page logged, and its errors."""

    def __init__(self, commands: int, answers: Any) -> None:
        self.commands, self.answers, self.numbers = commands, answers, itertools.count(1)
        self.console: list[str] = []
        self.session: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)[
                "sessionId"
            ]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (said := self._message()).get("id") != number:
            pass
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    def run(self, script: str) -> Any:
        """The value of a script, a promise's when it has one."""
        said = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, condition: str, seconds: int = 60) -> None:
        """Until a condition holds in the page."""
        script = f"""new Promise((done, fail) => {{
            const end = Date.now() + {1000 * seconds};
            const look = () => {{
                if ({condition}) done(true);
                else if (Date.now() > end) fail("waited");
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        self.run(script)

    def open(self, url: str, width: int, height: int, dark: bool = False) -> None:
        """Load an address in a window of a size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def picture(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def _message(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            read += byte
        said: dict[str, Any] = json.loads(read)
        if said.get("method") in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ):
            self.console.append(json.dumps(said["params"]))
        return said


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, with its profile in a folder."""
    assert PROGRAM
    (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
    ends = [
        fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)
    ]  # lest they be 3 or 4 in the wrong order
    os.close(read), os.close(write)
    words = [
        sys.executable,
        "-c",
        AT_3_AND_4,
        *map(str, ends),
        PROGRAM,
        *FLAGS,
        f"--user-data-dir={folder}",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, pass_fds=ends, **quiet) as browser:
        for end in ends:
            os.close(end)
        with open(from_browser, "rb") as answers, open(to_browser, "wb"):
            try:
                yield Page(to_browser, answers)
            finally:
                browser.terminate()
