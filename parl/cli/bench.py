"""``parl bench``: prepare, run and score published benchmarks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.episodes import AsJson, Kind
from parl.cli.errors import reported, written_to
from parl.cli.policies import ConfigArg, ModelArg, ModelName, Overrides, PolicyNames, SingleAgent
from parl.errors import UserError
from parl.shown.terminal import echo

app = typer.Typer(help="Published benchmarks: prepare a download, run a policy, score replies.", no_args_is_help=True)

JudgeUrl = Annotated[str | None, typer.Option("--judge-url", help="API of the judging model, such as http://HOST/v1.")]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", help="Its name there.")]
JudgeKey = Annotated[str | None, typer.Option("--judge-key-env", help="Environment variable with its key.")]


class Mode(StrEnum):
    """Which rules score WideSearch."""

    COMPAT = "compat"
    SANE = "sane"


@app.command("list")
def list_() -> None:
    """List the benchmarks, what to download for each and the limits of an episode."""
    with reported():
        from envs.benchmarks.registry import BENCHMARKS, benchmark_class

        for name in BENCHMARKS:
            kind = benchmark_class(name)
            limits = kind.limits
            steps = f"{limits.orchestrator_steps} and {limits.subagent_steps} steps ({limits.source})"
            echo(f"{name}: {kind.about}\n  download: {kind.download}\n  orchestrator and sub-agents: {steps}")


@app.command("prepare")
def prepare(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="a benchmark of parl bench list, or package.module:Class")
    ],
    source: Annotated[Path, typer.Option("--from", metavar="PATH", help="what you downloaded")],
    to: Annotated[Path | None, typer.Option("--to", help="The prepared folder; default: benchmarks/NAME.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, where a benchmark asks.")] = None,
) -> None:
    """Read a download, check it, and write the folder that the other commands take."""
    with reported():
        from parl.evaluate.bench.prepare import prepare as made

        folder = to or Path("benchmarks") / name.rpartition(":")[2]
        with written_to(folder):
            count = made(name, source, folder, settings or ())
        echo(f"{count} tasks in {folder}\nrun it with: parl bench run {folder} CONFIG|RUN")


@app.command("run")
def run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="what parl bench prepare wrote")],
    config: ConfigArg,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("--n", help="Attempts at each task.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first tasks.")] = None,
    policy: PolicyNames = None,
    model: ModelArg = None,
    model_name: ModelName = None,
    single_agent: SingleAgent = False,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a policy on a benchmark and store its episodes, as parl eval does. Resumable."""
    with reported("; the same command continues"):
        from parl.config.runs import configuration
        from parl.evaluate.bench.prepare import judge_settings, run_settings

        judge = judge_settings(judge_url, judge_model, judge_key)
        others = [text for text in overrides or [] if text.partition("=")[0].split(".")[0].strip() != "envs"]
        given = configuration(config, others, files=False)
        settings = run_settings(folder, judge, given.envs.config, given.rollouts.score_deadline_s)
        resolved = configuration(config, [*settings, *(overrides or [])])
        from parl.evaluate.evaluation import run_eval
        from parl.evaluate.table import print_evaluation

        options = {"n": n, "limit": limit, "model": model, "model_name": model_name, "single_agent": single_agent}
        result = run_eval(resolved, policies=policy or (), **options)
        if as_json:
            echo(json.dumps(result, allow_nan=False))
        else:
            print_evaluation(result)


@app.command("score")
def score(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="a benchmark's name, or its prepared folder")],
    path: Annotated[Path, typer.Argument(metavar="CASES.jsonl|STORE", help="rows with gold and reply; or episodes")],
    mode: Annotated[Mode, typer.Option("--mode", help="WideSearch: official numbers, or fair ones.")] = Mode.COMPAT,
    kind: Kind = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
) -> None:
    """Score replies of a file, or stored episodes again with FOLDER; prints one JSON object per row."""
    with reported():
        from parl.evaluate.bench.cases import score_cases
        from parl.evaluate.bench.prepare import judge_settings, score_store

        if (Path(name) / "benchmark.json").exists():
            judge = judge_settings(judge_url, judge_model, judge_key)
            rows = score_store(Path(name), path, kind, mode.value, judge)
        elif path.is_dir():
            raise UserError(
                f"{path} is a folder: to score stored episodes, name the prepared benchmark first, not {name}"
            )
        else:
            rows = score_cases(name, path, mode.value)
        for row in rows:
            echo(json.dumps(row, allow_nan=False))
