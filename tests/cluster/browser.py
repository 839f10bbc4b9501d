"""Pages as someone sees them who types a name and a password into the browser's login box: headless Chromium."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from typing import Any

from tests.cluster.hosts import Host

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1700,1400 --remote-debugging-pipe"
)
MOST_LOGINS = 3
"""Times that the login box may come again before one gives up."""


def page_text(host: Host, address: str, user: str, password: str, *, until: str, seconds: float = 60.0) -> str:
    """What the page says once it says ``until``, seen from the host; or what it says at last."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # Chromium listens on 3 and speaks on 4.
    program = f"exec {CHROMIUM} {FLAGS} --user-data-dir=$(mktemp -d) 3<&{to_read} 4>&{from_write}"
    chromium = subprocess.Popen(
        host.enter("bash", "-c", program), pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        with os.fdopen(to_write, "wb", buffering=0) as commands, os.fdopen(from_read, "rb") as messages:
            return _Browser(commands, messages, user, password).read(address, until, seconds)
    finally:
        chromium.kill()
        chromium.wait()


class _Browser:
    """One page, driven by Chrome's DevTools protocol: JSON messages with a zero byte after each."""

    def __init__(self, commands: Any, messages: Any, user: str, password: str) -> None:
        self._commands, self._messages = commands, messages
        self._credentials = {"response": "ProvideCredentials", "username": user, "password": password}
        self._ids = itertools.count(1)
        self._rest = b""
        self._num_logins = 0
        self._session: str | None = None
        (page,) = [target for target in self._ask("Target.getTargets")["targetInfos"] if target["type"] == "page"] or [
            self._ask("Target.createTarget", url="about:blank")
        ]
        self._session = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self._ask("Fetch.enable", handleAuthRequests=True)

    def read(self, address: str, until: str, seconds: float) -> str:
        self._ask("Page.navigate", url=address)
        end = time.monotonic() + seconds
        while True:
            evaluated = self._ask("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
            text = str(evaluated["result"].get("value", ""))
            if until in text or time.monotonic() > end:
                return text
            time.sleep(0.2)

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """The answer to a command; what happens meanwhile is seen to."""
        number = self._send(method, **parameters)
        while True:
            message = self._next()
            if message.get("id") == number:
                assert "result" in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Fetch.requestPaused":
                self._send("Fetch.continueRequest", requestId=message["params"]["requestId"])
            elif message.get("method") == "Fetch.authRequired":
                self._num_logins += 1
                answer = self._credentials if self._num_logins <= MOST_LOGINS else {"response": "CancelAuth"}
                request = message["params"]["requestId"]
                self._send("Fetch.continueWithAuth", requestId=request, authChallengeResponse=answer)

    def _send(self, method: str, **parameters: object) -> int:
        number = next(self._ids)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        return number

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._messages.read1(65536)
            assert piece, "Chromium ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed
