"""Refs and files, asked of real repositories over git's own transport."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standpipe import sources, validate
from standpipe.errors import ConfigurationError
from standpipe.pipeline import Declaration


def git(*arguments: str, cwd: Path) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a branch dev of two commits, a light tag on the first and a heavy one on the second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "served" / "arxlive.git"
    work.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=dev", cwd=work)
    for number in (1, 2):
        (work / "requirements.txt").write_text(f"luigi>={number}\n")
        git("add", ".", cwd=work)
        git("commit", "--quiet", "--message", f"number {number}", cwd=work)
        git("tag", *(("light",) if number == 1 else ("-a", "heavy", "-m", "heavy")), cwd=work)
    return work


@pytest.fixture
def served(work: Path) -> Iterator[str]:
    """The same repository, behind git's own daemon."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}"]
    daemon = subprocess.Popen([*command, f"--base-path={work.parent}"], stderr=subprocess.DEVNULL, process_group=0)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/{work.name}"
    finally:
        daemon.terminate()
        daemon.wait()


@pytest.mark.parametrize(("version", "names"), [("dev", "dev"), ("light", "light"), ("heavy", "heavy^{commit}")])
def test_a_branch_and_both_kinds_of_tag_are_commits(work: Path, served: str, version: str, names: str) -> None:
    assert sources.resolve(served, version) == git("rev-parse", names, cwd=work).strip()


def test_a_commit_is_itself_though_no_ref_names_it(work: Path, served: str) -> None:
    first = git("rev-parse", "light", cwd=work).strip()
    git("tag", "--delete", "light", cwd=work)
    assert sources.resolve(served, first) == first


def test_a_ref_that_is_not_there_names_those_that_are_near(served: str) -> None:
    with pytest.raises(sources.SourceError, match=r'"hevy" is no tag, branch or commit of .*It has heavy'):
        sources.resolve(served, "hevy")


def test_a_commit_that_is_not_there_is_told(served: str) -> None:
    with pytest.raises(sources.SourceError, match="cannot be fetched"):
        sources.resolve(served, "0" * 40)


@pytest.mark.parametrize("there", ["nosuch.git", "closed"])
def test_a_repository_that_cannot_be_reached_is_told(served: str, there: str) -> None:
    repo = served.rpartition("/")[0] + "/nosuch.git" if there == "nosuch.git" else "git://127.0.0.1:9/arxlive.git"
    with pytest.raises(sources.SourceError, match=r"cannot be reached.*Check the address"):
        sources.resolve(repo, "dev")


def test_a_repository_without_any_ref_says_so(work: Path) -> None:
    git("init", "--quiet", "--bare", "../empty.git", cwd=work)
    with pytest.raises(sources.SourceError, match="no branch and no tag"):
        sources.resolve(str(work.parent / "empty.git"), "dev")


def test_a_requirements_file_that_is_not_there_names_those_that_are(work: Path, served: str) -> None:
    commit = sources.resolve(served, "dev")
    sources.require_file(served, "dev", commit, "requirements.txt")
    with pytest.raises(sources.SourceError, match=r'"other.txt" is not in .*It has requirements.txt'):
        sources.require_file(served, "dev", commit, "other.txt")


def test_a_secret_in_an_address_is_never_repeated() -> None:
    with pytest.raises(sources.SourceError) as error:
        sources.resolve("http://user:hunter2@127.0.0.1:9/arxlive.git", "dev")
    assert "hunter2" not in str(error.value)


def test_refs_of_one_repository_are_fetched_side_by_side(served: str) -> None:
    versions = ["dev", "light", "heavy"] * 4
    with ThreadPoolExecutor(max_workers=8) as pool:
        commits = list(pool.map(lambda version: sources.resolve(served, version), versions))
        caches = list(pool.map(sources.fetch, [served] * len(versions), versions, commits))
    assert len(set(caches)) == 1


def test_every_pipeline_gets_its_commit_and_every_fault_is_told_at_once(work: Path, served: str) -> None:
    def pipeline(name: str, **source: str) -> dict[str, object]:
        return {
            "name": name,
            "source": {"repo": served, "version": "dev", **source},
            "task": {"module": "arxlive.tasks", "name": "RootTask"},
        }

    good = Declaration.model_validate({"pipelines": [pipeline("good")]})
    resolved = validate.resolve(good).pipelines[0].source
    assert resolved is not None
    assert resolved.commit == git("rev-parse", "dev", cwd=work).strip()
    bad = [pipeline("good"), pipeline("first", version="nosuch"), pipeline("second", requirements="nosuch.txt")]
    with pytest.raises(ConfigurationError) as error:
        validate.resolve(Declaration.model_validate({"pipelines": bad}))
    lines = str(error.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["pipeline 'first'", "source.version"],
        ["pipeline 'second'", "source.requirements"],
    ]


def test_a_lock_that_a_killed_git_has_left_is_in_nobody_s_way(work: Path, served: str, tmp_path: Path) -> None:
    for version in ("light", "heavy"):
        commit = git("rev-parse", f"{version}^{{commit}}", cwd=work).strip()
        sources.require_file(served, version, commit, "requirements.txt")
        (cache,) = (tmp_path / "cache").rglob("HEAD")
        assert (cache.parent / "shallow").exists()
        assert not (cache.parent / "shallow.lock").exists()
        (cache.parent / "shallow.lock").touch()
