"""What the authority signs: a host's own name, and nothing that a root of that host puts into the request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLES = Path(__file__).parent.parent / "roles"
OWN = (
    "subjectAltName=DNS:batch-1",
    "keyUsage=critical,digitalSignature",
    "extendedKeyUsage=clientAuth,serverAuth",
)


def asked(folder: Path, subject: str, *extensions: str) -> subprocess.CompletedProcess[str]:
    """Have the role look at a request that was made like this, for the host batch-1."""
    command = [
        "openssl",
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        subject,
    ]
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run([*command, "-keyout", "key", "-out", "csr"], cwd=folder, check=True, capture_output=True)
    look = {"ansible.builtin.include_role": {"name": "certificates", "tasks_from": "request.yml"}}
    variables = {
        "certificates_name": "batch-1",
        "__certificates_request": {"csr": (folder / "csr").read_text()},
        "ansible_python_interpreter": sys.executable,
    }
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [look]}
    (folder / "play.yml").write_text(json.dumps([play]))
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "play.yml"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "ANSIBLE_ROLES_PATH": str(ROLES), "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        text=True,
        capture_output=True,
        check=False,
    )


def test_a_request_in_the_hosts_own_name_may_be_signed(tmp_path: Path) -> None:
    answer = asked(tmp_path, "/CN=batch-1", *OWN)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("subject", "extensions"),
    [
        ("/CN=victim-host", OWN),
        ("/CN=batch-1/CN=victim-host", OWN),
        ("/CN=batch-1", ("subjectAltName=DNS:batch-1,DNS:logs-collector", *OWN[1:])),
        ("/CN=batch-1", (*OWN, "basicConstraints=critical,CA:TRUE")),
        ("/CN=batch-1", (OWN[0], "keyUsage=critical,digitalSignature,keyCertSign", OWN[2])),
        ("/CN=batch-1", (*OWN[:2], "extendedKeyUsage=clientAuth,serverAuth,codeSigning")),
        ("/CN=batch-1", OWN[:1]),
    ],
    ids=["another-name", "two-names", "another-alternative", "authority", "signs", "other-use", "any-use"],
)
def test_any_other_request_is_refused_and_told(tmp_path: Path, subject: str, extensions: tuple[str, ...]) -> None:
    answer = asked(tmp_path, subject, *extensions)
    assert answer.returncode == 2
    assert "asks for a certificate that is not to be its own" in answer.stdout
