"""What was in service is kept, and can be gone back to: all of it or nothing."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from standpipe import cli, paths, releases
from standpipe.engines.compose import ComposeEngine
from standpipe.errors import ConfigurationError, UsageError


def put_in_service(
    image: str, schedule: str | None = "0 3 * * *", name: str = "arxlive", credentials: str = "role"
) -> str:
    """Do what site.yml does, to its last step; return the release's name."""
    docker = paths.compose_file(name).parent
    docker.mkdir(parents=True, exist_ok=True)
    paths.CRON.mkdir(parents=True, exist_ok=True)
    (docker / ".env").write_text(f"STANDPIPE_IMAGE={image}\n")
    (docker / "docker-compose.yml").write_text("services: {}\n")
    (docker / "Dockerfile").write_text(f"# {image}\n")
    (paths.PIPELINES / f"{name}.yml").write_text(declared(schedule, name, credentials))
    cron = paths.CRON / f"standpipe-{name}"
    cron.unlink(missing_ok=True)
    if schedule:
        cron.write_text(f"{schedule} root standpipe run {name} --scheduled\n")
    releases.keep(name, 3)
    return releases.name_of(name)


def declared(schedule: str | None, name: str, credentials: str) -> str:
    return json.dumps(
        {
            "name": name,
            "source": {"repo": "https://git.example.org/a.git", "commit": "c" * 40},
            "task": {"module": "m", "name": "T"},
            "schedule": {"cron": schedule} if schedule else None,
            "credentials": {"mode": credentials},
        }
    )


def serving(name: str = "arxlive") -> tuple[str, str]:
    """Return the image and cron's line that are in service."""
    cron = paths.CRON / f"standpipe-{name}"
    return (
        (paths.compose_file(name).parent / ".env").read_text().strip().partition("=")[2],
        cron.read_text()[:9] if cron.exists() else "",
    )


def back(to: str | None = None, gone: str = "") -> str:
    return releases.roll_back("arxlive", lambda image: image != gone, to).name


def test_going_back_brings_image_configuration_and_schedule(host: Path) -> None:
    first = put_in_service("i:1", "0 3 * * *")
    put_in_service("i:2", "0 4 * * *")
    assert back() == first
    assert serving() == ("i:1", "0 3 * * *")
    assert (paths.compose_file("arxlive").parent / "Dockerfile").read_text() == "# i:1\n"


def test_a_schedule_that_was_not_there_is_not_there_again(host: Path) -> None:
    put_in_service("i:1", None)
    put_in_service("i:2")
    back()
    assert serving() == ("i:1", "")


def test_the_same_again_is_no_new_release(host: Path) -> None:
    put_in_service("i:1")
    assert releases.keep("arxlive", 3) is None
    assert [release.image for release in releases.kept("arxlive")] == ["i:1"]


def test_going_back_twice_goes_further_back_and_never_forward(host: Path) -> None:
    for number in (1, 2, 3):
        put_in_service(f"i:{number}")
    back()
    assert serving()[0] == "i:2"
    back()
    assert serving()[0] == "i:1"
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        back()
    assert serving()[0] == "i:1"


def test_what_was_gone_back_from_can_be_chosen_and_declared_again(host: Path) -> None:
    put_in_service("i:1")
    second = put_in_service("i:2")
    back()
    assert back(second) == second
    assert serving()[0] == "i:2"
    back()
    put_in_service("i:2")  # site.yml, with the same inventory
    assert [release.rolled_back for release in releases.kept("arxlive")] == [False, False]
    back()
    assert serving()[0] == "i:1"


def test_a_release_can_be_chosen_by_its_image(host: Path) -> None:
    first = put_in_service("i:1")
    put_in_service("i:2")
    put_in_service("i:3")
    assert back("i:1") == first
    with pytest.raises(UsageError, match="has no release i:4"):
        back("i:4")
    assert serving()[0] == "i:1"


def test_after_going_back_a_new_one_goes_back_to_what_was_chosen(host: Path) -> None:
    put_in_service("i:1")
    put_in_service("i:bad")
    back()
    put_in_service("i:3")
    back()
    assert serving()[0] == "i:1"


def test_nothing_changes_where_the_image_is_gone_or_there_is_nothing(host: Path) -> None:
    put_in_service("i:1")
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        back()
    put_in_service("i:2")
    with pytest.raises(ConfigurationError, match="no longer on this host"):
        back(gone="i:1")
    with pytest.raises(UsageError, match="no release"):
        back("000000000000")
    assert serving()[0] == "i:2"


def test_a_release_whose_keys_have_gone_is_not_gone_back_to(host: Path) -> None:
    put_in_service("i:1", credentials="file")
    put_in_service("i:2")
    with pytest.raises(ConfigurationError, match=r"arxlive, which is not on this host.*run site.yml"):
        back()
    (paths.CREDENTIALS / "arxlive").mkdir(parents=True)  # as Docker leaves it
    with pytest.raises(ConfigurationError, match="not on this host"):
        back()
    assert (serving()[0], [release.rolled_back for release in releases.kept("arxlive")]) == ("i:2", [False, False])
    (paths.CREDENTIALS / "arxlive").rmdir()
    (paths.CREDENTIALS / "arxlive").write_text("[default]\n")
    back()
    assert serving()[0] == "i:1"


def test_as_many_are_kept_as_images(host: Path) -> None:
    for number in range(6):
        put_in_service(f"i:{number}")
    assert [release.image for release in releases.kept("arxlive")] == ["i:5", "i:4", "i:3"]


def test_a_copy_that_was_cut_off_is_no_release(host: Path) -> None:
    put_in_service("i:1")
    name = releases.name_of("arxlive")
    (releases.directory("arxlive") / name / releases.KEPT_AT).unlink()
    assert releases.kept("arxlive") == []
    releases.keep("arxlive", 3)
    assert [release.name for release in releases.kept("arxlive")] == [name]


def test_the_commands(host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine.has_image", lambda *_arguments: True)
    first = put_in_service("i:1")
    second = put_in_service("i:2")
    assert cli.main(["releases", "--keep"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["roll-back", "arxlive"]) == 0
    assert f"the next run uses the release {first}, with the image i:1" in capsys.readouterr().out
    assert cli.main(["releases", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["releases"]["arxlive"]
    assert [(one["name"], one["in_service"], one["rolled_back"]) for one in listed] == [
        (first, True, False),
        (second, False, True),
    ]
    assert cli.main(["releases", "arxlive"]) == 0
    assert "in service" in capsys.readouterr().out
    assert cli.main(["roll-back", "nobody"]) == 2
    assert cli.main(["roll-back", "arxlive"]) == 78


class Images:
    """The images of one pipeline as Docker's Engine API lists and removes them, from the oldest to the newest."""

    def __init__(self, *tags: str, used: str = "") -> None:
        self.listed: list[dict[str, Any]] = [
            {"RepoTags": [tag], "Created": created} for created, tag in enumerate(tags)
        ]
        self.used = used

    def images(self, name: str) -> list[dict[str, Any]]:
        assert name == "standpipe-arxlive"
        return list(self.listed)

    def remove_image(self, tag: str) -> None:
        if tag == self.used:
            raise APIError("conflict: a container uses it")
        self.listed = [image for image in self.listed if image["RepoTags"] != [tag]]


@pytest.mark.parametrize(
    ("serving", "released", "used", "left"),
    [
        ("e", "", "", "cde"),  # the newest three
        ("a", "", "", "ade"),  # what is in service, whatever its age
        ("e", "ab", "", "abe"),  # what can be gone back to, rather than what never served
        ("e", "", "b", "bcde"),  # what a run still uses
    ],
)
def test_as_many_images_are_kept_as_are_asked_for(
    host: Path, serving: str, released: str, used: str, left: str
) -> None:
    put_in_service(serving)
    engine = ComposeEngine()
    docker = Images(*"abcde", used=used)
    vars(engine)["api"] = docker
    removed = engine.discard_images("arxlive", 3, frozenset(released))
    assert sorted(tag for image in docker.listed for tag in image["RepoTags"]) == sorted(left)
    assert sorted(removed) == sorted(set("abcde") - set(left))


def test_what_is_in_service_is_the_newest_release_though_a_clock_was_ahead(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=6)

    with monkeypatch.context() as ahead:
        ahead.setattr(releases, "datetime", Ahead)
        for number in range(3):
            put_in_service(f"i:{number}")
    newest = put_in_service("i:3")
    assert [(release.image, release.in_service) for release in releases.kept("arxlive")] == [
        ("i:3", True),
        ("i:2", False),
        ("i:1", False),
    ]
    assert back() != newest
    assert serving()[0] == "i:2"
    assert releases.kept("arxlive")[0].image == "i:2"


def test_a_note_that_was_cut_off_with_its_host_stops_neither_converge_nor_roll_back(host: Path) -> None:
    first = put_in_service("i:1")
    put_in_service("i:2")
    (releases.directory("arxlive") / first / releases.KEPT_AT).write_text("")
    newest = put_in_service("i:3")
    assert releases.kept("arxlive")[0].name == newest
    assert back(to=first) == first
    assert serving()[0] == "i:1"
