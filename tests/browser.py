"""Chromium, without a window, steered by WebDriver: Debian's packages chromium and chromium-driver.

    with Browser(folder) as browser:
        browser.open("http://127.0.0.1:8000")
        browser.wait("document.readyState === 'complete'")

With requests=True it also notes which addresses a page asks for.

WebDriver is HTTP with JSON (w3.org/TR/webdriver2), so Python's own library speaks it. What it lacks, such as
dropping a file, are commands of Chromium's developer tools.
"""

import base64
import http.client
import json
import re
import shutil
import subprocess
import time

from tests.waiting import seconds

FLAGS = (
    "--headless",
    "--no-sandbox",  # which Chromium has none of where it runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's own name for the key of an element


class Browser:
    """A browser with a profile of its own in `folder`. requests: whether it notes what pages ask for."""

    def __init__(self, folder, requests=False):
        programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
        missing = [name for name, path in programs.items() if path is None]
        assert not missing, (
            f"no {' and no '.join(missing)} here: make test installs Debian's chromium and chromium-driver"
        )
        options = {"binary": programs["chromium"], "args": [*FLAGS, f"--user-data-dir={folder}"]}
        logs = {"browser": "ALL", **({"performance": "ALL"} if requests else {})}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self.driver = subprocess.Popen(
            [programs["chromedriver"], "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.port = self._started()
            self.session = "/session"
            self.session += f"/{self._ask('', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        except BaseException:
            self._stop()
            raise

    def _started(self):
        for line in self.driver.stdout:
            found = re.search(r"started successfully on port (\d+)", line)
            if found:
                return int(found[1])
        raise AssertionError("chromedriver did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._ask("", method="DELETE")
        finally:
            self._stop()

    def _stop(self):
        self.driver.terminate()
        self.driver.wait(seconds(20))
        self.driver.stdout.close()

    def _ask(self, path, body=None, method="POST"):
        # Not urllib: its opener is made once per process, with the proxies of that moment's environment.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds(60))
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, self.session + path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            value = json.load(answer)["value"]
        finally:
            connection.close()
        assert answer.status == 200, value["message"]
        return value

    def open(self, url):
        self._ask("/url", {"url": url})

    def run(self, script, *arguments):
        """What a script of JavaScript returns."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, expression, limit=20):
        """The value of an expression of JavaScript, when it is true."""
        end = time.monotonic() + seconds(limit)
        while not (value := self.run(f"return {expression}")):
            assert time.monotonic() < end, f"this did not become true: {expression}\n{self.messages()}"
            time.sleep(0.02)
        return value

    def type(self, selector, text):
        """Types text, or a file's path, into an element."""
        found = self._ask("/element", {"using": "css selector", "value": selector})
        self._ask(f"/element/{found[_ELEMENT]}/value", {"text": str(text)})

    def press(self, keys):
        """Presses keys on whatever has the focus."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def tools(self, command, **parameters):
        """A command of the developer tools."""
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def drop(self, path, x, y):
        """Drops a file onto the page, as the system does when it was dragged from a file manager."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tools("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._ask("/screenshot", method="GET")))

    def messages(self):
        """What the page and the browser have written to the console since this was asked last."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def requests(self):
        """The addresses that pages asked for since this was asked last, in Browser(folder, requests=True)."""
        log = self._ask("/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in log]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
