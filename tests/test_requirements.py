"""What the build makes of a pipeline's requirements file, before anything is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CLOSURE = Path(__file__).parent.parent / "docker" / "requirements_closure.py"


def closure(source: Path, requirements: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    there = source.parent / "there"
    command = [sys.executable, str(CLOSURE), str(source), requirements, str(there)]
    return there, subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    return source


@pytest.mark.parametrize(
    ("lock", "export"),
    [
        ("uv.lock", "uv export --format requirements-txt"),
        ("poetry.lock", "poetry export --format requirements.txt"),
        ("Pipfile.lock", "pipenv requirements --hash"),
        ("pylock.toml", "uv pip compile pylock.toml --generate-hashes"),
        ("pyproject.toml", "uv pip compile pyproject.toml --generate-hashes"),
        ("app/uv.lock", "uv export --format requirements-txt"),
    ],
)
def test_a_lock_that_pip_does_not_read_is_told_with_what_exports_it(source: Path, lock: str, export: str) -> None:
    (source / lock).parent.mkdir(exist_ok=True)
    (source / lock).write_text("version = 1\n")
    there, answer = closure(source, lock)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"requirements: {lock} is none of pip's own. Commit what this makes of it")
    assert export in answer.stderr
    assert not there.exists()


@pytest.mark.parametrize(
    "line",
    [
        "git+https://git.example.org/thing.git@v1",
        "thing @ git+ssh://git@git.example.org/thing.git",
        "thing[extra]@git+https://git.example.org/thing.git",
        "-e git+https://git.example.org/thing.git#egg=thing",
        "hg+https://hg.example.org/thing",
    ],
)
def test_a_requirement_from_a_repository_is_refused_before_anything_is_installed(source: Path, line: str) -> None:
    (source / "requirements.txt").write_text(f"luigi\n{line}\n")
    _there, answer = closure(source, "requirements.txt")
    assert answer.returncode == 1
    assert answer.stderr.startswith("requirements: requirements.txt:2 installs from a repository")
    assert "/archive/" in answer.stderr


def test_a_secret_in_the_address_of_a_repository_is_not_told(source: Path) -> None:
    (source / "requirements.txt").write_text("thing @ git+https://me:hunter2-and-more@git.example.org/thing.git\n")
    assert "hunter2" not in closure(source, "requirements.txt")[1].stderr


@pytest.mark.parametrize(
    "line",
    [
        *(
            "./thing",
            "../thing",
            "/srv/thing",
            "-e .",
            ".",
            "..",
            ".[extra]",
            "-e .[dev,test]",
            ". ; python_version > '3'",
        ),
        *("file:///srv/thing", "thing @ file:///srv/thing", "a/b.whl"),
    ],
)
def test_a_requirement_from_a_local_path_is_refused(source: Path, line: str) -> None:
    (source / "requirements.txt").write_text(f"# ours\n{line}\n")
    _there, answer = closure(source, "requirements.txt")
    assert answer.returncode == 1
    assert answer.stderr == f"requirements: requirements.txt:2 installs from a local path: {line}\n"


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--find-links ./wheels", "--find-links"),
        ("--find-links=wheels", "--find-links"),
        ("-f ./wheels", "-f"),
        ("-f./wheels", "-f"),
        ("--index-url file:///srv/index", "--index-url"),
        ("-i /srv/index", "-i"),
        ("--extra-index-url ftp://me:hunter2-and-more@ftp.example.org/", "--extra-index-url"),
        ("--index-url https://pypi.example.org/simple --find-links wheels", "--find-links"),
    ],
)
def test_packages_from_a_place_that_the_build_does_not_have_are_refused(source: Path, line: str, option: str) -> None:
    (source / "requirements.txt").write_text(f"luigi\n{line}\n")
    _there, answer = closure(source, "requirements.txt")
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"requirements: requirements.txt:2: {option} names no address (http://")
    assert "hunter2" not in answer.stderr


def test_packages_from_another_index_are_taken(source: Path) -> None:
    lines = (
        "--index-url https://pypi.example.org/simple\n-i http://pypi.example.org\n--extra-index-url=${INDEX}\n"
        "-fhttps://pypi.example.org/wheels # not -f ./wheels\n"
        "--no-index --find-links https://pypi.example.org\nsix # -f ./wheels\n"
        "luigi==3.8 \\\n  --hash=sha256:00\n--prefer-binary\n--pre\n--index-url https://pypi.example.org/-f/-i\n"
    )
    (source / "requirements.txt").write_text(lines)
    assert closure(source, "requirements.txt")[1].stderr == ""


def test_what_pip_installs_by_name_or_from_an_archive_is_taken(source: Path) -> None:
    lines = (
        "luigi>=3\nboto3[crt]==1.40 ; python_version > '3'\nthing @ https://example.org/archive/1.tar.gz\n"
        "# a/b\nsix;python_version!='a/b'\n"
    )
    (source / "requirements.txt").write_text(lines)
    there, answer = closure(source, "requirements.txt")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert (there / "requirements.txt").read_text() == lines
    assert (there / ".options").read_text() == ""


def test_files_that_are_included_come_along_and_one_hash_asks_for_all(source: Path) -> None:
    (source / "requirements").mkdir()
    (source / "requirements" / "base.txt").write_text("-c limits.txt\nluigi==3.8 --hash=sha256:00\n")
    (source / "requirements" / "limits.txt").write_text("boto3<2\n")
    (source / "requirements.txt").write_text("-r requirements/base.txt\n")
    there, answer = closure(source, "requirements.txt")
    assert (answer.returncode, answer.stderr) == (0, "")
    copied = sorted(str(path.relative_to(there)) for path in there.rglob("*.txt"))
    assert copied == ["requirements.txt", "requirements/base.txt", "requirements/limits.txt"]
    assert (there / ".options").read_text() == "--require-hashes\n"


def test_a_file_that_is_not_there_is_told_with_those_that_are(source: Path) -> None:
    (source / "requirements-dev.txt").write_text("luigi\n-r missing.txt\n")
    assert "It has: requirements-dev.txt" in closure(source, "requirements.txt")[1].stderr
    assert "(included by requirements-dev.txt:2)" in closure(source, "requirements-dev.txt")[1].stderr
    assert "lies outside" in closure(source, "../requirements.txt")[1].stderr


def test_a_mark_of_the_byte_order_hides_no_include(source: Path) -> None:
    (source / "base.txt").write_text("luigi\n")
    (source / "requirements.txt").write_text("-r base.txt\nrequests\n", encoding="utf-8-sig")
    there, answer = closure(source, "requirements.txt")
    assert answer.returncode == 0, answer.stderr
    assert (there / "base.txt").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_told_with_the_file(source: Path, encoding: str) -> None:
    (source / "requirements.txt").write_text("luigi # für alle\n", encoding=encoding)
    _there, answer = closure(source, "requirements.txt")
    assert answer.returncode == 1
    assert answer.stderr == "requirements: requirements.txt is not in UTF-8. Save it in that, without a coding line\n"
