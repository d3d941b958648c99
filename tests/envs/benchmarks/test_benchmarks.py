"""Benchmarks from a download to a score: reading, hiding the gold, tools, refusals."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from envs.base import Environment, Role, Section, Task, ToolCall, ToolResult, ToolSpec
from envs.benchmarks.base import Benchmark, json_lines, read_prepared, write_prepared
from envs.benchmarks.environment import BenchmarkConfig, BenchmarkEnvironment
from envs.benchmarks.harbor import Harbor, read_dockerfile
from envs.benchmarks.judge import ChatJudge, JudgeConfig
from envs.benchmarks.registry import BENCHMARKS, benchmark_class, prepared
from envs.benchmarks.scoring.pages import chromium, visible_text
from envs.plugs.session import PlugSession
from parl.cli.main import app

CANARY = "made-up canary 7d1f"
PAGE = (
    '<body style="margin:0;background:#eef"><h1 style="background:#224;color:white">Tea House</h1>'
    "<p>Open from nine.</p>"
)


def encrypted(text: str) -> str:
    """The scheme of BrowseComp, the other way."""
    key = cycle(hashlib.sha256(CANARY.encode()).digest())
    return base64.b64encode(bytes(a ^ b for a, b in zip(text.encode(), key, strict=False))).decode()


def browsecomp_csv(folder: Path) -> Path:
    path = folder / "browse_comp_test_set.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["problem", "answer", "problem_topic", "canary"])
        writer.writeheader()
        row = {"problem": encrypted("Which town?"), "answer": encrypted("Velmora"), "canary": CANARY}
        writer.writerow(row | {"problem_topic": "towns"})
    return path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def made(kind: type[Benchmark], source: Path, folder: Path) -> BenchmarkEnvironment:
    folder.mkdir()
    write_prepared(kind(folder), source, folder)
    return BenchmarkEnvironment(BenchmarkConfig(folder=folder))


def ended(answer: str, status: str = "answered") -> Any:
    return SimpleNamespace(answer=answer, status=status)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id=f"functions.{name}:0", name=name, arguments=arguments)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_to_download_and_its_limits(name: str):
    kind = benchmark_class(name)
    assert kind.name == name and kind.download and kind.limits.source
    assert name in run("list").output


def test_the_limits_are_those_of_the_k25_report():
    browsecomp, wide = benchmark_class("browsecomp").limits, benchmark_class("widesearch").limits
    assert (browsecomp.orchestrator_steps, browsecomp.subagent_steps) == (15, 100)
    assert (wide.orchestrator_steps, wide.subagent_steps) == (100, 100)


async def test_browsecomp_stays_encrypted_on_disk(tmp_path: Path):
    source, folder = browsecomp_csv(tmp_path), tmp_path / "prepared"
    result = run("prepare", "browsecomp", "--from", source, "--to", folder)
    assert result.exit_code == 0, result.output
    stored = "".join(path.read_text() for path in folder.iterdir())
    assert "Which town?" not in stored and "Velmora" not in stored
    benchmark, (row,) = prepared(folder), read_prepared(folder)
    task = benchmark.task(row)
    assert "Which town?" in task.prompt and "Velmora" not in repr(task)
    asked = []

    async def ask(prompt: str) -> str:
        asked.append(prompt)
        return "correct: yes"

    assert (await benchmark.score(row, "Exact Answer: Velmora", ask)).value == 1.0
    assert "Velmora" in asked[0] and "Which town?" in asked[0]
    assert (await benchmark.score(row, "", ask)).value == 0.0 and len(asked) == 1


def test_a_wrong_download_is_named_with_what_to_download(tmp_path: Path):
    (tmp_path / "x.csv").write_text("problem,answer,canary\nplain question,plain answer,c\n")
    result = run("prepare", "browsecomp", "--from", tmp_path / "x.csv", "--to", tmp_path / "p")
    assert result.exit_code == 2 and "cannot be decrypted" in result.output and not (tmp_path / "p").exists()
    result = run("prepare", "frames", "--from", tmp_path / "x.csv", "--to", tmp_path / "p")
    assert result.exit_code == 2 and "google/frames-benchmark" in result.output
    assert run("prepare", "frame", "--from", tmp_path / "x.csv").exit_code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    result = run("prepare", "frames", "--from", tmp_path / "x.csv", "--to", tmp_path / "full")
    assert result.exit_code == 2 and (tmp_path / "full" / "mine.txt").exists()


def test_a_line_of_json_may_hold_every_line_end_of_unicode(tmp_path: Path):
    rows = [{"question": "a\u2028b\x85c\u2029d"}, {"question": "e"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert list(json_lines(file)) == rows


def test_a_judged_benchmark_without_a_judge_is_refused(tmp_path: Path):
    from envs.benchmarks.browsecomp import BrowseComp

    with pytest.raises(ValueError, match=r"envs\.config\.judge"):
        list(made(BrowseComp, browsecomp_csv(tmp_path), tmp_path / "p").notes())


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("hotpotqa", {"_id": "q", "answer": "Rome", "context": [["Rome", ["A ", "town."]], ["Oslo", ["B"]]]}, "rome"),
        ("2wiki", {"_id": "q", "answer": "Rome", "answer_id": "Q1", "context": [["Rome", ["A town."]]]}, "Roma"),
        (
            "musique",
            {
                **{"id": "q", "answer": "Rome", "answer_aliases": ["Roma"], "answerable": True},
                "paragraphs": [{"idx": 0, "title": "Rome", "paragraph_text": "A town."}],
            },
            "Roma",
        ),
    ],
)
async def test_multi_hop_questions_with_their_pages(name: str, row: dict[str, Any], answer: str, tmp_path: Path):
    (tmp_path / "dev.json").write_text(json.dumps([{"question": "Where?", **row}]))
    (tmp_path / "id_aliases.json").write_text('{"Q_id": "Q1", "aliases": ["Roma"], "demonyms": []}\n')
    environment = made(benchmark_class(name), tmp_path / "dev.json", tmp_path / "p")
    (task,) = environment.tasks("test")
    assert "- Rome" in task.prompt and "A town" not in task.prompt and "Roma" not in repr(task)
    session = await environment.open(task)
    assert (await session.call("main", call("read", titles=["Rome"]), deadline_s=5)).text == "Rome\nA town."
    assert (await session.call("main", call("read", titles=["Bonn"]), deadline_s=5)).error == "not_found"
    assert (await session.call("main", call("search", q="x"), deadline_s=5)).error == "unknown_tool"
    assert (await session.score(ended(f"Answer: the {answer}"))).value == 1.0
    assert (await session.score(ended(f"Answer: {answer}", "over_budget"))).value == 0.0
    await session.close()
    await environment.close()


async def test_widesearch_asks_a_judge_about_names_and_scores_both_ways(tmp_path: Path):
    from envs.benchmarks.widesearch import WideSearch

    rules = {
        **{"unique_columns": ["city"], "required": ["city", "year"]},
        "eval_pipeline": {name: {"preprocess": ["norm_str"], "metric": ["exact_match"]} for name in ("city", "year")},
    }
    row = {"instance_id": "ws_1", "query": "Which?", "evaluation": json.dumps(rules), "language": "en"}
    (tmp_path / "widesearch.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "widesearch_gold").mkdir()
    (tmp_path / "widesearch_gold" / "ws_1.csv").write_text("City,Year\nRome,2001\nOslo,2002\n")
    environment = made(WideSearch, tmp_path, tmp_path / "p")
    (task,) = environment.tasks("test")
    assert task.width == 2 and "Rome" not in repr(task)
    reply = "| City | Year |\n|---|---|\n| Roma | 2001 |\n| Oslo | |"
    prompts = []

    async def ask(prompt: str) -> str:
        prompts.append(prompt)
        return '```json\n{"Roma": "Rome"}\n```'

    (row,) = read_prepared(tmp_path / "p")
    fair = await WideSearch(tmp_path / "p").score(row, reply, ask)
    official = await WideSearch(tmp_path / "p", {"mode": "compat"}).score(row, reply, ask)
    assert (fair.value, official.value) == (0.75, 0.5) and len(prompts) == 2 and "Roma" in prompts[0]

    async def dead(prompt: str) -> str:
        raise ConnectionError("refused")

    with pytest.raises(Exception, match="judge does not answer"):
        await WideSearch(tmp_path / "p", {"mode": "compat"}).score(row, reply, dead)


class Echo(Environment):
    """Tools of another environment."""

    class Config(Section):
        """Its section."""

        blocked: tuple[str, ...] = ()

    def tasks(self, split: str) -> list[Task]:
        return []

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> PlugSession:
        tool = ToolSpec(name="blocked", description="", parameters={"type": "object", "properties": {}})
        session = PlugSession(dict.fromkeys(Role, (tool,)), 1000)
        blocked = " ".join(self.config.blocked)

        async def run(agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
            return ToolResult(text=blocked)

        session.run = run  # type: ignore[method-assign]
        return session


async def test_tools_of_another_environment_stand_beside_the_benchmarks_own_and_know_what_is_blocked(tmp_path: Path):
    row = {"_id": "q", "question": "Where?", "answer": "Rome", "context": [["Rome", ["A town."]]]}
    (tmp_path / "dev.json").write_text(json.dumps([row]))
    environment = made(benchmark_class("hotpotqa"), tmp_path / "dev.json", tmp_path / "p")
    tools = {"name": f"{__name__}:Echo", "config": {"blocked": ["example.org"]}}
    environment = BenchmarkEnvironment(BenchmarkConfig.model_validate({"folder": tmp_path / "p", "tools": tools}))
    session = await environment.open(environment.tasks("test")[0])
    assert [tool.name for tool in session.tools(Role.ORCHESTRATOR)] == ["read", "blocked"]
    shown = (await session.call("main", call("blocked"), deadline_s=5)).text.split()
    assert "huggingface.co" in shown and "example.org" in shown
    assert (await session.call("main", call("read", titles=["Rome"]), deadline_s=5)).text == "Rome\nA town."
    await session.close()


async def test_the_judge_comes_back_after_a_busy_server_and_sends_its_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            return httpx.Response(429)
        return httpx.Response(200, json={"choices": [{"message": {"content": "correct: yes"}}]})

    real = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda **given: real(transport=httpx.MockTransport(answer), **given))
    judge = ChatJudge(JudgeConfig(url="http://judge/v1/", model="m", key_env="JUDGE_KEY"))
    assert await judge("Right?") == "correct: yes" and len(seen) == 2
    assert str(seen[1].url) == "http://judge/v1/chat/completions" and seen[1].headers["Authorization"] == "Bearer k"
    assert json.loads(seen[1].content)["messages"] == [{"role": "user", "content": "Right?"}]
    await judge.close()


def harbor_task(folder: Path, dockerfile: str, test: str = "echo 1 > /logs/verifier/reward.txt\n") -> Path:
    for name, text in {
        "task.toml": 'version = "1.0"\n',
        "instruction.md": "Do it.",
        "environment/Dockerfile": dockerfile,
        "environment/data/a.txt": "a",
        "tests/test.sh": test,
    }.items():
        (folder / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "one" / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("RUN pip install numpy", "RUN pip install numpy: only FROM, COPY, WORKDIR, ENV"),
        ("ADD https://example.org/x /x", "ADD"),
        ("COPY --from=base /x /x", "COPY takes paths alone"),
        ("ENTRYPOINT ['sh']", "give the task to Harbor"),
    ],
)
def test_a_dockerfile_that_needs_a_container_is_refused_with_its_line(line: str, why: str, tmp_path: Path):
    result = run("prepare", "harbor", "--from", harbor_task(tmp_path, f"FROM x\n{line}\n"), "--to", tmp_path / "p")
    assert result.exit_code == 2 and "Dockerfile:2" in " ".join(result.output.split()) and why in result.output


def test_a_dockerfile_as_folders_variables_and_copies():
    image = read_dockerfile(
        "FROM x\n# note\nWORKDIR /app\nWORKDIR src\nENV A=1 B='two words'\nENV C three\nCOPY a \\\n b ./\n"
    )
    assert image.workdir == "/app/src" and image.variables == {"A": "1", "B": "two words", "C": "three"}
    assert image.copies == [("a", "/app/src/"), ("b", "/app/src/")]


async def test_harbor_tests_are_put_there_last_and_replace_what_an_agent_wrote(tmp_path: Path):
    test = 'cat /app/data/a.txt; [ "$(cat /app/data/a.txt)" = b ] && echo 0.5 > /logs/verifier/reward.txt\n'
    tasks = harbor_task(tmp_path, "FROM x\nWORKDIR /app\nCOPY data /app/data\n", test)
    environment = made(Harbor, tasks, tmp_path / "p")
    (task,) = environment.tasks("test")
    cheat = "mkdir -p /logs/verifier /tests; echo 1 > ../logs/verifier/reward.txt; echo exit 0 > /tests/test.sh"
    for change, wanted in (("echo b > /app/data/a.txt", 0.5), ("true", 0.0)):
        session = await environment.open(task)
        said = await session.call("main", call("bash", command=f"{cheat}; {change}; cat data/a.txt"), deadline_s=30)
        assert said.error is None and len(said.text) == 1
        assert (await session.score(ended("done"))).value == wanted
        await session.close()


def test_the_gold_of_a_coding_task_is_not_in_its_prompt_or_tools(tmp_path: Path):
    environment = made(Harbor, harbor_task(tmp_path, "FROM x\nWORKDIR /app\n"), tmp_path / "p")
    (task,) = environment.tasks("train")
    assert "reward.txt" not in repr(task)


def test_visible_text():
    assert visible_text("<style>p{}</style><p>One <b>two</b></p><script>x()</script>three") == "One two three"
    head = (
        "<html><head><title>Hidden</title><style>p{}</style>"  # end tags of a head and a start of a body are optional
    )
    for start in ("<body>", "</head>", "<h1>", "<div>", ""):
        assert visible_text(f"{head}{start}One <p>two</p><script>x()</script> three") == "One two three", start
    assert visible_text(f"{head}<body><head>One</head> two") == "One two"


@pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH (CHROMIUM names another one)")
async def test_a_page_scores_by_how_near_it_comes_to_the_mockup(tmp_path: Path):
    pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
    from envs.benchmarks.mockups import Mockups
    from envs.benchmarks.scoring.pages import draw

    (tmp_path / "card.png").write_bytes(await draw(PAGE, 320, 200))
    (tmp_path / "card.html").write_text(PAGE)
    environment = made(Mockups, tmp_path, tmp_path / "p")
    assert environment.config.pictures
    (task,) = environment.tasks("test")
    session = await environment.open(task)
    assert {tool.name for tool in session.tools(Role.SUBAGENT)} == {"mockup", "draw"}
    assert len((await session.call("main", call("mockup"), deadline_s=30)).images) == 1
    local = f"<meta http-equiv=refresh content='0;url={(tmp_path / 'card.html').as_uri()}'>"
    frame = f"<iframe src='{(tmp_path / 'card.html').as_uri()}' width=320 height=200></iframe>"
    answers = {PAGE: 1.0, f"Here:\n```html\n{PAGE}\n```": 1.0, "<p></p>": 0.0, "no page": 0.0, local: 0.0, frame: 0.1}
    for answer, most in answers.items():
        value = (await session.score(ended(answer))).value
        assert value == 1.0 if most == 1.0 else value <= most, answer
    half = (await session.score(ended("<h1>Tea House</h1><p>Open from nine.</p>"))).value
    assert 0.4 < half < 0.9
    await session.close()


@pytest.mark.parametrize(
    ("rules", "gold", "why"),
    [
        ({"unique_columns": ["city"], "required": ["city", "area"]}, "City,Year\nRome,2001\n", "no column 'area'"),
        ({"unique_columns": ["area"], "required": ["city"]}, "City\nRome\n", "'area' is not in"),
        ({"unique_columns": [], "required": ["city"]}, "", "no column 'city'"),
    ],
)
def test_a_table_that_no_reply_could_match_is_refused_when_it_is_read(
    rules: dict[str, Any], gold: str, why: str, tmp_path: Path
):
    row = {"instance_id": "ws_7", "query": "Which?", "evaluation": rules | {"eval_pipeline": {}}}
    (tmp_path / "widesearch.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "widesearch_gold").mkdir()
    (tmp_path / "widesearch_gold" / "ws_7.csv").write_text(gold)
    result = run("prepare", "widesearch", "--from", tmp_path, "--to", tmp_path / "p")
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and why in said and "task ws_7" in said and not (tmp_path / "p").exists()
