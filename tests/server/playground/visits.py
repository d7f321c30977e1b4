"""A server in a thread, a browser at its page, and faults that the server is told to make."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.evaluation.report import chromium

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
MANY = (
    EVIL,
    "体育",
    "财经",
    "科技",
    "娱乐",
    "教育",
    "房产",
    "时政",
    "国际",
    "健康",
    "旅游",
    "汽车",
    "a rather long label of English words",
)
SENTENCES = "国足今晚迎战韩国队。主场球迷高呼加油！股市大涨。基金经理看好银行。"
_PATIENCE_S = 90.0
_KEYS = {
    "Tab": 9, "Enter": 13, "Space": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
    "ArrowDown": 40,
}  # fmt: skip
_TEXT_OF = {"Enter": "\r", "Space": " "}
_CTRL, _SHIFT = 2, 8


class Faults:
    """An application around another one: it counts what is asked, and answers or waits in its place when told to.

    Attributes:
        bodies: the body of each request to ``/v1/classify``, in order.
        times: when each came, in seconds of a monotonic clock.
        errors: (status, headers, body) that the next requests get, the first one first.
        gate: requests wait while it is not set.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.gate = threading.Event()
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.errors: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        self.gate.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or scope["path"] != "/v1/classify":
            await self._app(scope, receive, send)
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        self.bodies.append(json.loads(body))
        self.times.append(time.monotonic())
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if self.errors:
            status, headers, error = self.errors.pop(0)
            raw = [(k.lower().encode(), v.encode()) for k, v in {"content-type": "application/json", **headers}.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": json.dumps(error).encode()})
            return
        given = [{"type": "http.request", "body": body}]

        async def receiving() -> Any:
            return given.pop() if given else await receive()

        await self._app(scope, receiving, send)


class Served:
    """``fenlei serve``'s application at a free port of this machine."""

    def __init__(self, runs: list[tuple[str, Path]], overrides: tuple[str, ...], **settings: Any) -> None:
        import uvicorn

        from fenlei.server.app import create_app
        from fenlei.server.models import Models
        from fenlei.server.settings import ServeSettings

        models = Models.open(runs, overrides=overrides)
        self.faults = Faults(create_app(models, ServeSettings(**settings)))
        self._server = uvicorn.Server(uvicorn.Config(self.faults, port=0, log_level="warning", ws="none"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the server does not start")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer, without a browser."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}v1/classify", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def close(self) -> None:
        """Ends it."""
        self.faults.gate.set()
        self._server.should_exit = True
        self._thread.join(_PATIENCE_S)


class Visitor(chromium.Browser):
    """A browser at the page of a server."""

    def __init__(self, language: str = "en-US") -> None:
        super().__init__(language)
        self.call("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)
        self.call("DOM.enable")

    def visit(
        self, url: str, *, width: int = 1280, height: int = 900, theme: str = "light", fresh: bool = True
    ) -> None:
        """Opens the page and waits until it knows the classifiers; ``fresh``: with nothing remembered."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        if fresh:
            self.call("Storage.clearDataForOrigin", origin=url.rstrip("/"), storageTypes="local_storage")
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def wait(self, script: str) -> None:
        """Until an expression in the page is true."""
        wait_until(lambda: self.run(f"Boolean({script})"), f"never true: {script}; console: {self.console[-5:]}")

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? null")

    def texts(self, selector: str) -> list[str]:
        """What all of them say."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.textContent)")

    def click(self, selector: str) -> None:
        """Clicks an element that can be seen."""
        name = json.dumps(selector)
        found = f"document.querySelector({name})"
        assert self.run(f"{found} !== null && {found}.getClientRects().length > 0"), f"not to be seen: {selector}"
        self.run(f"{found}.click()")

    def set(self, selector: str, value: str) -> None:
        """Gives a field another value, as a user does."""
        self.run(
            f"(() => {{ const n = document.querySelector({json.dumps(selector)}); n.value = {json.dumps(value)};"
            "for (const kind of ['input', 'change']) n.dispatchEvent(new Event(kind, { bubbles: true })); })()"
        )

    def write(self, text: str) -> None:
        """Types a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, name: str, *, ctrl: bool = False, shift: bool = False) -> None:
        """Presses a key."""
        key = " " if name == "Space" else name
        more = {"modifiers": _CTRL * ctrl + _SHIFT * shift, "windowsVirtualKeyCode": _KEYS[name], "code": name}
        text = {} if ctrl else {"text": _TEXT_OF[name]} if name in _TEXT_OF else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def classify(self, text: str) -> None:
        """Puts a text into the box, sends it, and waits for the answer."""
        self.set("#text", text)
        self.click("#classify")
        self.wait("document.querySelector('#result').getAttribute('aria-busy') === 'false'")

    def choose_file(self, path: Path) -> None:
        """Gives the page a file by its file dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file-input")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def drop_file(self, path: Path) -> None:
        """Drops a file on the middle of the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=640, y=400, data=data)

    def classify_file(self) -> None:
        """Starts, and waits for the end."""
        self.wait("document.querySelector('#start')")
        self.click("#start")
        self.wait("document.querySelector('.job h2')?.textContent.match(/Done|已完成/)")

    def saved(self, button: str, folder: Path) -> Path:
        """The file that a button saves."""
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.iterdir())
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click(button)

        def whole() -> list[Path]:
            return [path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload"]

        wait_until(lambda: bool(whole()), "nothing was saved")
        return whole()[0]

    def complaints(self) -> list[str]:
        """What the console says that it should not: all but the plain fact that an answer was an error."""
        return [line for line in self.console if "Failed to load resource: the server responded with" not in line]


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Looks again and again, with patience for a busy machine."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
