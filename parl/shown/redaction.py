"""Redaction: replaces keys, tokens, passwords and cookies in texts, objects and settings.

Providers' formats come from detect-secrets' detectors. This module adds formats that those lack (each has a
case in ``tests/attacks/secrets.py``), common notations of any secret (``api_key: ...``, ``Cookie: ...``,
``://user:password@host``, ``?token=...``, key blocks), and a rule for random-looking strings. It does not
catch everything: a password in plain words in a sentence passes.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import itertools
import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"

# Names whose value is a secret, whatever stands before them (DB_PASSWORD, x-api-key, awsSecretAccessKey)
_NAME = (
    r"api[-_ ]?key|apikey|app[-_]?key|secret[-_]?access[-_]?key|access[-_]?key|account[-_]?key"
    r"|shared[-_]?access[-_]?key|private[-_]?key|signing[-_]?key|encryption[-_]?key|master[-_]?key|auth[-_]?key|service[-_]?role[-_]?key"
    r"|client[-_]?secret|secret[-_]?key|secret|pass[-_]?phrase|passwd|password|pwd|credentials?|authorization"
    r"|(?:access|auth|refresh|id|session|bearer|api|bot|csrf|xsrf|security|device|personal|private|oauth)[-_]?token"
    r"|session[-_]?id|webhook[-_]?url|connection[-_]?string|jwt|otp|pin[-_]?code|seed[-_]?phrase|mnemonic"
)
_KEY = re.compile(rf"(?:^|.*[^A-Za-z]|.*[a-z](?=[A-Z])|.*)(?:{_NAME})(?:[-_](?:\d+|prod|dev|test|live|base64))?", re.I)
_TOKEN_KEY = re.compile(r"(?:.*[-_])?token(?:[-_](?:\d+|prod|dev|live))?|set-cookie|cookie|sas|dsn", re.I)
_PAGING = re.compile(r".*(?:page|next|prev|continu\w*|start|end|stop|pad|eos|bos|unk|first|last)[-_]?token", re.I)
_QUOTE = r"\\*[\"'`]"
_HINTS = ("key", "secret", "pass", "pwd", "token", "cred", "auth", "jwt", "otp", "pin", "seed", "mnemonic", "webhook")
_HINTS += ("connection", "session")
_ASSIGNED = re.compile(
    rf"(?P<name>(?:{_NAME}|(?<![A-Za-z])token)(?:[-_](?:\d+|prod|dev|test|live))?)"
    rf"(?P<sign>(?:{_QUOTE})?\]?\s{{0,3}}(?::=|=>|[:=])\s{{0,3}})"
    rf"(?:(?P<open>{_QUOTE})(?P<quoted>(?:(?!{_QUOTE})[^\n]){{1,4096}})"
    r"|(?:(?:Bearer|Basic|Token|Digest)\s+)?(?P<bare>(?!(?:Bearer|Basic|Token|Digest)\b)[^\s\"'`,;&<>()\[\]{}\\]{4,4096}))",
    re.I,
)
_FLAG = re.compile(
    r"(?P<keep>(?<!\S)--?(?:[\w-]*(?:api-?key|token|password|passwd|secret|passphrase))[= ]+[\"']?)"
    r"(?P<drop>[^\s\"']{4,})"
    r"|(?P<keep2>(?<!\S)(?:-u|--user|--proxy-user)[= ]+[\"']?[^\s:\"']+:)(?P<drop2>[^\s\"']{3,})",
    re.I,
)
_HEADER = re.compile(
    r"(?P<keep>\b(?:(?:proxy-)?authorization|x-[\w-]*(?:token|key|auth)[\w-]*)\b[\"'\\]*\s*[:=]\s*[\"'\\]*"
    r"(?:Bearer|Basic|Token|Digest|Negotiate|NTLM|ApiKey|AWS4-HMAC-SHA256|Signature|OAuth)\s+)(?P<drop>[^\n\"'\\]{6,})"
    r"|(?P<keep2>\b(?:set-)?cookie2?[\"'\\]*\s*[:=]\s*[\"'\\]*)(?P<drop2>[\w.%$!#&*+^`|~-]+=[^\n\"'\\]{3,})",
    re.I,
)
_BEARER = re.compile(r"(?P<keep>\bbearer\s+)(?P<drop>(?=[^\s\"',;]*\d)[\w.~+/=-]{8,})", re.I)
_BASIC = re.compile(r"(?P<keep>\bbasic\s+)(?P<drop>[A-Za-z0-9+/]{8,}={0,2})", re.I)
_USERINFO = re.compile(
    r"(?P<keep>\b[a-z][a-z0-9+.-]{1,30}://)(?P<drop>[^\s/?#\"'<>@]*:[^\s\"'<>@/]*(?:/[^\s\"'<>@/]*)?)@", re.I
)
_LONE_USER = re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]{1,30}://)(?P<drop>[\w~.%+-]{16,})(?=@)", re.I)
_QUERY = re.compile(
    r"(?P<keep>[?&;#](?:amp;)?(?:[\w.-]*(?:token|secret|passw(?:or)?d|pwd|api[-_]?key|apikey|signature|credential)[\w-]*"
    r"|sig|auth|authkey|access[-_]?key(?:id)?|subscription-key|code|key|sas|sid)=)(?P<drop>[^&#\s\"'<>\\]{6,})",
    re.I,
)
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:.*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|(?:[A-Za-z0-9+/=:,.\s-]|\\n|\\r)*)",
    re.S,
)
_PUTTY = re.compile(r"Private-Lines: \d+\s+[A-Za-z0-9+/=\s]+?(?=Private-MAC|\Z)")
_NETRC = re.compile(r"(?P<keep>\blogin\s+\S+\s+(?:account\s+\S+\s+)?password\s+)(?P<drop>\S+)", re.I)
_PGPASS = re.compile(r"^(?P<keep>[\w.*-]*[A-Za-z*][\w.*-]*:(?:\d{2,5}|\*):[^:\s]+:[^:\s]+:)(?P<drop>\S{4,})$", re.M)
_HASHED = re.compile(r"\$(?:2[abxy]|apr1|argon2(?:id|i|d)|scrypt|yescrypt|5|6|y)\$[^\s:\"',]{16,}")
_GAP = r"(?<![A-Za-z0-9_-])"
_PROVIDERS = re.compile(
    _GAP + r"(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{20,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|ya29\.[\w.-]{20,}"
    r"|GOCSPX-[\w-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|dckr_(?:pat|oat)_[\w-]{20,}|do[opr]_v1_[0-9a-f]{40,}"
    r"|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{20,}|shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}"
    r"|AT(?:ATT|CTT|BB)[\w=-]{20,}|lin_api_\w{30,}|(?:ntn|secret)_[A-Za-z0-9]{40,}|figd_[\w-]{30,}|gsk_[A-Za-z0-9]{30,}"
    r"|xai-[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{30,}|pplx-[A-Za-z0-9]{30,}|nvapi-[\w-]{40,}|tvly-[\w-]{20,}|PMAK-[\w-]{40,}"
    r"|ph[cx]_[A-Za-z0-9]{30,}|sntry[su]_[\w=+/-]{30,}|dapi[0-9a-f]{32}|hv[sb]\.[\w-]{20,}|glsa_[\w-]{30,}|NRAK-[A-Z0-9]{20,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{40,}|lsv2_(?:pt|sk)_\w{30,}|rubygems_[0-9a-f]{40,}|sbp_[0-9a-f]{40}|fo1_[\w-]{30,}"
    r"|pscale_(?:tkn|pw|oauth)_[\w.-]{30,}|key-[0-9a-f]{32}|LTAI[A-Za-z0-9]{12,}|sq0(?:atp|csp)-[\w-]{22,}|EAA[A-Za-z0-9]{60,}"
    r"|gl(?:pat|dt|ft|rt|soat|ptt|cbt|imt|agent)-[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|wandb_v1_\w{20,}|jina_\w{30,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}|[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38}|\d{8,10}:AA[\w-]{32,34}"
    r"|v\d\.\d-[0-9a-f]{24,}-[0-9a-f]{40,})"
)
_HOOKS = re.compile(
    r"(?P<keep>\b(?:hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/"
    r"|[\w.-]*webhook\.office\.com/webhookb2/|api\.telegram\.org/bot|hooks\.zapier\.com/hooks/catch/))(?P<drop>[^\s\"'<>\\]{8,})",
    re.I,
)
_BLOCKS = ((_PEM, ("-----begin",)), (_PUTTY, ("private-lines",)), (_HASHED, ("$",)), (_PROVIDERS, ("",)))
_KEPT = (  # pattern, a lower-case text that must occur
    (_USERINFO, ("://",)),
    (_LONE_USER, ("://",)),
    (_QUERY, ("=",)),
    (_HOOKS, ("hook", "telegram")),
    (_HEADER, ("authorization", "cookie", "x-")),
    (_BEARER, ("bearer",)),
    (_NETRC, ("login",)),
    (_PGPASS, (":",)),
    (_FLAG, (" -", "\n-")),
)

_PLACEHOLDER = re.compile(
    r"[\"'\\]*(?:\[redacted\]|\*+|x{3,}|\.{3,}|…+|<[^>]*>|\$\{?\w+.*|%\w+%|\{\{?.*|your[-_ ].*|none|null|true|false|nil"
    r"|undefined|string|str|required|optional|invalid|missing|expired|unknown|redacted|hidden|changeme\?|example"
    r"|(?:os|process|env|config|settings|self|args|getpass|secrets?|input|request|options|this|cfg)[.(\[].*)[\"'\\]*",
    re.I | re.S,
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,30}://[^\s\"'<>]+", re.I)
_RANDOM = re.compile(
    r"(?<![A-Za-z0-9+/=_.:@-])(?:[A-Za-z0-9+/]{32,128}={0,2}|[A-Za-z0-9_-]{32,128})(?![A-Za-z0-9+/=_@-])"
)
_ENTROPY = 4.2  # bits per character, of strings of at least 32
_CHANGES = 0.3  # share of neighbours of different kinds (letter sizes, digits, signs); names and paths have 0.1

# Without Artifactory's and the keyword detector, which match ordinary words, public hosts, and providers
# (IBM, SoftLayer) whose keys have no format: those are found by name
_DETECTORS = (
    ("aws", "AWSKeyDetector"), ("azure_storage_key", "AzureStorageKeyDetector"),
    ("discord", "DiscordBotTokenDetector"), ("github_token", "GitHubTokenDetector"),
    ("gitlab_token", "GitLabTokenDetector"), ("jwt", "JwtTokenDetector"), ("mailchimp", "MailchimpDetector"),
    ("npm", "NpmDetector"), ("openai", "OpenAIDetector"), ("pypi_token", "PypiTokenDetector"),
    ("sendgrid", "SendGridDetector"), ("slack", "SlackDetector"), ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"), ("telegram_token", "TelegramBotTokenDetector"),
    ("twilio", "TwilioKeyDetector"),
)  # fmt: skip


def redact(value: Any) -> Any:
    """``value`` with secrets replaced, in texts, keys and values at any depth."""
    return _walk(value, _text)


def without_credentials(value: Any) -> Any:
    """A setting's text, list or section without credentials in URLs and what :func:`redact` finds itself.

    For configurations and messages: does not load detect-secrets, which is slow.
    """
    return _walk(value, _own)


def _walk(value: Any, clean: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        out: dict[Any, Any] = {}
        for key, item in value.items():
            secret = isinstance(key, str) and _is_secret(key, item)
            shown = clean(key) if isinstance(key, str) and len(key) >= 16 else key
            out[shown if shown not in out else f"{shown} {len(out)}"] = _hidden(item) if secret else _walk(item, clean)
        return out
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], int | float) and all(isinstance(item, int | float) for item in value):
            return list(value)
        return [_walk(item, clean) for item in value]
    return value


def _is_secret(key: str, item: Any) -> bool:
    """Whether ``key`` names a secret."""
    if isinstance(item, bool) or item is None or len(key) > 80:
        return False
    texts = item if isinstance(item, list | tuple) else [item]
    if not texts or not all(isinstance(text, str) or (isinstance(text, int) and text > 999) for text in texts):
        return False
    if _PAGING.fullmatch(key) or all(isinstance(text, str) and _harmless(text) for text in texts):
        return False
    if _KEY.fullmatch(key):
        return isinstance(item, str) or all(isinstance(text, str) for text in texts) or "token" not in key.lower()
    long = all(isinstance(text, str) and len(text) >= 12 and " " not in text.strip() for text in texts)
    cookie = "cookie" in key.lower() and all(isinstance(text, str) and "=" in text for text in texts)
    return bool(_TOKEN_KEY.fullmatch(key)) and (long or cookie)


def _hidden(item: Any) -> Any:
    return [REDACTED for _ in item] if isinstance(item, list | tuple) else REDACTED


def _harmless(text: str) -> bool:
    return not text.strip() or bool(_PLACEHOLDER.fullmatch(text.strip()))


def _own(text: str) -> str:
    """``text`` with this module's patterns replaced."""
    if len(text) < 6:
        return text
    small = text.lower()
    for pattern, needs in _BLOCKS:
        if any(need in small for need in needs):
            text = pattern.sub(REDACTED, text)
    for pattern, needs in _KEPT:
        if any(need in small for need in needs):
            text = pattern.sub(_keep, text)
    if "basic" in small:
        text = _BASIC.sub(_basic, text)
    if not any(hint in small for hint in _HINTS):
        return text
    return "\n".join(_named(part) for part in text.split("\n"))


def _named(line: str) -> str:
    """A line with the values of passwords, tokens and the like replaced."""
    small = line.lower()
    signed = "=" in small or ":" in small
    return _ASSIGNED.sub(_assigned, line) if signed and any(hint in small for hint in _HINTS) else line


def _text(text: str) -> str:
    text = _own(text)
    if len(text) < 16:
        return text
    for pattern in _library():
        text = pattern.sub(_whole_or_group, text)
    return _without_random(text)


def _keep(found: re.Match[str]) -> str:
    """All but the group ``drop``."""
    groups = found.groupdict()
    kept, dropped = groups["keep"] or groups.get("keep2") or "", groups["drop"] or groups.get("drop2") or ""
    if dropped.startswith(REDACTED) or _PLACEHOLDER.fullmatch(dropped):
        return found[0]
    weak = re.search(r"[?&;#](?:amp;)?(?:key|code|auth|sid)=$", kept, re.I)
    if weak and not (len(dropped) >= 12 and re.search(r"\d", dropped) and re.search(r"[A-Za-z]", dropped)):
        return found[0]
    return kept + REDACTED + ("@" if found.re is _USERINFO else "")


def _basic(found: re.Match[str]) -> str:
    """``Basic`` and base64 of ``user:password``; in prose another word follows."""
    decoded = _decoded(found["drop"])
    return found["keep"] + REDACTED if decoded and ":" in decoded else found[0]


def _assigned(found: re.Match[str]) -> str:
    name, quoted, bare = found["name"], found["quoted"], found["bare"]
    text = quoted if quoted is not None else bare
    if REDACTED in text or _harmless(text) or _PAGING.fullmatch(_whole_name(found)):
        return found[0]
    token = name.lower().endswith("token") and not re.fullmatch(_NAME, name, re.I)
    if quoted is not None:
        if token and (len(text) < 12 or " " in text):
            return found[0]
        return f"{name}{found['sign']}{found['open']}{REDACTED}"
    tight = found["sign"].strip("\"'`\\]") == "="  # X_TOKEN=..., not a sentence
    letters, digits = re.search(r"[A-Za-z]", text), re.search(r"\d", text)
    signs = re.search(r"[^\w.,:?!/-]", text)
    mixed = len(text) >= 6 and bool(letters) and bool(digits or signs)
    if not (mixed or (tight and len(text) >= 6 and not token) or len(text) >= 20 or (digits and len(text) >= 8)):
        return found[0]
    return found[0][: found.start("bare") - found.start()] + REDACTED


def _whole_name(found: re.Match[str]) -> str:
    """The name with its prefix: ``next_page_`` and ``token``."""
    before = found.string[max(0, found.start() - 40) : found.start()]
    return re.split(r"[^\w.-]", before)[-1] + found["name"]


def _whole_or_group(found: re.Match[str]) -> str:
    group = next((number for number, text in enumerate(found.groups(), 1) if text and len(text) >= 16), 0)
    start, end = found.start(group) - found.start(), found.end(group) - found.start()
    return found[0] if REDACTED in found[0] else found[0][:start] + REDACTED + found[0][end:]


@lru_cache(1)
def _library() -> tuple[re.Pattern[str], ...]:
    """The patterns of detect-secrets' detectors of single providers."""
    patterns: list[re.Pattern[str]] = []
    for module, name in _DETECTORS:
        patterns += getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name).denylist
    return tuple(patterns)


def _without_random(text: str) -> str:
    """Replace random-looking strings of 32 to 128 characters, except in addresses."""
    places = [found.span() for found in _URL.finditer(text)]

    def judged(found: re.Match[str]) -> str:
        inside = any(start <= found.start() < end for start, end in places)
        return found[0] if inside or not _random(found[0]) else REDACTED

    return _RANDOM.sub(judged, text)


def _random(text: str) -> bool:
    words = re.sub(r"[A-Z](?=[a-z])", "a", text.rstrip("="))  # a capital belongs to its word
    if not (re.search(r"[0-9]", text) and re.search(r"[A-Z]", text) and re.search(r"[a-z]", text)):
        return False
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else "s" for c in words]
    changes = sum(a != b for a, b in itertools.pairwise(kinds)) / (len(kinds) - 1)
    counts = Counter(text).values()
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
    if changes < _CHANGES or entropy < _ENTROPY:
        return False
    decoded = _decoded(text)
    return decoded is None or _own(decoded) != decoded  # encoded text is judged by its content


def _decoded(text: str) -> str | None:
    """The text of base64 ``text``; None if it is not text."""
    try:
        given = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return given if given.isprintable() or all(c.isprintable() or c.isspace() for c in given) else None
