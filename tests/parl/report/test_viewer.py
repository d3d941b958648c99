"""The swarm viewer in a headless Chromium: drawing, clicks, links, keys, search, phone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report import EVIL, serial_episode, speaking_episode, swarm_episode

from benchmarks.viewer import Browser, chromium
from model.tokenizer.tokenizer import Tokenizer
from parl.report import write_report
from parl.report.page import _COLUMNS
from rollouts.critical_path import critical_path
from rollouts.store.store import EpisodeStore

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH (CHROMIUM names another one)")
EPISODE = "eval-000000:0"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("store")
    first, second = speaking_episode(tokenizer, 12), serial_episode()
    second.task = dataclasses.replace(second.task, key=EVIL, family=EVIL)
    second.orchestrator.turns[0].results[0] = dataclasses.replace(second.orchestrator.turns[0].results[0], text=EVIL)
    many = dataclasses.replace(swarm_episode(120), index=1)
    many.metrics = {}
    EpisodeStore(folder).write(0, [first, second, many], policy_version=0, kind="eval")
    tokenizer.save(folder)
    return write_report(folder, folder / "report.html", [EPISODE])


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with Browser(chromium() or "") as browser:
        yield browser


@pytest.fixture
def browser(chrome: Browser, page: Path) -> Iterator[Browser]:
    """The freshly opened page; afterwards it must have no errors and no network requests."""
    chrome.problems.clear()
    chrome.requests.clear()
    chrome.open(page)
    yield chrome
    assert chrome.problems == []
    assert [url for url in chrome.requests if not url.startswith(("file:", "about:", "data:", "blob:"))] == []


def click(browser: Browser, agent: int, turn: int) -> None:
    """A mouse click on the middle of a turn's bar."""
    x, y = browser.run(
        f"""(() => {{
          const s = viewer.scene, lane = s.lanes[{agent}], box = s.canvas.getBoundingClientRect();
          const x = (s.X(lane.from[{turn}]) + s.X(lane.to[{turn}])) / 2;
          return [box.x + x, box.y + s.Y(s.rowOf[{agent}]) + s.view.lane / 2];
        }})()"""
    )
    browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseReleased", x, y, button="left", clickCount=1)


def press(browser: Browser, key: str) -> None:
    browser.run(f"viewer.ui.canvas.dispatchEvent(new KeyboardEvent('keydown', {{ key: {key!r}, bubbles: true }})); 0")


def panel(browser: Browser) -> str:
    return browser.run("viewer.panel.innerText")


def chosen(browser: Browser) -> list[object]:
    return browser.run("viewer.scene.selected && [viewer.scene.selected.agent, viewer.scene.selected.turn]")


def test_it_marks_the_critical_path_of_steps_and_of_seconds(browser: Browser, tokenizer: Tokenizer) -> None:
    episode = speaking_episode(tokenizer, 12)
    for mode, seconds in (("step", False), ("time", True)):
        browser.run(f"viewer.setMode('{mode}')")
        marked = browser.run(
            "viewer.scene.lanes.flatMap((lane, a) => lane.critical.flatMap((yes, k) =>"
            " yes ? [[viewer.episode.agents[a].id, k]] : []))"
        )
        assert {(agent, turn) for agent, turn in marked} == set(critical_path(episode, seconds=seconds))
    assert browser.run("viewer.scene.mostBusy") == 12


def test_the_picture_has_the_colours_of_the_path_and_of_what_is_off_it(browser: Browser) -> None:
    colours = browser.run(
        """(() => {
          const s = viewer.scene, ratio = s.canvas.width / s.width, middle = s.view.lane / 2;
          s.draw();
          return s.lanes.map((lane, a) => lane.from.length && [...s.ctx.getImageData(
            (s.X(lane.from[0]) + 3) * ratio, (s.Y(s.rowOf[a]) + middle - 5) * ratio, 1, 1).data].slice(0, 3).join());
        })()"""
    )
    critical = browser.run("viewer.scene.lanes.map(lane => lane.critical.includes(true))")
    of = {yes: {c for c, on in zip(colours, critical, strict=True) if on is yes} for yes in (True, False)}
    assert len(of[True]) == len(of[False]) == 1 and of[True] != of[False]


def test_a_click_opens_the_turn_with_calls_results_rewards_and_tokens(browser: Browser) -> None:
    click(browser, 3, 0)
    text = panel(browser)
    assert "0/2 country 3 · turn 1" in text and "capital of Osmania" in text and "population 81 000" in text
    assert browser.run("location.hash") == f"#{EPISODE}/0.2/1"
    browser.run("document.querySelector('.tokens').open = true; 0")
    browser.wait("document.querySelectorAll('.stream span').length > 0")
    spelled = browser.run("document.querySelector('.stream').textContent")
    assert spelled == "Look it up. search"
    assert "log-prob -" in browser.run("document.querySelector('.stream span').title")
    click(browser, 0, 3)
    assert "perf" in panel(browser) and "0.96" in panel(browser)


def test_a_spawning_call_leads_to_its_agent_and_back(browser: Browser) -> None:
    click(browser, 0, 1)
    browser.run("[...document.querySelectorAll('.jump')].find(b => b.textContent.startsWith('0/4')).click(); 0")
    assert chosen(browser) == [5, 0]
    press(browser, "u")
    assert chosen(browser) == [0, 1]


def test_an_address_leads_to_its_turn_and_back_to_the_one_before(browser: Browser, page: Path) -> None:
    browser.open(page, f"#{EPISODE}/0.7/2")
    assert chosen(browser) == [8, 1] and browser.run("location.hash") == f"#{EPISODE}/0.7/2"
    click(browser, 2, 0)
    browser.run("history.back(); 0")
    browser.wait("viewer.scene.selected && viewer.scene.selected.agent === 8")
    browser.open(page, "#eval-000000:2/0.100/1")
    browser.wait("viewer.scene.selected !== null")
    assert browser.run("viewer.episode.agents.length") == 122 and chosen(browser) == [101, 0]
    browser.open(page, "#gone-0-x-0/0/1")
    assert "does not hold the episode gone-0-x-0" in panel(browser)
    browser.open(page, f"#{EPISODE}/0.99/1")
    assert "has no agent 0/99" in panel(browser)


def test_keys_go_from_turn_to_turn(browser: Browser) -> None:
    press(browser, "ArrowRight")
    assert chosen(browser) == [0, 0]
    press(browser, "ArrowRight")
    press(browser, "ArrowRight")
    assert chosen(browser) == [0, 2]
    press(browser, "ArrowUp")
    assert chosen(browser) == [0, 2]
    for _ in range(3):
        press(browser, "C")
    agent, turn = chosen(browser)
    assert browser.run(f"viewer.scene.lanes[{agent}].critical[{turn}]") and agent != 0
    press(browser, "t")
    assert browser.run("viewer.scene.mode") == "time"
    press(browser, "Escape")
    assert chosen(browser) is None


def test_search_finds_agents_and_text_and_goes_through_the_matches(browser: Browser) -> None:
    browser.run("viewer.search('country 7'); 0")
    own = browser.run("viewer.episode.agents[7].turns.length")
    assert browser.run("viewer.hits") == [[0, 1], *([7, turn] for turn in range(own))]  # the call that launched it, too
    browser.run("viewer.step(1); viewer.step(1); 0")
    assert chosen(browser) == [7, 0]
    browser.run("viewer.search('POPULATION 81'); 0")
    assert browser.run("viewer.hits.length") > 12
    browser.run("viewer.search('nowhere at all'); 0")
    assert browser.run("viewer.ui.found.textContent") == "nothing found"


def test_wheel_zooms_with_ctrl_and_a_drag_moves_the_picture(browser: Browser) -> None:
    x, y, w, h = browser.run("(b => [b.x, b.y, b.width, b.height])(viewer.ui.canvas.getBoundingClientRect())")
    browser.mouse("mouseWheel", x + w / 2, y + h / 2, deltaX=0, deltaY=-300, modifiers=2)
    browser.wait("viewer.scene.view.kx > 1.3 * viewer.scene.fitKx")
    before = browser.run("viewer.scene.view.x")
    assert before > 0
    browser.drag(x + w / 2, y + h / 2, [(10, 0)] * 4)
    assert browser.run("viewer.scene.view.x") < before
    assert chosen(browser) is None  # a drag is no click
    press(browser, "0")
    assert browser.run("viewer.scene.isFitted()")


def test_text_of_a_run_stays_text(browser: Browser) -> None:
    browser.run("viewer.open(DATA.episodes.findIndex(e => e.task.includes('script')))")
    click(browser, 0, 0)
    assert EVIL in browser.run("viewer.panel.textContent")
    assert browser.run("document.images.length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Path, dark: bool) -> None:
    with Browser(chromium() or "", 390, 844, phone=True, dark=dark) as browser:
        browser.open(page, f"#{EPISODE}/0.3/1")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("viewer.scene.color.card") == ("#161b22" if dark else "#ffffff")
        assert browser.run("viewer.ui.canvas.clientWidth") > 280
        assert browser.problems == []


def test_a_phone_shows_every_figure_of_the_verdict(tmp_path: Path) -> None:
    row = {"item_f1": 0.8, "success": 0.8, "critical_steps": 7.4, "total_steps": 20.0, "subagents": 3.0}
    row |= {"spawn_rate": 0.9, "finish_rate": 0.9, "n_tasks": 40}
    (tmp_path / "run" / "eval").mkdir(parents=True)
    EpisodeStore(tmp_path / "run" / "eval").write(0, [serial_episode()], policy_version=0, kind="trained")
    (tmp_path / "run" / "summary.json").write_text(
        json.dumps({"trained": {"wide": row}, "single_agent": {"wide": row}})
    )
    page = write_report(tmp_path / "run", tmp_path / "report.html")
    with Browser(chromium() or "", 390, 844, phone=True) as browser:
        browser.open(page)
        cells = "[...document.querySelectorAll('.verdict td')].map(cell => cell.getBoundingClientRect())"
        assert browser.run(f"{cells}.length") == 2 * len(_COLUMNS)
        assert browser.run(f"{cells}.every(box => box.width > 0 && box.left >= 0 && box.right <= innerWidth)")
        labels = browser.run("[...document.querySelectorAll('.verdict td')].map(cell => cell.dataset.label)")
        assert labels.count("critical steps") == 2
