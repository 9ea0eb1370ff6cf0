"""A headless Chromium to press buttons in, by its DevTools protocol over a pair of pipes. Used by tests alone."""

import base64
import json
import os
import shutil
import subprocess
import time

CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars")


class Browser:
    """One tab. `events` are what the browser told of since the start, such as requests and errors."""

    def __init__(self, folder):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        shell = f'exec "$@" 3<&{commands} 4>&{answers}'                      # where Chromium looks for the pipes
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "-", CHROME, *OPTIONS, f"--user-data-dir={folder}", "--remote-debugging-pipe"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self.read, self.number, self.events, self.session = b"", 0, [], {}
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method, **parameters):
        """A command of the protocol → its result."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.read:
                if not (more := os.read(self.answers, 2**16)):
                    raise EOFError("the browser has ended")
                self.read += more
            message, _, self.read = self.read.partition(b"\0")
            message = json.loads(message)
            if message.get("id") != self.number:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(message["error"])
            else:
                return message["result"]

    def run(self, script):
        """The value of a JavaScript expression, awaited where it is a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, script, seconds=30):
        """Until an expression is true; one that can't be worked out yet counts as false."""
        end = time.monotonic() + seconds
        while not self.run(f"(() => {{ try {{ return !!({script}); }} catch (error) {{ return false; }} }})()"):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.03)

    def told(self, *methods):
        return [event["params"] for event in self.events if event["method"] in methods]

    def screenshot(self):
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
