"""What builds are given is checked, is found by git, and is never said."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

from standpipe import build_secrets
from standpipe.build_secrets import BuildSecrets
from standpipe.errors import ConfigurationError

FILTERS = Path(__file__).parents[1] / "roles/pipeline/filter_plugins/build_secrets.py"
SECRETS = BuildSecrets(
    netrc="machine git.example.org login me password hunter2-and-more",
    ssh_key="-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END OPENSSH PRIVATE KEY-----\n",
    pip_conf="[global]\nindex-url = https://me:p%40ssword-of-pip@pypi.example.org/simple\n",
)


def test_the_secret_values_are_known_and_hosts_are_none() -> None:
    assert SECRETS.values() == {
        "hunter2-and-more",
        "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU",
        "p%40ssword-of-pip",
        "p@ssword-of-pip",
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"netrc": "machine a login b passwort hunter2"},
            r"build_secrets.x: netrc|build_secrets.x.netrc: cannot be read",
        ),
        ({"netrcs": "hunter2"}, "netrcs is nothing that a build is given. Choose of netrc, ssh_key"),
        ({"ssh_key": "hunter2"}, "ssh_key: is no private key"),
        ({"pip_conf": "index-url = hunter2"}, "pip_conf: cannot be read at line 1"),
        ({"netrc": ["hunter2"]}, "netrc is empty, or no text"),
        ("hunter2", "is no mapping"),
    ],
)
def test_what_cannot_be_used_is_told_without_its_value(given: object, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as error:
        build_secrets.read({"x": given})
    assert "hunter2" not in str(error.value)


def test_git_gets_them_in_a_directory_of_its_own_that_goes_afterwards(tmp_path: Path) -> None:
    with build_secrets.for_git(SECRETS) as given:
        home = Path(given["HOME"])
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "key").stat().st_mode & 0o777 == 0o600
        assert "hunter2-and-more" in (home / ".netrc").read_text()
        assert not any(value in text for value in SECRETS.values() for text in given.values())
        subprocess.run(["git", "version"], env={"PATH": "/usr/bin:/bin", **given}, check=True, capture_output=True)
    assert not home.exists()


@pytest.mark.parametrize("step", ["fetch-code", "install-packages"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_password_in_a_proxy_is_refused_by_its_name(step: str, name: str) -> None:
    variables = {"PATH": "/usr/bin:/bin", "GIT_REPO": "", "PIP_INDEX_URL": "", "NO_PROXY": "a@b"}
    proxy = {name: "http://me:hunter2-and-more@proxy.example.org:3128"}
    command = ["sh", str(Path(__file__).parents[1] / "docker" / step)]
    answer = subprocess.run(command, env=variables | proxy, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert f": {name} holds a secret, which the build cache would keep" in answer.stderr
    assert "hunter2" not in answer.stderr


HEADING = "#7 [git 1/1] RUN x\n#7 0.3 of another step\n#7 DONE 0.4s\n\n#8 [packages 2/2] RUN sh /run/install-packages\n"
SUMMARY = "------\n > [packages 2/2] RUN sh /run/install-packages:\n------\nDockerfile:64\nERROR: failed to solve\n"


def test_a_failed_build_tells_its_step_and_no_secret() -> None:
    said = (
        f"{HEADING}#8 1.234 Looking in https://me:p%40ssword-of-pip@pypi.example.org/simple\n"
        "#8 2.345 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES hunter2-and-more\n"
        f"#8 ERROR: process did not complete successfully: exit code: 1\n{SUMMARY}"
    )
    told = build_secrets.failure(said, SECRETS)
    assert told.splitlines()[-1] == "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES ***"
    assert "ssword" not in told
    assert len(told.splitlines()) == 2


def test_a_build_that_failed_in_no_step_tells_its_end() -> None:
    assert build_secrets.failure("#1 load\nERROR: failed to solve: no such base", SECRETS).endswith("no such base")


def test_a_step_that_said_nothing_is_told_by_its_summary() -> None:
    said = f"{HEADING}#8 ERROR: process did not complete successfully: exit code: 1\n{SUMMARY}"
    assert "[packages 2/2] RUN sh /run/install-packages" in build_secrets.failure(said, SECRETS)


def test_what_a_scan_could_not_look_into_is_told_of_its_pipeline() -> None:
    unseen = runpy.run_path(str(FILTERS))["unseen"]
    said = "layer 1 of 2 > a.zst: could not be looked into: zstd\nsomething else\n"
    results = [{"item": {"name": "a"}, "rc": 0, "stderr": said}, {"item": {"name": "b"}, "skipped": True}]
    assert unseen(results) == ["pipeline 'a': layer 1 of 2 > a.zst: could not be looked into: zstd"]


def test_short_passwords_are_masked_too() -> None:
    assert build_secrets.masked("it was abcde", BuildSecrets(netrc="machine a login b password abcde")) == "it was ***"
