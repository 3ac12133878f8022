"""Secrets planted in every layer and form of an image are found; images without are found clean."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe import cli
from standpipe.scan.image import Scanned, scan_files, scan_image
from standpipe.scan.secrets import Detector, forms

CANARY = b"cAnary/+" + secrets.token_urlsafe(18).encode()


def tar(files: dict[str, bytes], pax: dict[str, str] | None = None) -> bytes:
    """Make a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = pax or {}
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes], comment: bytes = b"") -> bytes:
    """Make a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def image(
    files: dict[str, bytes] | None = None,
    layer: bytes = b"",
    step: str = "RUN true # buildkit",
    labels: dict[str, str] | None = None,
    **config: Any,
) -> bytes:
    """Make what `docker save` writes: two layers, the second one with the files."""
    layers = [tar({"etc/hostname": b"clean"}), layer or tar(files or {})]
    document = {
        "config": {"Env": ["PATH=/usr/bin"], "Labels": labels or {}, **config},
        "history": [
            {"created_by": "COPY / / # buildkit"},
            {"created_by": "ENV A=1", "empty_layer": True},
            {"created_by": step},
        ],
    }
    manifest = [{"Config": "blobs/sha256/c", "RepoTags": ["i:1"], "Layers": ["blobs/sha256/0", "blobs/sha256/1"]}]
    parts = {f"blobs/sha256/{number}": data for number, data in enumerate(layers)}
    return tar(
        parts | {"blobs/sha256/c": json.dumps(document).encode(), "manifest.json": json.dumps(manifest).encode()}
    )


def scanned(saved: bytes, known: bytes = CANARY) -> Scanned:
    return scan_image(iter([saved[:1000], saved[1000:]]), Detector([known] if known else []))


def places(found: Scanned) -> list[str]:
    return [finding.place for finding in found.findings]


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda value: b"x=" + value + b"\n",
    **{
        f"base64 at {n}": (lambda value, n=n: base64.b64encode(b"user:abc"[: 6 + n] + value + b"tail"))  # type: ignore[misc]
        for n in range(3)
    },
    "base64 for addresses": lambda value: base64.urlsafe_b64encode(value),
    "base64 in lines": lambda value: base64.encodebytes(b"." * 50 + value + b"." * 50),
    "hex": lambda value: value.hex().encode(),
    "hex in lines": lambda value: b"\n".join(b"%02X" % byte for byte in value),
    "address": lambda value: b"https://h/?k=" + value.replace(b"/", b"%2F").replace(b"+", b"%2B"),
    "address in small letters": lambda value: value.replace(b"/", b"%2f").replace(b"+", b"%2b"),
    "16 bits": lambda value: value.decode().encode("utf-16"),
    "gzip": lambda value: gzip.compress(b"x" + value),
    "bzip2": lambda value: bz2.compress(value),
    "xz": lambda value: lzma.compress(value),
    "zlib": lambda value: zlib.compress(b"x" * 9_000_000 + value),
    "an object of git's": lambda value: zlib.compress(b"blob 99\0" + value, 1),
    "behind what zlib compressed": lambda value: zlib.compress(b"1") + value,
    "what only begins like zlib": lambda value: b"x^2 + " + value,
    "gzip in gzip": lambda value: gzip.compress(gzip.compress(value)),
    "base64 in gzip": lambda value: gzip.compress(base64.b64encode(value)),
    "tar": lambda value: tar({"a": value}),
    "tar.gz in tar.xz": lambda value: lzma.compress(tar({"in.tar.gz": gzip.compress(tar({"a": value}))})),
    "zip": lambda value: zipped({"a": value}),
    "zip in zip": lambda value: zipped({"a.jar": zipped({"b": value})}),
    "name in a zip": lambda value: zipped({value.hex(): b""}),
    "comment of a zip": lambda value: zipped({"a": b""}, comment=value),
    "name in a tar": lambda value: tar({value.decode(): b""}),
    "header of a tar": lambda value: tar({"a": b""}, pax={"comment": value.decode()}),
    "cut-off gzip": lambda value: gzip.compress(b"1")[:-4] + value,
    "between two pieces": lambda value: b"." * (4_000_000 - 10) + value,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_known_value_is_found_in_each_form_and_its_place_is_told(form: str) -> None:
    found = scanned(image({"srv/where": FORMS[form](CANARY)}))
    assert found.findings
    assert all("layer 2 of 2 (RUN) > srv/where" in place for place in places(found))
    told = repr(found)
    assert not any(value.data.decode("latin-1") in told for value in forms(CANARY))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_found_in_the_same_without_it(form: str) -> None:
    assert not scanned(image({"srv/where": FORMS[form](b"c/+" + CANARY[:7])})).findings


@given(st.binary(min_size=8, max_size=60), st.binary(max_size=20), st.binary(max_size=20))
def test_a_value_is_found_in_base64_whatever_stands_before_and_behind_it(
    value: bytes, before: bytes, behind: bytes
) -> None:
    value = b"<" + value.strip() + b">12345678"
    detector = Detector([value])
    assert detector.in_text(base64.b64encode(before + value + behind))
    assert detector.in_text(base64.urlsafe_b64encode(before + value + behind))


# What gives itself away, with nothing known.
KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + base64.b64encode(secrets.token_bytes(60)) + b"\n"
LOOKS: dict[str, bytes] = {
    "root/.aws/credentials": b"[default]\naws_secret_access_key = " + base64.b64encode(secrets.token_bytes(30)),
    "app/settings.py": b"KEY = 'AKIA" + b"A2" * 8 + b"'",
    "app/other.py": b"KEY = 'ASIA" + b"A2" * 8 + b"'",
    "root/.ssh/id_ed25519": KEY,
    "etc/ssl/private/a.key": KEY.replace(b"OPENSSH ", b""),
    "root/.netrc": b"machine git.example.org login u password verysecret",
    "root/.git-credentials": b"https://u:verysecret@git.example.org",
    "app/.git/config": b"[remote]\nurl = https://0123456789abcdef0123@git.example.org/a.git",
    "etc/pip.conf": b"[global]\nindex-url = https://u:verysecret@pypi.example.org/simple",
    "app/requirements.txt": b"--index-url https://u:verysecret@pypi.example.org/simple",
    "opt/venv/x.dist-info/direct_url.json": b'{"url": "https://u:verysecret@git.example.org/x"}',
    "etc/apt/sources.list": b"deb https://u:verysecret@deb.example.org trixie main",
    "etc/apt/auth.conf.d/a.conf": b"machine deb.example.org login u password verysecret",
    "root/.docker/config.json": b'{"auths": {"r.example.org": {"auth": "dTp2ZXJ5c2VjcmV0"}}}',
    "root/.pypirc": b"[pypi]\nusername = u\npassword = verysecret",
    "root/.npmrc": b"//npm.example.org/:_authToken=verysecret",
    "root/.pgpass": b"db:5432:app:u:verysecret",
    "app/.env": b"DATABASE_PASSWORD=verysecret",
    "app/.env.production": b"DATABASE_PASSWORD=verysecret",
    "app/.env.local": b"INDEX=https://u:verysecret@pypi.example.org/simple",
    "app/prod.env": b"export API_TOKEN=verysecret",
    "root/.config/git/credentials": b"https://u:verysecret@git.example.org",
    "app/deploy.sh": b"export AWS_SECRET_ACCESS_KEY=" + base64.b64encode(secrets.token_bytes(30)),
    "app/answer.json": b'{"SecretAccessKey": "' + base64.b64encode(secrets.token_bytes(30)) + b'"}',
    "app/told.log": b'{\\"secretAccessKey\\": \\"' + base64.b64encode(secrets.token_bytes(30)) + b'\\"}',
    "app/answer.xml": b"<SecretAccessKey>" + base64.b64encode(secrets.token_bytes(30)) + b"</SecretAccessKey>",
    "app/token.txt": b"ghp_" + b"a1" * 18,
    "app/token2.txt": b"glpat-" + b"a1" * 10,
    "app/token3.txt": b"pypi-AgE" + b"a1" * 40,
    "app/token4.txt": b"xoxb-123456789012-abcdefghijkl",
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_like_a_secret_is_found_and_told_by_its_place(name: str) -> None:
    found = scanned(image({name: LOOKS[name]}), known=b"")
    assert places(found) == [f"layer 2 of 2 (RUN) > {name}"]
    assert "verysecret" not in repr(found)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "variable": ({"Env": ["API_TOKEN=verysecret"]}, "configuration, variable API_TOKEN"),
    "address in a variable": ({"Env": ["INDEX=https://u:verysecret@h/"]}, "configuration, variable INDEX"),
    "label": ({"labels": {"source": "https://u:verysecret@h/"}}, "configuration, label source"),
    "build argument": ({"step": "RUN |1 GIT_TOKEN=verysecret /bin/sh -c make # buildkit"}, "history, step 3 (RUN)"),
    "step": ({"step": "/bin/sh -c git clone https://u:verysecret@h/a.git"}, "history, step 3 (RUN)"),
    "health check": (
        {"Healthcheck": {"Test": ["CMD", "curl", "https://u:verysecret@h/"]}},
        "configuration, Healthcheck",
    ),
    "command": ({"Cmd": ["app", "--db-password=verysecret"]}, "configuration, Cmd"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_secret_in_the_configuration_or_the_history_is_found(kind: str) -> None:
    config, place = SETTINGS[kind]
    found = scanned(image(**config), known=b"")
    assert place in places(found)
    assert "verysecret" not in repr(found)


def test_an_image_without_a_secret_is_clean() -> None:
    clean = {
        "app/docs.md": b"export AWS_SECRET_ACCESS_KEY=your-key; https://user:pass@host/; password: x",
        "app/examples.py": b"'SecretAccessKey': 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'",
        "app/.env.example": b"DATABASE_PASSWORD=choose-one",
        "app/sample.env": b"DATABASE_PASSWORD=choose-one",
        "root/.netrc": b"# none",
        "etc/pip.conf": b"[global]\nindex-url = https://${USER}:${TOKEN}@pypi.example.org/simple",
        "lib/gnutls.so": b"\x7fELF\x02" + KEY,  # a library's self-tests
        "opt/venv/lib/python3.13/site-packages/tornado/test/test.key": KEY,
        "a.pub": b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 64,
    }
    environment = [
        "PATH=/usr/bin",
        "GPG_KEY=7169605F62C751356D054A26A821E680E5FA6305",
        "TOKEN_FILE=",
        "A_SECRET=$OTHER",
    ]
    assert not scanned(image(clean, Env=environment), known=b"").findings


@pytest.mark.parametrize(
    "damaged", [b"PK\x03\x04" + b"x" * 600, gzip.compress(b"1" * 9999)[:50], b"BZh9" + b"\0" * 600]
)
def test_an_archive_that_cannot_be_opened_is_looked_at_as_it_is_and_told(damaged: bytes) -> None:
    found = scanned(
        image({"a": damaged + CANARY, "b.zst": b"\x28\xb5\x2f\xfd" + CANARY, "c.pack": b"PACK\0\0\0\2" + CANARY})
    )
    assert set(places(found)) == {f"layer 2 of 2 (RUN) > {name}" for name in ("a", "b.zst", "c.pack")}
    assert {closed.place for closed in found.closed} >= set(places(found))


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "zstd"),
        (gzip.compress(tar({"a": b"1"}))[:-20], "damaged (EOFError)"),
        (b"lz4, for all that is known", "no archive that is known here"),
        (gzip.compress(b"no layer"), "no archive that is known here"),
    ],
)
def test_a_layer_that_cannot_be_looked_into_is_a_finding(layer: bytes, told: str) -> None:
    found = scanned(image(layer=layer))
    assert [tuple(finding) for finding in found.findings] == [
        ("layer 2 of 2 (RUN)", f"it could not be looked into: {told}")
    ]


@pytest.mark.parametrize("layer", [tar({}), gzip.compress(tar({})), gzip.compress(tar({"a": b"1"}))])
def test_a_layer_that_is_empty_or_compressed_is_none(layer: bytes) -> None:
    assert not scanned(image(layer=layer)).findings


def test_archives_without_end_are_left_and_told() -> None:
    deep = CANARY
    for _ in range(30):
        deep = gzip.compress(deep)
    assert "too many" in scanned(image({"a": deep})).closed[0].what


def test_files_are_scanned_as_well(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/build.log.gz").write_bytes(gzip.compress(b"..." + CANARY))
    (tmp_path / "link").symlink_to("/etc/shadow")
    found = scan_files(tmp_path, Detector([CANARY]))
    assert [finding.place for finding in found.findings] == [str(tmp_path / "logs/build.log.gz")]


def test_the_command_says_where_and_not_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: Path
) -> None:
    (tmp_path / "known").write_bytes(b"short\n\n" + CANARY + b"\n")
    (tmp_path / "file").write_bytes(base64.b64encode(CANARY))
    command = ["scan", "--files", str(tmp_path / "file"), "--known", str(tmp_path / "known")]
    assert cli.main(command) == 78
    out = capsys.readouterr().out
    assert out == f"{tmp_path}/file: a known secret in base64\n"
    assert cli.main([*command, "--json"]) == 78
    assert json.loads(capsys.readouterr().out)["findings"] == [
        {"place": f"{tmp_path}/file", "what": "a known secret in base64"}
    ]
    assert cli.main([*command, "--accept", "*/file"]) == 0
    (tmp_path / "file").write_bytes(b"nothing")
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert "no secret found (1 values were known)" in told.out
    assert told.err.endswith("of the values that are known, 1 shorter than 8 bytes could not be looked for\n")
    assert cli.main(["scan", "--files", str(tmp_path / "none")]) == 2
