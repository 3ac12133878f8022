"""What the authority signs: a host's own name, and nothing that a root of that host puts into the request; and when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
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
    variables: dict[str, object] = {
        "certificates_name": "batch-1",
        "__certificates_request": {"csr": (folder / "csr").read_text()},
    }
    return role(folder, ["localhost"], "request.yml", variables)


def role(
    folder: Path, hosts: list[str], tasks: str, variables: dict[str, object], *options: str, says: str = ""
) -> subprocess.CompletedProcess[str]:
    """Have the role do some of its tasks for hosts, all of which are this machine, and say something then."""
    look = {"ansible.builtin.include_role": {"name": "certificates", "tasks_from": tasks, "public": True}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [look, {"ansible.builtin.debug": {"msg": says}}]}
    (folder / "play.yml").write_text(json.dumps([play]))
    told = ("--extra-vars", json.dumps(variables | {"ansible_python_interpreter": sys.executable}))
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", f"{','.join(hosts)},", "-c", "local", *told, *options,
         "play.yml"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "ANSIBLE_ROLES_PATH": str(ROLES), "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        text=True,
        capture_output=True,
        check=False,
    )  # fmt: skip


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


def openssl(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def make_authority(host: Path, days: int = 3650) -> None:
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-x509", *new, "-subj", "/CN=authority", "-days", str(days), cwd=host / "authority")


def make_key(host: Path) -> None:
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "host.key", cwd=host)


def certify(host: Path, days: int = 397) -> None:
    """Give a host a certificate."""
    openssl("req", "-new", "-key", "host.key", "-subj", f"/CN={host.name}", "-out", "csr", cwd=host)
    (host / "extensions").write_text("authorityKeyIdentifier=keyid\n")
    signer = ("-CA", "authority/ca.pem", "-CAkey", "authority/ca.key", "-extfile", "extensions")
    openssl("x509", "-req", "-in", "csr", *signer, "-days", str(days), "-out", "host.pem", cwd=host)
    shutil.copy(host / "authority/ca.pem", host)


def have_another_authority(host: Path) -> None:
    shutil.copytree(host / "authority", host / "kept")
    make_authority(host)
    shutil.copy(host / "authority/ca.pem", host)
    shutil.copytree(host / "kept", host / "authority", dirs_exist_ok=True)


def end_with_the_authority(host: Path) -> None:
    ends = ("x509", "-noout", "-enddate", "-in")
    while openssl(*ends, "ca.pem", cwd=host) != openssl(*ends, "host.pem", cwd=host):  # to the second
        make_authority(host, 50)
        certify(host, 50)


HARMS: dict[str, Callable[[Path], object]] = {
    "none": lambda _host: None,
    "ends-with-its-authority": end_with_the_authority,
    "ends-soon": lambda host: certify(host, 59),
    "young-authority": lambda host: make_authority(host, 100),
    "no-key": lambda host: (host / "host.key").unlink(),
    "half-a-key": lambda host: (host / "host.key").write_text("-----BEGIN EC PRIVATE KEY-----\n"),
    "another-key": make_key,
    "no-authority": lambda host: (host / "ca.pem").unlink(),
    "another-authority": have_another_authority,
    "new-authority": make_authority,
}


ENDS = "{{ inventory_hostname }} ends with its authority: {{ __certificates_until == __certificates_issuer.not_after }}"


@pytest.fixture(scope="module")
def converged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the role says in check mode of a host for each harm."""
    folder = tmp_path_factory.mktemp("hosts")
    for name, harm in HARMS.items():
        host = folder / name
        (host / "authority").mkdir(parents=True)
        make_authority(host)
        make_key(host)
        certify(host)
        harm(host)
    places = f"{folder}/{{{{ inventory_hostname }}}}"
    variables: dict[str, object] = {
        "certificates_directory": places,
        "certificates_authority_directory": f"{places}/authority",
    }
    answer = role(folder, [*HARMS], "certificate.yml", variables | {"__certificates_missing": []}, "--check", says=ENDS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize("harm", HARMS)
def test_a_host_that_lacks_any_of_its_three_files_or_time_gets_new_ones(converged: str, harm: str) -> None:
    left = harm in ("none", "ends-with-its-authority")
    assert (f"Would install a certificate for {harm}" in converged) == (not left)


def test_no_certificate_outlives_its_authority(converged: str) -> None:
    assert "young-authority ends with its authority: True" in converged
    assert "none ends with its authority: False" in converged


def test_an_authority_is_made_once_and_is_good_for_hosts_whose_clocks_are_behind(tmp_path: Path) -> None:
    variables: dict[str, object] = {
        "certificates_authority_directory": str(tmp_path / "authority"),
        "certificates_authority_passphrase": "twelve letters",
    }
    answer = role(tmp_path, ["localhost"], "authority.yml", variables)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    made = (tmp_path / "authority/ca.pem").read_text()
    begins = openssl("x509", "-noout", "-startdate", "-in", "authority/ca.pem", cwd=tmp_path).partition("=")[2].strip()
    since = datetime.strptime(begins, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert timedelta(minutes=59) < datetime.now(UTC) - since < timedelta(minutes=90)
    assert role(tmp_path, ["localhost"], "authority.yml", variables).returncode == 0
    assert (tmp_path / "authority/ca.pem").read_text() == made
