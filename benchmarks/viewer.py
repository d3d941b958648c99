"""Size, loading time and frame rate of the swarm viewer's page in a headless Chromium.

    python benchmarks/viewer.py                              # 300 agents, 4,000 steps
    python benchmarks/viewer.py --agents 40 --steps 400 --shots shots/
    python benchmarks/viewer.py --axe node_modules/axe-core/axe.min.js   # also an accessibility check, with axe-core

Prints the size of report.html, the seconds from opening the file to the first picture of the episode, frames
per second and milliseconds per picture during dragging (zoomed in, and as a whole), and the number of network
requests. Stops with a message without Chromium (CHROMIUM names another one).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from envs.base import ErrorKind, Gold, Oracle, Role, Task, ToolCall, ToolResult
from envs.world.corpus import corpus_texts
from model.tokenizer.tokenizer import Tokenizer
from parl.report import write_report
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.store import EpisodeStore

STARTERS = Path(__file__).parents[1] / "configs" / "starters"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str | None:
    """The browser's path, or None where there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium with one page, driven over a pipe by the DevTools protocol."""

    def __init__(self, path: str, width: int = 1360, height: int = 900, *, dark: bool = False, phone: bool = False):
        """Start it with an empty profile."""
        self.requests: list[str] = []  # addresses that the page asked for
        self.problems: list[str] = []  # exceptions and console errors
        self._folder = tempfile.TemporaryDirectory()
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        command = f'exec "$@" 3<&{read} 4>&{write}'
        flags = [*FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", path, *flags], pass_fds=(read, write), stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._buffer, self._count, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result; events meanwhile are kept in ``requests`` and ``problems``."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(120)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], deadline_s)[0]:
                raise TimeoutError(f"Chromium said nothing for {deadline_s} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(text)
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        return event

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (of a promise: what it resolves to)."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression[:200]}: {json.dumps(result['exceptionDetails'])[:1000]}")
        return result["result"].get("value")

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a report from disk and wait until its first episode is drawn."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("performance.getEntriesByName('episode-drawn').length > 0")

    def wait(self, condition: str, deadline_s: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + deadline_s
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is not true after {deadline_s} s; {self.problems}")
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One mouse event of the DevTools protocol, at a point of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, x: float, y: float, steps: list[tuple[float, float]]) -> None:
        """Press at a point, move by ``steps``, release."""
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        for dx, dy in steps:
            x, y = x + dx, y + dy
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> Path:
        """The window as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


def big_episode(tokenizer: Tokenizer, agents: int = 300, steps: int = 4000, seed: int = 0) -> Episode:
    """A made-up episode of that size in the words of the embedded world: waves of sub-agents, one of them slow."""
    rng = Random(seed)
    texts = list(corpus_texts(seed, 800))
    waves = max(1, (agents - 1) // 80)
    children = [agents // waves + (wave < (agents - 1) % waves) for wave in range(waves)]
    children[-1] += agents - 1 - sum(children)
    own = 2 * waves + 1
    lengths = [2] * (agents - 1)
    slow = rng.sample(range(agents - 1), max(1, agents // 40))
    for _ in range(steps - own - sum(lengths)):
        lengths[rng.choice(slow) if rng.random() < 0.05 else rng.randrange(agents - 1)] += 1
    root, traces, now = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", trainable=True), [], 0.0
    for wave in range(waves):
        now = _turn(rng, tokenizer, root, texts, now)
        now = _wave(rng, tokenizer, root, traces, lengths, texts, children[wave], now)
    now = _turn(rng, tokenizer, root, texts, now, last=True)
    root.status, root.message = TraceStatus.FINISHED, root.turns[-1].content
    task = Task(
        key=f"made-up-{agents}", family="wide", split="test", width=agents - 1, gold=Gold(kind="table"),
        prompt=f"Report the age and the city of each of these {agents - 1} people.",
        oracle=Oracle(serial_steps=2 * agents, parallel_steps=4, width=agents - 1),
    )  # fmt: skip
    episode = Episode(
        task=task, index=0, seed=seed, traces=[root, *traces], status=EpisodeStatus.ANSWERED, answer=root.message
    )
    episode.wall_s = now
    episode.rewards = {"perf": 0.91, "parallel": 1.0, "finish": 0.97, "critical": 0.3, "total": 0.83}
    episode.metrics = {"critical_steps": 0, "subagents": agents - 1}
    return episode


def _wave(rng, tokenizer, root, traces, lengths, texts, count, now) -> float:
    """One turn of ``root`` that launches ``count`` sub-agents; returns when all have ended."""
    turn = Turn(start=0, end=0, t_start=now, t_model=now + 4.0)
    ends = []
    for _ in range(count):
        agent_id = f"0/{len(traces)}"
        name, prompt = "finder", rng.choice(texts)[:300]
        trace = Trace(
            agent_id=agent_id, role=Role.SUBAGENT, name=name, parent="0", parent_turn=len(root.turns), prompt=prompt
        )
        clock = turn.t_model + rng.random() * 2
        for k in range(lengths[len(traces)]):
            clock = _turn(rng, tokenizer, trace, texts, clock, last=k == lengths[len(traces)] - 1)
        lost = rng.random() < 0.03
        trace.status = TraceStatus.OVER_BUDGET if lost else TraceStatus.FINISHED
        trace.message = "" if lost else trace.turns[-1].content
        ends.append(clock)
        turn.spawned.append(agent_id)
        arguments = {"agent": name, "prompt": prompt}
        turn.calls.append(ToolCall(id=f"functions.assign_task:{len(traces)}", name="assign_task", arguments=arguments))
        error = ErrorKind.BUDGET if lost else None
        turn.results.append(ToolResult(text=trace.message, error=error, latency_s=clock - turn.t_model))
        traces.append(trace)
    turn.t_end = max(ends)
    _sampled(rng, tokenizer, root, turn)
    root.turns.append(turn)
    return turn.t_end


def _turn(rng, tokenizer, trace, texts, now, last=False) -> float:
    """One turn of ``trace`` that calls a tool, or answers; returns when it ended."""
    turn = Turn(start=0, end=0, t_start=now, t_model=now + rng.uniform(0.4, 1.6))
    text = rng.choice(texts)[:400] if last else rng.choice(texts)[: rng.randrange(120)]
    turn.content, turn.t_end = text, turn.t_model
    if not last:
        call = ToolCall(
            id=f"functions.search:{len(trace.turns)}",
            name=rng.choice(["search", "open_page"]),
            arguments={"query": rng.choice(texts)[:60]},
        )
        late = rng.random() < 0.02
        result = ToolResult(
            text="\n".join(rng.sample(texts, 6))[:1200],
            error=ErrorKind.TIMEOUT if late else None,
            latency_s=rng.uniform(0.1, 0.6),
        )
        turn.calls, turn.results, turn.t_end = [call], [result], turn.t_model + result.latency_s
    _sampled(rng, tokenizer, trace, turn)
    trace.turns.append(turn)
    return turn.t_end


def _sampled(rng: Random, tokenizer: Tokenizer, trace: Trace, turn: Turn) -> None:
    """Give ``turn`` the tokens of its text, with made-up log-probs."""
    calls = [f"{call.id} {call.name} {json.dumps(call.arguments)}" for call in turn.calls]
    ids = tokenizer.encode("\n".join([turn.content, *calls]))
    turn.start, turn.end = len(trace.tokens), len(trace.tokens) + len(ids)
    trace.tokens += ids
    trace.mask += [True] * len(ids)
    trace.logprobs += [-rng.expovariate(4) for _ in ids]
    trace.versions += [12] * len(ids)


_PAN = """new Promise(done => {
  const canvas = document.querySelector("#swarm canvas"), box = canvas.getBoundingClientRect(), at = [], took = [];
  const send = (type, x, y) => canvas.dispatchEvent(
    new PointerEvent(type, { clientX: x, clientY: y, pointerId: 1, buttons: 1 }));
  let x = box.x + box.width * 0.6, y = box.y + box.height * 0.5;
  canvas.setPointerCapture = () => {};
  viewer.scene.draw = function () {
    const began = performance.now();
    Scene.prototype.draw.call(this);
    took.push(performance.now() - began);
  };
  send("pointerdown", x, y);
  requestAnimationFrame(function frame() {
    at.push(performance.now());
    if (at.length > FRAMES) {
      send("pointerup", x, y);
      delete viewer.scene.draw;
      delete canvas.setPointerCapture;
      return done([at, took]);
    }
    x += at.length % 60 < 30 ? 6 : -6;
    y += at.length % 40 < 20 ? 4 : -4;
    send("pointermove", x, y);
    requestAnimationFrame(frame);
  });
})"""


def pan(browser: Browser, frames: int = 180) -> tuple[float, float, float, int]:
    """(frames a second, the slowest in ms, ms that drawing takes, pictures drawn) while a pointer drags the picture."""
    at, took = browser.run(_PAN.replace("FRAMES", str(frames)))
    gaps = [b - a for a, b in pairwise(at)]
    return 1000 * len(gaps) / sum(gaps), max(gaps), sum(took) / max(1, len(took)), len(took)


def measure(page: Path, axe: Path | None, shots: Path | None) -> None:
    """Print the figures of ``page``."""
    path = chromium()
    assert path is not None
    print(f"{'report.html':34}{page.stat().st_size / 1e6:8.2f} MB")
    with Browser(path) as browser:
        browser.open(page)
        first = browser.run("performance.getEntriesByName('episode-drawn')[0].startTime / 1000")
        print(f"{'opening to first picture':34}{first:8.2f} s")
        for name, zoom in (("pan, zoomed in", 6.0), ("pan, zoomed in far", 40.0)):
            browser.run(f"viewer.scene.fit(); viewer.scene.zoom({zoom}); viewer.scene.pan(-300, -200); 0")
            fps, slowest, took, drawn = pan(browser)
            print(f"{name:34}{fps:8.1f} frames/s, slowest {slowest:.0f} ms; {drawn} drawn in {took:.1f} ms each")
        browser.run("viewer.scene.fit(); 0")
        drawn = browser.run(
            "(() => { const t = performance.now(); for (let i = 0; i < 50; i++) viewer.scene.draw();"
            " return (performance.now() - t) / 50 })()"
        )
        print(f"{'drawing the whole episode':34}{drawn:8.1f} ms")
        asked = [url for url in browser.requests if not url.startswith(("file:", "about:", "data:", "blob:"))]
        print(f"{'requests to the network':34}{len(asked):8d} {asked[:3] or ''}")
        print(f"{'exceptions and console errors':34}{len(browser.problems):8d} {browser.problems[:3] or ''}")
    for dark in (False, True) if axe else ():
        with Browser(path, dark=dark) as browser:
            browser.open(page)
            check(browser, axe or Path(), "dark" if dark else "light")
    if shots:
        for name, size in {"wide": (1440, 1000), "phone": (390, 844)}.items():
            for dark in (False, True):
                with Browser(path, *size, dark=dark, phone=name == "phone") as browser:
                    browser.open(page)
                    browser.run("document.querySelector('#swarm').scrollIntoView(); 0")
                    browser.screenshot(shots / f"{name}-{'dark' if dark else 'light'}.png")


def check(browser: Browser, axe: Path, theme: str) -> None:
    """Run axe-core in the page, with a turn chosen and everything unfolded, and print what it finds."""
    browser.run(axe.read_text() + "; 0")
    browser.run("viewer.choose(1, 0); document.querySelectorAll('details').forEach(d => { d.open = true; }); 0")
    found = browser.run(
        "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)]))"
    )
    serious = sum(impact in ("serious", "critical") for impact, *_ in found)
    print(f"{f'axe, {theme}: findings, serious ones':34}{len(found):8d}, {serious}")
    for row in found:
        print("   ", *row)


def main() -> None:
    """Make the episode, write its page, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=300)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--page", type=Path, help="measure this report instead of a made-up one")
    parser.add_argument("--keep", type=Path, help="keep the made-up store and its page in this folder")
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--shots", type=Path, help="write screenshots into this folder")
    options = parser.parse_args()
    if chromium() is None:
        print("skipped: no chromium, chromium-browser or google-chrome on the PATH; CHROMIUM=... names another")
        return
    with tempfile.TemporaryDirectory() as temporary:
        page = options.page
        if page is None:
            folder = options.keep or Path(temporary) / "store"
            tokenizer = Tokenizer.load(next(STARTERS.glob("*/tokenizer.json")))
            episode = big_episode(tokenizer, options.agents, options.steps)
            EpisodeStore(folder).write(0, [episode], policy_version=0)
            tokenizer.save(folder / "tokenizer.json")
            began = time.monotonic()
            page = write_report(folder, folder / "report.html")
            print(f"{'sampled tokens':34}{sum(len(trace.tokens) for trace in episode.traces):8d}")
            print(f"{'writing the page':34}{time.monotonic() - began:8.2f} s")
        measure(page, options.axe, options.shots)


if __name__ == "__main__":
    main()
