"""Secrets in texts, objects and settings that must be redacted, and ordinary texts that must not.

Secrets are assembled at run time, so that no scanner finds one in this repository.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack

Made = tuple[Any, list[str]]  # exported value, and its parts that must be gone

_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_UPPER = string.ascii_uppercase + string.digits


def _draw(name: str, count: int, letters: str = _ALNUM) -> str:
    """A string for each name, with an upper- and a lower-case letter and a digit if ``letters`` has them."""
    rng = random.Random(name)
    return "".join(rng.choice(letters) for _ in range(count))


def _prefixed(form: str, prefix: str, count: int, letters: str = _ALNUM) -> Made:
    secret = prefix + _draw(prefix, count, letters)
    return form.format(secret), [secret[len(prefix) :]]


def _in(form: str, count: int = 24, letters: str = _ALNUM) -> Made:
    secret = _draw(form, count, letters)
    return form.replace("@@", secret), [secret]


def _word(form: str, *words: str) -> Made:
    for word in words:
        form = form.replace("@@", word, 1)
    return form, list(words)


def _object(key: str, secret: str = "correct horse battery staple") -> Made:
    return {"headers": [{key: secret, "id": 7}]}, [secret]


def _pem(kind: str, newline: str, whole: bool = True) -> Made:
    lines = [_draw(f"{kind}{i}", 64) for i in range(3)]
    end = [f"-----END {kind}PRIVATE KEY-----"] if whole else []
    return "before " + newline.join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, *end]) + newline + ".", lines


def _account() -> Made:
    key, _ = _pem("", "\n")
    lines = [line for line in str(key).split("\n") if len(line) == 64]
    whole = {"type": "service_account", "private_key_id": _draw("id", 40, _HEX), "private_key": key}
    return {"content": json.dumps(whole)}, lines


def _basic() -> Made:
    secret = base64.b64encode(f"admin:{_draw('basic', 12)}".encode()).decode()
    return f"curl -H 'Authorization: Basic {secret}' host", [secret]


def _jwt() -> Made:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    body, sign = _draw("jwt body", 60), _draw("jwt sign", 43)
    return f"id {head}.{body}.{sign} end", [body, sign]


def _twice_quoted() -> Made:
    secret = _draw("twice", 28)
    return {"arguments": json.dumps({"body": json.dumps({"api_key": secret, "n": 1})})}, [secret]


_PREFIXES = (  # form, prefix, length, letters
    ("OpenAI's", "key {} here", "sk-" + "proj-", 48, _ALNUM),
    ("Anthropic's", "key {} here", "sk-" + "ant-api03-", 80, _ALNUM),
    ("Hugging Face's", "token is {}.", "hf" + "_", 34, string.ascii_letters),
    ("GitHub's", "git clone with {}", "ghp" + "_", 36, _ALNUM),
    ("GitHub's server", "{}", "ghs" + "_", 36, _ALNUM),
    ("GitHub's fine-grained", "use {},", "github" + "_pat_", 60, _ALNUM),
    ("Slack's bot", "({})", "xox" + "b-123456789012-123456789012-", 24, _ALNUM),
    ("Slack's app", "{}", "xapp" + "-1-A0-", 40, _HEX),
    ("Google's API", "maps {} ok", "AI" + "za", 35, _ALNUM),
    ("Google's OAuth client", "{}", "GOC" + "SPX-", 28, _ALNUM),
    ("Google's access", "{}", "ya" + "29.", 60, _ALNUM),
    ("GitLab's", "{}", "glp" + "at-", 20, _ALNUM),
    ("SendGrid's", "{}", "SG" + "." + "a" * 22 + ".", 43, _ALNUM),
    ("Stripe's restricted", "{}", "rk" + "_live_", 24, _ALNUM),
    ("Stripe's secret", "{}", "sk" + "_live_", 99, _ALNUM),
    ("npm's", "{}", "npm" + "_", 36, _ALNUM),
    ("PyPI's", "{}", "py" + "pi-AgEIcHlwaS5vcmc", 80, _ALNUM),
    ("Docker's", "docker login {}", "dckr" + "_pat_", 27, _ALNUM),
    ("AWS access key id", "id {} used", "AK" + "IA", 16, _UPPER),
    ("AWS temporary key id", "{}", "AS" + "IA", 16, _UPPER),
    ("DigitalOcean's", "{}", "do" + "p_v1_", 64, _HEX),
    ("Shopify's", "{}", "shp" + "at_", 32, _HEX),
    ("Databricks'", "{}", "da" + "pi", 32, _HEX),
    ("Vault's", "{}", "hv" + "s.", 30, _ALNUM),
    ("Groq's", "{}", "gs" + "k_", 52, _ALNUM),
    ("Replicate's", "{}", "r8" + "_", 37, _ALNUM),
    ("NVIDIA's", "{}", "nv" + "api-", 60, _ALNUM),
    ("Tavily's", "{}", "tv" + "ly-", 32, _ALNUM),
    ("Linear's", "{}", "lin" + "_api_", 40, _ALNUM),
    ("Mailgun's", "{}", "ke" + "y-", 32, _HEX),
    ("Telegram's bot", "{}", "1234567890" + ":AA", 33, _ALNUM),
    ("Discord's bot", "{}", "MT" + "A" * 22 + ".GaBcDe.", 27, _ALNUM),
    ("Twilio's", "sid {} now", "S" + "K", 32, _HEX),
    ("age's", "{}", "AGE-SECRET" + "-KEY-1", 58, _UPPER),
)
_FORMS = (  # @@ is the secret
    ("X token in env", "export HUB_TOKEN=@@\nls"),
    ("X api key in env", "OPENAI_API_KEY=@@"),
    ("X quoted in Python", 'client = Client(api_key="@@", n=3)'),
    ("X in YAML", "db:\n  password: @@\n  port: 1"),
    ("X in TOML", "secret = '@@'"),
    ("X header with a key", "X-Api-Key: @@"),
    ("X bearer", "Authorization: Bearer @@"),
    ("X bearer in JSON", '{"Authorization": "Bearer @@"}'),
    ("X bearer in lower case", "sent bearer @@ to the host"),
    ("X cookie", "Cookie: theme=dark; session=@@"),
    ("X set-cookie", "Set-Cookie: sid=@@; Path=/; HttpOnly"),
    ("X query key", "GET https://api.example/v1?q=a&key=@@&n=1"),
    ("X query token", "https://example/a?token=@@"),
    ("X signed address", "https://s3.example/o?X-Amz-Expires=60&X-Amz-Signature=@@"),
    ("X shared access signature", "https://b.example/c?sv=2024&sig=@@&se=1"),
    ("X password in an address", "https://user:@@@example.org/path"),
    ("X postgres", "postgres://app:@@@db.internal:5432/main"),
    ("X mongodb", "mongodb+srv://app:@@@cluster.example/?retryWrites=true"),
    ("X redis without a user", "redis://:@@@cache:6379/0"),
    ("X git with a token", "https://@@@github.example/a/b.git"),
    ("X slack webhook", "https://hooks.slack.com/services/T0AAAA/B0AAAA/@@"),
    ("X discord webhook", "https://discord.com/api/webhooks/1234/@@"),
    ("X telegram address", "https://api.telegram.org/bot@@/getMe"),
    ("X azure", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=@@==;EndpointSuffix=e"),
    ("X sql server", "Server=db;User Id=sa;Password=@@;Encrypt=yes"),
    ("X aws secret in a file", "aws_secret_access_key = @@"),
    ("X netrc", "machine api.example login me password @@"),
    ("X flag", "tool --api-key @@ --n 3"),
    ("X flag with an equals sign", "tool --password=@@ run"),
    ("X curl -u", "curl -u me:@@ https://example.org"),
    ("X npmrc", "//registry.npmjs.org/:_authToken=@@"),
    ("X pgpass", "db.internal:5432:main:app:@@"),
    ("X in XML", '<add key="x" password="@@" />'),
    ("X as Ruby writes it", ":api_key => '@@'"),
    ("X as Go writes it", 'token := "@@"'),
)


def secrets() -> dict[str, Callable[[], Made]]:
    """By name, builders of a text or an object with a secret."""
    cases: dict[str, Callable[[], Made]] = {}
    for name, form, prefix, count, letters in _PREFIXES:
        cases[f"{name} key"] = partial(_prefixed, form, prefix, count, letters)
    for name, form in _FORMS:
        cases[name.removeprefix("X ")] = partial(_in, form, 28)
    cases |= {f"the key {key!r} of an object": partial(_object, key) for key in _KEYS}
    cases |= {
        "a short password in JSON": partial(_word, '{"user": "a", "password": "@@"}', "hunter2"),
        "a password with blanks": partial(_word, '"password": "@@"', "correct horse battery staple"),
        "a password in an environment": partial(_word, "PGPASSWORD=@@ psql", "hunter22"),
        "JSON inside JSON": _twice_quoted,
        "a list of keys": lambda: ({"api_keys": ["a" * 20], "api_key": [_draw("l", 20)]}, [_draw("l", 20)]),
        "a key as a dictionary's key": lambda: ({"hf" + "_" + _draw("k", 34): 1}, [_draw("k", 34)]),
        "a number as password": lambda: ({"password": 73519284}, ["73519284"]),
        "RSA key": partial(_pem, "RSA ", "\n"),
        "key block on one line": partial(_pem, "", "\\n"),
        "OpenSSH key": partial(_pem, "OPENSSH ", "\r\n"),
        "key block without its end": partial(_pem, "EC ", "\n", False),
        "service account": _account,
        "basic authorization": _basic,
        "JSON web token": _jwt,
        "a hashed password": partial(_in, "root:$2b$12$@@", 53),
        "a string drawn at random": partial(_in, "the value @@ came back", 40),
        "several in one text": lambda: _join(_in("a key=@@ b", 9), _in("password: @@", 12), _in("Bearer @@", 20)),
    }
    return cases


_KEYS = ("api_key", "apiKey", "x-api-key", "password", "DB_PASSWORD", "client_secret", "private_key", "Authorization")
_KEYS += ("awsSecretAccessKey", "refresh_token", "accessToken", "passphrase", "secret")


def _join(*made: Made) -> Made:
    made = made[1:]  # a value under a bare word "key=" is no secret
    return "\n".join(str(text) for text, _ in made), [part for _, parts in made for part in parts]


HARMLESS: tuple[Any, ...] = (
    "The secret of the asking price is patience.",
    "password: required",
    "Enter your password: it must have eight characters.",
    "Passwords are case sensitive; a token of appreciation was sent.",
    "The bearer of this letter, and bearer bonds of 1923.",
    "Basic instructions for the beginner",
    "Cookie: a small sweet biscuit",
    "token_ids=[1, 2, 3], tokens: 4096, max_tokens=16384",
    "tokenizer=tokenizer.json tokenizer_class: PreTrainedTokenizerFast",
    "prompt_tokens: 12345678, completion_tokens: 87654321",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "commit 0a9dcc2f1e6a3b4c5d6e7f8091a2b3c4d5e6f708",
    "md5: d41d8cd98f00b204e9800998ecf8427e",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "call id functions.search:12 and call_9Fh2kLmN0pQrStUvWxYz1234",
    "chatcmpl-0123456789abcdef01234567",
    "https://example.org/wiki/Key_(cryptography)?key=population&sort=asc",
    "https://docs.example.com/document/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit",
    "https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=PL0123456789",
    "postgres://db.internal:5432/main and ssh://git@github.com/a/b.git",
    "mailto:someone@example.org, user@host:/path/to/file",
    "12:30:45 the train left; 10:00:05:12 frames",
    "ratio 3:4:5:6 and 192.168.0.1:8080",
    "/usr/lib/python3.11/site-packages/transformers/models/deepseek_v3/modeling.py",
    "TheQuickBrownFoxJumpsOverTheLazyDogAndRunsAway2024Edition",
    "com.example.AbstractSingletonProxyFactoryBeanImplementation1",
    "ACGTACGTTAGCACGTACGTTAGCACGTACGTTAGCACGTACGT",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "0x1234567890abcdef1234567890abcdef12345678",
    "3.14159265358979323846264338327950288419716939937510",
    "api_key=os.environ['API_KEY'] and token = get_token()",
    "password=${DB_PASSWORD} secret: <your secret here> api_key=YOUR_API_KEY token: ***",
    "the API key is missing; no secret key was given",
    "secret: none, token: null, password: false",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "ssh-ed25519 is a kind of public key",
    "key: Karona, value: 4217; primary key: id; foreign key = country_id",
    "next_page_token=CAUQAA and pageToken: 20240101T000000Z",
    "the model was asked to keep a secret and did: it said nothing",
    "Kennwort, mot de passe, contraseña, пароль, 密码",
    "APARTMENTS, APPLICATIONS and ACADEMICS in capitals",
    "VGhpcyBpcyBhIHNlbnRlbmNlIGluIGJhc2U2NCB0aGF0IG5vYm9keSBuZWVkcyB0byBoaWRl",
    "session 12 of the parliament; authentication is described in chapter 3",
    {"token": "the", "token_ids": [1, 2, 3], "logprobs": [-0.5, 0.0], "tokens": 12},
    {"properties": {"password": {"type": "string", "description": "of the account"}}},
    {"key": "wide-0", "secret": "", "cookie": None, "authorization": False},
    {"eos_token": "<|im_end|>", "pad_token": "[PAD]", "bos_token_id": 1},
    {"next_page_token": "CiAKGjBpNDd2Nmp2Zml2cXRwYjBpOXA", "sessionization": "hourly window of events"},
)  # fmt: skip


def _gone(make: Callable[[], Made], folder: Path) -> None:
    from parl.shown.redaction import REDACTED, redact

    given, parts = make()
    out = json.dumps(redact(given))
    assert REDACTED in out
    for part in parts:
        assert part not in json.dumps(given) or part not in out, f"{part!r} is still there: {out}"


def _stays(given: Any, folder: Path) -> None:
    from parl.shown.redaction import redact

    assert redact(given) == given


def _leaving(name: str, folder: Path) -> None:
    """A secret in a tool's result is gone from every export, and so are tokens that would spell it."""
    from dataclasses import replace

    from stored import make_episode, wide_task

    from parl.episodes.exchange import chosen_format, export_episodes
    from parl.episodes.formats.common import ExportOptions
    from parl.episodes.listing import Filter
    from parl.report import write_report
    from rollouts.store.store import EpisodeStore

    secret = "hf" + "_" + _draw(name, 34)
    episode = make_episode(wide_task(1), spawning=True)
    turn = episode.traces[1].turns[0]
    turn.results = [replace(result, text=f"the token is {secret}") for result in turn.results]
    store = EpisodeStore(folder / "store")
    store.write(1, [episode], policy_version=0)
    if name == "report":
        page = write_report(store.folder, folder / "report.html").read_text()
        [packed] = re.findall(r'id="episode-\d+">([^<]*)<', page)
        out = gzip.decompress(base64.b64decode(packed)).decode("utf-8", "replace")
        assert '"n_tokens":0' in out
    else:
        export_episodes(store.folder, folder / "out", chosen_format(name), Filter(), ExportOptions())
        files = sorted((folder / "out").iterdir()) if (folder / "out").is_dir() else [folder / "out"]
        out = "".join(file.read_text() for file in files)
        assert '"completion_token_ids": [' not in out
    assert secret not in out


def cases() -> list[Attack]:
    """Every secret is gone; every ordinary text is unchanged."""
    made = [Attack(area="secrets", name=name, run=partial(_gone, make)) for name, make in secrets().items()]
    kept = [Attack(area="secrets", name=f"harmless: {given!s:.60}", run=partial(_stays, given)) for given in HARMLESS]
    ways = ("atif", "verifiers", "verifiers-results", "openai", "widesearch", "browsecomp-plus", "otel", "report")
    away = [Attack(area="secrets", name=f"by {way}", run=partial(_leaving, way)) for way in ways]
    return made + kept + away
