"""A retriever of your own, and questions for it. In this file's folder:

uvicorn retriever:app --port 8765 & parl train retrieve.yaml
"""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

PASSAGES = {f"Bridge {n}": f"Bridge {n} was opened in {1800 + 3 * n}." for n in range(40)}


def best(query: str, topk: int) -> list[dict]:
    words = set(query.lower().replace("?", "").split())
    ranked = sorted(PASSAGES, key=lambda title: -len(words & set(title.lower().split())))
    contents = [f'"{title}"\n{PASSAGES[title]}' for title in ranked[:topk]]
    return [{"document": {"contents": text}, "score": 1.0} for text in contents]


async def retrieve(request):
    body = await request.json()
    return JSONResponse({"result": [best(query, body["topk"]) for query in body["queries"]]})


def tasks(split: str):
    """Rows as in a JSONL file."""
    for n in range({"train": 0, "val": 1, "test": 2}[split], 40, 3):
        yield {"prompt": f"In which year was Bridge {n} opened?", "answer": str(1800 + 3 * n)}


app = Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"])])
