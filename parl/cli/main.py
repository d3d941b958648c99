"""The ``parl`` command. Help, ``--dry-run`` and errors respond before anything heavy is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import parl
from parl.cli import bench as cli_bench
from parl.cli import cluster as cli_cluster
from parl.cli import env as cli_env
from parl.cli import episodes as cli_episodes
from parl.cli import models as cli_models
from parl.cli import policies as cli_policies
from parl.cli import sweep as cli_sweep
from parl.cli.episodes import AsJson, Family, Kind, Step, StoreArg
from parl.cli.errors import reported, written_to
from parl.cli.policies import ConfigArg, ModelArg, ModelName, Overrides, PolicyNames, SingleAgent
from parl.errors import UserError
from parl.own_packages import append, here
from parl.shown.terminal import catch_warnings, echo, open_output

if TYPE_CHECKING:
    from parl.config.schema import Config

app = typer.Typer(
    name="parl",
    help="Train an orchestrator to split work over a swarm of frozen sub-agents, where it pays.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cli_env.app, name="env")
app.add_typer(cli_episodes.app, name="episodes")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_models.app, name="model")
app.add_typer(cli_cluster.app, name="cluster")
app.add_typer(cli_policies.app)
app.add_typer(cli_sweep.app)

FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Ignore caches and shipped weights.")]


@app.command()
def train(
    config: ConfigArg,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    from_scratch: FromScratch = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Cold start, reinforcement learning, evaluation and report of one run."""
    again = f"; continue with: parl train {config} {' '.join(overrides or [])} --resume".replace("  ", " ")
    with reported("" if dry_run else again):
        from parl.config.load import to_yaml
        from parl.config.runs import configuration, is_run

        if resume and from_scratch:
            raise UserError("--resume continues the old run and --from-scratch discards it: give one of them")
        resolved = configuration(config, overrides, run_first=resume)
        if not resume and not dry_run and is_run(config):
            raise UserError(f"{config} is a run: --resume continues it, its config.yaml as CONFIG starts it anew")
        _check_surroundings(resolved)
        if dry_run:
            from parl.cold_start.shipped import Recipe, starter_note

            notes = [starter_note(Recipe.of(resolved))]
            if resolved.envs.tasks or resolved.envs.build().digest():
                from parl.collect.tasks import data_notes, run_tasks

                notes = [*data_notes(resolved, run_tasks(resolved, estimate=True)), *notes]
            for note in filter(None, notes):
                echo(f"note: {note}", err=True)
            echo(to_yaml(resolved), nl=False)
            echo(f"# run folder: {resolved.run_dir}")
        from parl.plan.limits import check_memory

        check_memory(resolved.model, resolved.optimizer, resolved.trainer)
        if dry_run:
            return
        from parl.run.job import run_training

        run_dir = run_training(resolved, resume=resume, from_scratch=from_scratch)
        echo(f"done: {run_dir}")


@app.command()
def sft(
    config: ConfigArg,
    overrides: Overrides = None,
    from_scratch: FromScratch = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write them here as a starter, e.g. configs/starters.")
    ] = None,
) -> None:
    """Only the cold start: imitation of scripted demonstrations."""
    with reported():
        from parl.config.runs import configuration

        resolved = configuration(config, overrides)
        from parl.config.schema import TrainerConfig
        from parl.plan.limits import check_memory

        check_memory(resolved.model, resolved.optimizer, TrainerConfig(ranks=1))  # one process trains it
        _check_surroundings(resolved)
        from parl.cold_start.imitation import run_sft
        from parl.collect.free_running import free_running
        from parl.collect.tasks import check_tasks

        check_tasks(resolved)
        check = free_running(resolved)
        echo(f"done: {run_sft(resolved, from_scratch=from_scratch, out=out, check=check)}")


@app.command("eval")
def evaluate(
    config: ConfigArg,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("--n", help="Attempts at each task.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first of the held-out tasks.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of tasks and sampling; default: eval.seed.")] = None,
    policy: PolicyNames = None,
    model: ModelArg = None,
    model_name: ModelName = None,
    single_agent: SingleAgent = False,
    price_in: Annotated[
        float | None, typer.Option("--price-in", min=0, help="Price per million prompt tokens.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price-out", min=0, help="Price per million sampled tokens.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's policies on held-out tasks: avg@k, max@k, pass@k with intervals, and costs. Resumable."""
    with reported("; the same command continues"):
        from parl.config.runs import configuration

        settings = [*(overrides or []), *([] if seed is None else [f"eval.seed={seed}"])]
        resolved = configuration(config, settings)
        _check_surroundings(resolved)
        from parl.evaluate.evaluation import run_eval
        from parl.evaluate.table import print_evaluation

        if (price_in is None) != (price_out is None):
            raise UserError(f"--price-in {price_in} and --price-out {price_out}: give both, or none")
        prices = None if price_in is None or price_out is None else (price_in, price_out)
        options = {"n": n, "limit": limit, "policies": policy or (), "model_name": model_name, "prices": prices}
        result = run_eval(resolved, model=model, single_agent=single_agent, **options)
        if as_json:
            echo(json.dumps(result, allow_nan=False))
        else:
            print_evaluation(result)


@app.command()
def rescore(
    store: StoreArg,
    overrides: Overrides = None,
    rewards: Annotated[
        Path | None,
        typer.Option("--rewards", metavar="CONFIG", help="A configuration with the rewards; default: the run's own."),
    ] = None,
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """Score stored episodes again without a model: other rewards, another schedule, or a check."""
    with reported():
        from parl.evaluate.rescore import print_summary, rescore, rewards_config

        results = rescore(store, rewards_config(store, rewards, overrides), kind=kind)
        if as_json:
            for result in results:
                echo(json.dumps(result.row()))
        else:
            print_summary(results)


@app.command()
def replay(
    store: StoreArg,
    kind: Kind = None,
    step: Step = None,
    family: Family = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A configuration with the environment; default: the run's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Repeat the tool calls of stored episodes and show changed answers; exits with 1 if there are any."""
    with reported():
        from parl.episodes.listing import Filter
        from parl.episodes.tool_replay import print_replay

        drifted = print_replay(store, Filter(kind=kind, step=step, family=family), config, as_json=as_json)
        if drifted:
            raise typer.Exit(1)


@app.command()
def compare(
    policies: Annotated[
        list[str], typer.Argument(metavar="PATH[:LABEL]...", help="runs, stores or shards; the first is the reference")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a page with plots, e.g. compare.html")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare policies on the same tasks: paired differences with intervals, regressions by task, trade-offs."""
    with reported():
        from parl.evaluate.compare import compare as compare_samples
        from parl.evaluate.compare import load_samples
        from parl.evaluate.compare_table import print_comparison
        from parl.evaluate.measures import plain

        one = len(policies) == 1
        result = compare_samples(load_samples(policies, of_one_run=one), of_one_run=one)
        if as_json:
            echo(json.dumps(plain(result), allow_nan=False))
        else:
            print_comparison(result)
        if out:
            from parl.evaluate.compare_page import write_page

            with written_to(out):
                echo(f"wrote {write_page(result, out)}", err=as_json)


@app.command()
def top(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder or name")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between updates.")] = 2.0,
) -> None:
    """Watch a run in the terminal: curves, families, times, slowest episodes, warnings."""
    with reported():
        from parl.track.top import show

        show(run, once=once, every_s=every)


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|STORE", help="a run's folder or its name below runs/; a store's folder; a shard"),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in that folder.")] = None,
    episode: Annotated[
        list[str] | None,
        typer.Option("--episode", "-e", help="Show this one: SHARD:ROW, TASK or TASK#INDEX; may be repeated."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run or a store: verdict, curves, swarm viewer."""
    with reported():
        from parl.report import report_source, write_report

        run_dir = report_source(run)
        folder = run_dir.parent if run_dir.is_file() else run_dir
        page = out or folder / "report.html"
        with written_to(page):
            echo(f"wrote {write_report(run_dir, page, episode or [])}")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a shape in configs/models, a YAML file, or a folder")],
    gpus: Annotated[int, typer.Option("--gpus", help="Number of GPUs.")],
    gpu: Annotated[str, typer.Option("--gpu", help="Type of GPU, e.g. h200, a100-80, l40s, rtx4090.")] = "h200",
    zero: Annotated[int, typer.Option("--zero", help="ZeRO stage.")] = 2,
    ep: Annotated[int, typer.Option("--ep", help="GPUs that share a layer's experts; 0: as many as possible.")] = 0,
    offload: Annotated[
        str, typer.Option("--offload", help="none, or optimizer: keep its states in host memory.")
    ] = "none",
    micro_tokens: Annotated[int, typer.Option("--micro-tokens", help="Tokens per GPU and pass.")] = 4096,
    step_tokens: Annotated[int, typer.Option("--step-tokens", help="Tokens of all GPUs per step.")] = 4_194_304,
    context: Annotated[int, typer.Option("--context", help="Length of the rows in tokens.")] = 32_768,
    host_gb: Annotated[float, typer.Option("--host-gb", help="Memory of a node of 8 GPUs.")] = 2000.0,
    gpu_gb: Annotated[float | None, typer.Option("--gpu-gb", help="Memory of another type of GPU.")] = None,
    gpu_tflops: Annotated[float | None, typer.Option("--gpu-tflops", help="... its dense bfloat16 speed.")] = None,
    gpu_tbs: Annotated[float | None, typer.Option("--gpu-tbs", help="... its memory's TB/s.")] = None,
    link_gbs: Annotated[float | None, typer.Option("--link-gbs", help="GB/s one way between GPUs of a node.")] = None,
    net_gbs: Annotated[float | None, typer.Option("--net-gbs", help="GB/s a GPU between nodes.")] = None,
) -> None:
    """Estimate what training a model takes: memory per GPU, traffic, a lower bound on the step's time."""
    with reported():
        from parl.plan.gpus import Given
        from parl.plan.table import print_plan

        given = Given(gb=gpu_gb, tflops=gpu_tflops, tbs=gpu_tbs, link_gbs=link_gbs, net_gbs=net_gbs)
        sizes = {"micro_tokens": micro_tokens, "step_tokens": step_tokens, "context": context}
        print_plan(model, gpu, gpus=gpus, zero=zero, ep=ep, offload=offload, host_gb=host_gb, given=given, **sizes)


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List what a configuration can name: environments, families, engines, objectives, rewards."""
    with reported():
        from parl.cli.plugins import print_plugins

        print_plugins(as_json=as_json)


def _check_surroundings(config: Config) -> None:
    from envs.tasks_io import names_file
    from parl.machine.shell_variables import check_cluster, check_proxy, join
    from parl.track.sinks import check_sinks

    tasks = config.envs.tasks
    check_sinks(config.tracking)
    if config.cluster.address is not None:
        join(config.cluster.address)
    check_cluster()
    if tasks and not names_file(tasks):  # a data set of the hub
        check_proxy()


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"parl {parl.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``parl`` script and of ``python -m parl``."""
    open_output()
    catch_warnings()
    if not here():
        echo("error: the current folder is no longer there; change to another one", err=True)
        sys.exit(2)
    append([here()])
    sys.exit(app())
