"""Replies of hosted services in the shapes of their public documentation, shortened; contents are made up.

No service was asked for real. Documentation: Serper, playground at serper.dev; Tavily, docs.tavily.com/documentation/
api-reference/endpoint/search; Exa, docs.exa.ai/reference/search; Brave, api.search.brave.com/app/documentation/
web-search/responses; SearXNG, docs.searxng.org/dev/search_api.html and its ``json`` format; Jina,
github.com/jina-ai/reader; Firecrawl, docs.firecrawl.dev/api-reference/endpoint/search and /scrape (v2, and v1's
flat list); Crawl4AI, docs.crawl4ai.com/core/docker-deployment (``/md``).
"""

from __future__ import annotations

from typing import Any

ROME, PARIS = "https://example.com/rome", "https://example.org/paris"
SEARCHES: dict[str, list[dict[str, Any]]] = {
    "serper": [
        {
            "searchParameters": {"q": "capitals", "type": "search", "engine": "google"},
            "knowledgeGraph": {"title": "Rome", "type": "City"},
            "answerBox": {"title": "Rome", "answer": "capital of Italy"},
            "organic": [
                {"title": "Rome", "link": ROME, "snippet": "Capital of Italy", "position": 1, "date": "Jan 3, 2026"},
                {"title": "Paris", "link": PARIS, "snippet": "Capital of France", "position": 2, "sitelinks": []},
            ],
            "peopleAlsoAsk": [{"question": "Where is Rome?"}],
            "credits": 1,
        }
    ],
    "tavily": [
        {
            "query": "capitals",
            "answer": None,
            "images": [],
            "results": [
                {"title": "Rome", "url": ROME, "content": "Capital of Italy", "score": 0.81, "raw_content": None},
                {"title": "Paris", "url": PARIS, "content": "Capital of France", "score": 0.5, "raw_content": None},
            ],
            "response_time": "1.67",
            "request_id": "123e4567-e89b-12d3-a456-426614174111",
        }
    ],
    "exa": [
        {
            "requestId": "b5947044c4b78efa9552a7c89b306d95",
            "resolvedSearchType": "neural",
            "results": [
                {
                    "title": "Rome",
                    "url": ROME,
                    "publishedDate": "2026-01-03T00:00:00.000Z",
                    "author": "",
                    "id": ROME,
                    "highlights": ["Capital of", "Italy"],
                    "highlightScores": [0.4, 0.3],
                },
                {"title": "Paris", "url": PARIS, "id": PARIS, "score": None, "text": "Capital of France"},
            ],
            "costDollars": {"total": 0.005},
        }
    ],
    "brave": [
        {
            "type": "search",
            "query": {"original": "capitals", "more_results_available": True},
            "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0, "all": False}]},
            "web": {
                "type": "search",
                "results": [
                    {
                        "title": "<strong>Rome</strong>",
                        "url": ROME,
                        "description": "Capital of <strong>Italy</strong> &amp; more",
                        "page_age": "2026-01-03T00:00:00",
                        "age": "January 3, 2026",
                        "profile": {"name": "Example"},
                    },
                    {"title": "Paris", "url": PARIS, "description": "Capital of France"},
                ],
            },
        },
        {"type": "search", "query": {"original": "nothing"}},  # no web results
    ],
    "searxng": [
        {
            "query": "capitals",
            "number_of_results": 0,
            "results": [
                {
                    "url": ROME,
                    "title": "Rome",
                    "content": "Capital of Italy",
                    "engine": "brave",
                    "engines": ["brave", "mojeek"],
                    "score": 4.0,
                    "category": "general",
                    "publishedDate": None,
                },
                {"url": PARIS, "title": "Paris", "content": "", "engine": "mojeek", "score": 1.0},
            ],
            "answers": [],
            "suggestions": [],
            "unresponsive_engines": [["google", "timeout"]],
        }
    ],
    "jina": [
        {
            "code": 200,
            "status": 20000,
            "data": [
                {"title": "Rome", "url": ROME, "description": "Capital of Italy", "date": "Jan 3, 2026", "content": ""},
                {"title": "Paris", "url": PARIS, "description": "Capital of France", "usage": {"tokens": 1000}},
            ],
        }
    ],
    "firecrawl": [
        {
            "success": True,
            "data": {
                "web": [
                    {"url": ROME, "title": "Rome", "description": "Capital of Italy", "position": 1},
                    {"url": PARIS, "title": "Paris", "description": "Capital of France", "position": 2},
                ]
            },
            "creditsUsed": 2,
        },
        {
            "success": True,
            "data": [
                {"url": ROME, "title": "Rome", "markdown": "Capital of Italy"},
                {"url": PARIS, "title": "Paris", "description": "Capital of France"},
            ],
        },
    ],
}
READERS: dict[str, dict[str, Any]] = {
    "jina": {
        "code": 200,
        "status": 20000,
        "data": {"title": "Rome", "url": ROME, "content": "Rome is old.", "usage": {"tokens": 9}},
    },
    "firecrawl": {
        "success": True,
        "data": {"markdown": "Rome is old.", "metadata": {"title": "Rome", "sourceURL": ROME, "statusCode": 200}},
    },
    "crawl4ai": {
        "url": ROME,
        "filter": "fit",
        "query": None,
        "cache": "0",
        "markdown": "Rome is old.",
        "success": True,
    },
}
