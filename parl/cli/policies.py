"""Commands about one policy: chat, gateway, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.shown.terminal import echo

app = typer.Typer()

ConfigArg = Annotated[
    Path, typer.Argument(metavar="CONFIG|RUN", help="a YAML file, a preset such as quickstart, or a run")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, e.g. trainer.steps=20 seed=2")
]
PolicyNames = Annotated[
    list[str] | None,
    typer.Option("--policy", help="cold_start, cold_start_no_spawn, trained, single_agent; may be repeated."),
]
ModelArg = Annotated[
    str | None, typer.Option("--model", help="A policy's folder instead of the run's own, or a chat server's URL.")
]
ModelName = Annotated[
    str | None, typer.Option("--model-name", help="Name of the server's model; default: the first that it lists.")
]
SingleAgent = Annotated[bool, typer.Option("--single-agent", help="Without the tools that spawn.")]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder or name, or a policy's folder")],
    format: Annotated[str, typer.Option("--format", help="hf (deepseek_v3) or kimi_k25 (also with vision).")] = "hf",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: a folder in RUN named after it.")] = None,
    int4: Annotated[bool, typer.Option("--int4", help="Routed experts as INT4, packed as K2.5's are.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32 or bfloat16. Default: float32; for the family hf, the policy's own."),
    ] = None,
) -> None:
    """Write a policy as a Hugging Face folder, which transformers and inference servers load."""
    with reported():
        from parl.serve.export import export as write

        with written_to(out or run):
            echo(f"wrote {write(run, out, format=format, int4=int4, dtype=dtype)}")


@app.command()
def gateway(
    run: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="a run's folder or name, or a policy's folder")],
    port: Annotated[int, typer.Option("--port")] = 8000,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    record: Annotated[Path | None, typer.Option("--record", help="Folder for finished episodes.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of all requests.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Of all requests.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="Let the policy reason before it answers.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Sampling seed.")] = 1,
    engine: Annotated[str, typer.Option("--engine", help="embedded, vllm or sglang.")] = "embedded",
    url: Annotated[str | None, typer.Option("--url", help="Address of the vllm or sglang server.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Allowed Host name; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="https://SITE whose pages may send requests; may be repeated."),
    ] = None,
) -> None:
    """Serve a policy over OpenAI's chat API and record its clients' episodes, for training (docs/engines.md).

    Clients need the key in PARL_GATEWAY_KEY, if it is set; beyond loopback it must be.
    """
    with reported():
        from parl.serve.gateway import serve

        options = {"temperature": temperature, "top_p": top_p, "thinking": thinking, "seed": seed}
        options |= {"allow_hosts": allow_host or (), "allow_origins": allow_origin or ()}
        serve(run, host=host, port=port, record=record, engine=engine, url=url, **options)


@app.command()
def chat(
    config: ConfigArg,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option("--model", help="A policy's folder instead of the run's own.")] = None,
    ask: Annotated[list[str] | None, typer.Option("--ask", help="Ask this question and exit; may be repeated.")] = None,
    single_agent: Annotated[bool, typer.Option("--single-agent", help="Without the tools that spawn.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0 = greedy.")] = 1.0,
) -> None:
    """Try a policy by hand with the configuration's environment; its swarm is shown live."""
    with reported():
        from parl.config.runs import configuration

        resolved = configuration(config, overrides)
        from parl.cli.chat import chat as talk

        spawning = False if single_agent else None
        talk(resolved, model=model, spawning=spawning, temperature=temperature, questions=ask or None)
