"""Loss by step of AdamW, Muon and MuonClip on the quickstart's demonstrations: same seed, same batches.

    python -m benchmarks.muonclip --svg docs/images/muonclip.svg
    python -m benchmarks.muonclip --only MuonClip --tau 30      # a bound that is reached

Each trains the quickstart's policy from its first weights with ``Learner.text_step``, the cold start's learning-rate
schedule and its batches' size, on demonstrations in one seeded order. AdamW has all parameters, and the best of several
learning rates; Muon has the matrices and the recipe's rates; MuonClip also bounds attention logits at ``--tau``.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import mean

from benchmarks.demonstrations import demonstration_rows
from parl.cold_start.imitation import learning_rate
from parl.config.load import load_config
from parl.config.schema import Config
from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner

ADAMW_LRS = (1e-3, 3e-3, 9e-3)
COLOURS = {"AdamW": "#b5651d", "Muon": "#2a6fb0", "MuonClip": "#2e8b57"}


def batches(config: Config, tokens: int) -> list[list[TextRow]]:
    """Shuffled demonstrations in batches of at least ``sft.batch_tokens`` tokens."""
    rows = demonstration_rows(config, tokens)
    random.Random(config.sft.seed).shuffle(rows)
    out: list[list[TextRow]] = [[]]
    for row in rows:
        if sum(len(r.tokens) for r in out[-1]) >= config.sft.batch_tokens:
            out.append([])
        out[-1].append(row)
    return out


def curve(config: Config, data: list[list[TextRow]], optimizer: OptimizerConfig, *, muon: bool) -> tuple[list, list]:
    """Loss and largest logit (0 where nothing is clipped) of every step."""
    learner = Learner(config.model, optimizer, seed=config.sft.seed)
    if not muon:  # the matrices join the group that AdamW updates
        matrices, rest = learner.optimizer.param_groups
        rest["params"], matrices["params"] = rest["params"] + matrices["params"], []
    total, done, losses, logits = sum(len(row.tokens) for batch in data for row in batch), 0, [], []
    for batch in data:
        weight = float(sum(row.weights.sum() for row in batch))
        settings = {"denominator": weight, "micro_tokens": config.trainer.micro_tokens}
        metrics = learner.text_step(batch, lr_scale=learning_rate(done / total), **settings)
        done += sum(len(row.tokens) for row in batch)
        losses.append(metrics["loss"])
        logits.append(metrics.get("max_logit", 0.0))
    return losses, logits


def svg(curves: dict[str, list[float]]) -> str:
    """Curves as an SVG."""
    right, low, left = 628, 324, 48
    steps, top = max(map(len, curves.values())), max(max(c) for c in curves.values())

    def at(step: float, loss: float) -> tuple[float, float]:
        return left + step / max(steps - 1, 1) * (right - left), low * (1 - loss / top) + 8

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="640" height="360" fill="white"/>')
    for loss in range(int(top) + 1):
        y = at(0, loss)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{loss}</text>')
    for step in range(0, steps, max(steps // 60 * 10, 10)):
        parts.append(f'<text x="{at(step, 0)[0]:.1f}" y="{low + 22}" text-anchor="middle">{step}</text>')
    parts.append('<text x="338" y="358" text-anchor="middle">step</text><text x="2" y="175">loss</text>')
    for number, (name, losses) in enumerate(curves.items()):
        colour = COLOURS[name.split()[0]]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*pair) for pair in enumerate(losses)))
        dash = ' stroke-dasharray="5 3"' if name.startswith("MuonClip") else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        parts.append(f'<text x="440" y="{28 + 18 * number}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Train all, print the table, draw the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--tau", type=float, default=100.0)
    parser.add_argument("--only", nargs="*", default=list(COLOURS), choices=list(COLOURS))
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    data = batches(config, options.tokens)
    print(f"{len(data)} steps, {sum(len(row.tokens) for batch in data for row in batch)} tokens", flush=True)
    recipe = {"lr": config.sft.lr, "muon_lr": config.sft.muon_lr}
    tries: dict[str, tuple[OptimizerConfig, bool]] = {
        **{f"AdamW {lr:g}": (OptimizerConfig(lr=lr), False) for lr in ADAMW_LRS},
        "Muon": (OptimizerConfig(**recipe), True),
        f"MuonClip {options.tau:g}": (OptimizerConfig(**recipe, qk_clip=options.tau), True),
    }
    tries = {name: value for name, value in tries.items() if name.split()[0] in options.only}
    quarters = [len(data) * q // 4 for q in range(1, 5)]
    print("loss, mean of ten steps up to step", *(f"{q:8d}" for q in quarters), " largest logit")
    curves: dict[str, list[float]] = {}
    for name, (optimizer, muon) in tries.items():
        curves[name], logits = curve(config, data, optimizer, muon=muon)
        ends = [mean(curves[name][max(q - 10, 0) : q]) for q in quarters]
        seen = f"{max(logits):8.1f}" if max(logits) else ""
        print(name.ljust(34), *(f"{end:8.3f}" for end in ends), seen, flush=True)
    if "AdamW" not in options.only:
        return
    best = min((name for name in tries if name.startswith("AdamW")), key=lambda name: mean(curves[name][-10:]))
    shown = {name: losses for name, losses in curves.items() if name == best or not name.startswith("AdamW")}
    for name, losses in shown.items():
        if name != best:
            ahead = sum(a <= b for a, b in zip(losses, curves[best], strict=True))
            print(f"{name}: below {best} at {ahead} of {len(losses)} steps")
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(svg(shown))


if __name__ == "__main__":
    main()
