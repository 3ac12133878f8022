"""What a secret looks like: a value that is known, in each form that it may have, or one that gives itself away."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes

SHORTEST = 8  # bytes of a known value; shorter ones are found everywhere
# Programs (libgnutls) and packages (tornado) have private keys for their own tests in them.
ELF = b"\x7fELF"
TESTS_OF_PACKAGES = re.compile(r"/(?:site|dist)-packages/[^/]+/(?:.*/)?tests?/")
PRIVATE_KEY = "a private key"
OVERLAP = 16_384  # bytes that are looked at again with what follows them


class Looks(NamedTuple):
    """What gives a secret away: a text that must be there at all, and the pattern around it."""

    hint: bytes
    pattern: re.Pattern[bytes]
    what: str


# In any file. Each is so particular that documentation and tests of libraries do not have it;
# but for the keys in AWS's own documentation, and so in botocore, which end in EXAMPLE.
ANYWHERE = (
    Looks(b"AKIA", re.compile(rb"(?<![A-Z0-9])AKIA(?!.{9}EXAM)[A-Z2-7]{16}(?![A-Z0-9])"), "an AWS access key"),
    Looks(b"ASIA", re.compile(rb"(?<![A-Z0-9])ASIA(?!.{9}EXAM)[A-Z2-7]{16}(?![A-Z0-9])"), "a temporary AWS access key"),
    *(
        Looks(
            name,
            re.compile(
                name + rb"\\?[\"']?\s*[=:>]\s*\\?[\"']?(?![A-Za-z0-9/+]*EXAMPLE)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
            ),
            "an AWS secret key",
        )
        for name in (b"aws_secret_access_key", b"AWS_SECRET_ACCESS_KEY", b"SecretAccessKey", b"secretAccessKey")
    ),
    Looks(
        b"PRIVATE KEY-----",
        re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:\r?\n|\\n)(?:[^\n]*: [^\n]*\n|\n)*[A-Za-z0-9+/=]{40}"),
        PRIVATE_KEY,
    ),
    Looks(b"gh", re.compile(rb"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36}"), "a GitHub token"),
    Looks(b"github_pat_", re.compile(rb"github_pat_[A-Za-z0-9_]{82}"), "a GitHub token"),
    Looks(b"glpat-", re.compile(rb"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{20}"), "a GitLab token"),
    Looks(b"xox", re.compile(rb"xox[abprs]-[0-9]{8,}-[A-Za-z0-9-]{10,}"), "a Slack token"),
    Looks(b"pypi-AgE", re.compile(rb"pypi-AgE[A-Za-z0-9_-]{60,}"), "a token of a package index"),
    Looks(b"npm_", re.compile(rb"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9_])"), "an npm token"),
    Looks(b"AIza", re.compile(rb"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"), "a Google API key"),
)

ADDRESS = re.compile(rb"[a-z][a-z0-9+.-]*://(?:[^\s/:@'\"]*:(?![$<{*%])[^\s/@'\"]+|(?![$<{*%])[^\s/:@'\"]{16,})@")
NAMED = re.compile(
    rb"(?i)\b\w*(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_key|private_key|credential)\w*=(?![$<{*])[^\s\"',]+"
)

# In files that are known by their names; documentation has such lines too, and so have examples of such files.
VARIABLES = r"(?!.*(?:example|sample|template|dist))(?:\.env|\.envrc|\.env\.[^/]+|[^/]+\.env)"
IN_FILES = (
    (r"[._]netrc", re.compile(rb"(?i)\bpassword\s+\S+"), "a password"),
    (r"\.git-credentials|\.config/git/credentials|\.gitconfig|FETCH_HEAD", ADDRESS, "a password in an address"),
    (r"\.git/config|\.git/modules/.*/config", ADDRESS, "a password in an address"),
    (r"pip\.(conf|ini)|uv\.toml|\.condarc", ADDRESS, "a password in an address"),
    (VARIABLES, ADDRESS, "a password in an address"),
    (r"requirements[^/]*\.(txt|in)|pyproject\.toml|Pipfile|direct_url\.json", ADDRESS, "a password in an address"),
    (r"sources\.list|[^/]+\.sources|sources\.list\.d/.*", ADDRESS, "a password in an address"),
    (VARIABLES, NAMED, "a variable that is named like a secret"),
    (r"auth\.conf|auth\.conf\.d/.*", re.compile(rb"\bpassword\s+\S+"), "a password"),
    (r"\.docker/config\.json|\.dockercfg", re.compile(rb'"auth"\s*:\s*"[^"]+"'), "a login of a registry"),
    (r"\.pypirc", re.compile(rb"(?m)^\s*password\s*[:=]\s*\S+"), "a password of a package index"),
    (r"\.npmrc|\.yarnrc", re.compile(rb"(?:_authToken|_password|_auth)\s*=\s*(?!\$)\S+"), "an npm token"),
    (r"\.pgpass", re.compile(rb"(?m)^[^#\n]+(:[^:\n]*){3}:[^\n]+"), "a password of a database"),
)
FILES = tuple((re.compile(rf"(?:^|.*[/ ])(?:{name})$"), pattern, what) for name, pattern, what in IN_FILES)


class Form(NamedTuple):
    """One form of a known value; `wrapped` ones may have ends of lines in them."""

    data: bytes
    what: str
    wrapped: bool = False


def forms(value: bytes) -> Iterator[Form]:
    """Yield a value as it is, and as it looks in base64 (at each offset), hex, an address, and UTF-16."""
    yield Form(value, "a known secret")
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + value)
        first = (0, 2, 3)[offset]  # what comes before has a part in these
        whole = encoded[first : (offset + len(value)) * 8 // 6]
        yield Form(whole, "a known secret in base64", wrapped=True)
        if whole != whole.translate(URL_SAFE):
            yield Form(whole.translate(URL_SAFE), "a known secret in base64", wrapped=True)
    yield Form(value.hex().encode(), "a known secret in hex", wrapped=True)
    yield Form(value.hex().upper().encode(), "a known secret in hex", wrapped=True)
    quoted = quote_from_bytes(value, safe="").encode()
    lower = re.sub(rb"%[0-9A-F]{2}", lambda match: match[0].lower(), quoted)
    yield from (Form(form, "a known secret in an address") for form in {quoted, lower} - {value})
    escaped = value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    if escaped != value:
        yield Form(escaped, "a known secret in JSON")
    with_16_bits = value.decode(errors="replace").encode("utf-16-le")
    yield Form(with_16_bits, "a known secret in UTF-16")


URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Detector:
    """Looks for secrets in bytes: known values, and what looks like one."""

    def __init__(self, known: Iterable[bytes] = ()) -> None:
        """Take the known values; those shorter than SHORTEST are left out."""
        values = {value.strip() for value in known} - {b""}
        kept = sorted(value for value in values if len(value) >= SHORTEST)
        self.known, self.left_out = len(kept), len(values) - len(kept)
        self._forms = [form for value in kept for form in forms(value)]

    def in_file(self, name: str, chunks: Iterable[bytes]) -> set[str]:
        """Return what is found in a file of that name (a path, as far as it is known)."""
        found = self.in_text(name.encode(errors="surrogateescape"))
        rules = [rule for rule in FILES if rule[0].fullmatch(name)]
        before = b""
        for_tests = bool(TESTS_OF_PACKAGES.search(name))
        for chunk in chunks:
            for_tests = for_tests or (not before and chunk.startswith(ELF))
            data = before + chunk
            found |= self.in_text(data, for_tests)
            found |= {what for _, pattern, what in rules if pattern.search(data)}
            before = data[-OVERLAP:]
        return found

    def in_settings(self, text: str) -> set[str]:
        """Return what is found in a line of an image's configuration: a variable, a label, a build step."""
        data = text.encode()
        found = self.in_text(data)
        if ADDRESS.search(data):
            found.add("a password in an address")
        if NAMED.search(data):
            found.add("a variable that is named like a secret, with a value")
        return found

    def in_text(self, data: bytes, for_tests: bool = False) -> set[str]:
        """Return what is found in any bytes; a private key for tests is none."""
        hinted = (looks for looks in ANYWHERE if looks.hint in data and not (for_tests and looks.what == PRIVATE_KEY))
        found = {looks.what for looks in hinted if looks.pattern.search(data)}
        found |= {form.what for form in self._forms if form.data in data}
        if self._forms and b"\n" in data:
            joined = data.translate(None, b"\r\n \t")
            found |= {form.what for form in self._forms if form.wrapped and form.data in joined}
        return found

    def masked(self, text: str) -> str:
        """Return a place's name without what is known to be a secret, in any form."""
        data = text.encode(errors="surrogateescape")
        for form in self._forms:
            data = data.replace(form.data, b"***")
        for looks in ANYWHERE:
            data = looks.pattern.sub(b"***", data)
        return ADDRESS.sub(b"***@", NAMED.sub(b"***", data)).decode(errors="backslashreplace")
