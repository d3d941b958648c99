"""Exact match and F1 of cases by the official scripts: HOTPOT 2WIKI MUSIQUE (their checkouts) CASES.jsonl."""

import json
import runpy
import sys
from pathlib import Path

sys.modules["ujson"] = json  # hotpot and 2wiki import it for speed alone
hotpot = runpy.run_path(f"{sys.argv[1]}/hotpot_evaluate_v1.py")
wiki = runpy.run_path(f"{sys.argv[2]}/2wikimultihop_evaluate_v1.1.py")
sys.path.insert(0, sys.argv[3])
from metrics.answer import AnswerMetric  # noqa: E402


def by_hotpot(given, golds):
    """Of the first gold answer: the script knows one."""
    metrics = dict.fromkeys(("em", "f1", "prec", "recall"), 0.0)
    hotpot["update_answer"](metrics, given, golds[0])
    return {"em": metrics["em"], "f1": metrics["f1"]}


def by_2wiki(given, golds):
    """The best over the aliases."""
    metrics = dict.fromkeys(("em", "f1", "prec", "recall"), 0.0)
    wiki["update_answer"](metrics, given, golds)
    return {"em": metrics["em"], "f1": metrics["f1"]}


def by_musique(given, golds):
    """The best over the aliases."""
    metric = AnswerMetric()
    metric(given, golds)
    return dict(zip(("em", "f1"), metric.get_metric(), strict=True))


for line in Path(sys.argv[4]).read_text().splitlines():
    case = json.loads(line)
    pair = case["response"], case["answers"]
    scores = {"hotpotqa": by_hotpot(*pair), "2wiki": by_2wiki(*pair), "musique": by_musique(*pair)}
    print(json.dumps({"id": case["id"]} | {name: {k: float(v) for k, v in s.items()} for name, s in scores.items()}))
