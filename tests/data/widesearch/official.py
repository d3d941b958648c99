"""Scores of cases by the official WideSearch script, in its own environment (README.md): CLONE CASES.jsonl."""

import ast
import json
import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, sys.argv[1])
ABSENT = {  # what the script imports and these cases do not need: module -> names
    "src.utils.llm": ("llm_completion",),
    "datasets": ("load_dataset",),
    "huggingface_hub": ("snapshot_download", "try_to_load_from_cache"),
    "pandarallel": ("pandarallel",),
}
for name, parts in ABSENT.items():
    sys.modules[name] = types.ModuleType(name)
    for part in parts:
        setattr(sys.modules[name], part, types.SimpleNamespace(initialize=lambda **options: None))

from loguru import logger  # noqa: E402
from src.evaluation import data_loader, evaluation, metric_utils  # noqa: E402

NUMBERS = {
    "score": "score",
    "pr": "precision_by_row",
    "rr": "recall_by_row",
    "fr": "f1_by_row",
    "pi": "precision_by_item",
    "ri": "recall_by_item",
    "fi": "f1_by_item",
}


def judge(row):
    """A judge that replies as the row says."""
    maps, how = iter(row.get("key_maps") or ()), row.get("judge") or {}
    mode, table = how.get("mode", "equal"), how.get("map") or {}

    def reply(value):
        text = value if isinstance(value, str) else f"```json\n{json.dumps(value)}\n```"
        return types.SimpleNamespace(content=text)

    def ask(messages, model_config_name):
        if messages.startswith("Your task is to align"):
            value = next(maps, None)
            return None if value is None else reply(value)
        if mode == "none":
            return None
        _, pairs = messages.split("====== response-start ======\n")
        pairs = ast.literal_eval(pairs.split("\n====== response-end ======")[0])
        fixed = {"all1": lambda a, b: 1, "all0": lambda a, b: 0, "equal": lambda a, b: int(a == b)}
        score = fixed.get(mode, lambda a, b: table.get(f"{a}||{b}", 0))
        return reply({name: score(pair["response"], pair["target"]) for name, pair in pairs.items()})

    return ask


def scores(row, folder):
    """The official scores of one row."""
    metric_utils.llm_completion = judge(row)
    rules = json.loads(row["evaluation"]) if isinstance(row["evaluation"], str) else row["evaluation"]
    path = Path(folder) / "gold.csv"
    path.write_text(row["answer_csv"], newline="")
    loader = data_loader.WideSearchDataLoader.__new__(data_loader.WideSearchDataLoader)
    gold = loader.load_answer(str(path), rules["required"])
    query = data_loader.WideSearchQuery("x", "", rules, gold, "en")
    result = evaluation.evaluate_single_query(query, data_loader.WideSearchResponse("x", row["response"]))
    return {"id": row["id"]} | {short: float(getattr(result, name)) for short, name in NUMBERS.items()}


logger.remove()
with tempfile.TemporaryDirectory() as scratch:
    for line in Path(sys.argv[2]).read_text().splitlines():
        print(json.dumps(scores(json.loads(line), scratch), ensure_ascii=False))
