"""What `standpipe doctor` says of a pipeline's credentials file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import DECLARED
from standpipe import configuration, doctor, paths

OTHER = os.getuid() + 1


@pytest.mark.parametrize(
    ("mode", "account", "told"),
    [
        (0o400, os.getuid(), []),
        (0o444, os.getuid(), ["can be read by others"]),
        (0o400, OTHER, ["cannot be read by its containers"]),
        (0o200, os.getuid(), ["cannot be read by its containers"]),
        (0o644, OTHER, ["can be read by others", "cannot be read by its containers"]),
    ],
)
def test_a_credentials_file_is_its_container_s_to_read_and_nobody_else_s(
    host: Path, mode: int, account: int, told: list[str]
) -> None:
    (paths.PIPELINES / "arxlive.yml").write_text(DECLARED + "credentials: {mode: file}\n")
    paths.SETTINGS.write_text("check_credentials: false\n")
    settings = paths.compose_file("arxlive").with_name(".env")
    settings.parent.mkdir(parents=True)
    settings.write_text(f"STANDPIPE_USER={account}:{account}\n")
    paths.CREDENTIALS.mkdir()
    file = paths.CREDENTIALS / "arxlive"
    file.touch(mode)
    file.chmod(mode)
    found = [finding for finding in doctor.look_at_credentials(configuration.load("arxlive")) if finding.remedy]
    assert [finding.seen for finding in found] == [f"{file} {what}" for what in told]
