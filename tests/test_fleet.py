"""Who builds an image, and who gets it from whom."""

from __future__ import annotations

from standpipe.fleet import Parcel, Plan, Stock, Word, differing, digests, plan, words

NOTHING = Plan(build={}, parcels=[])


def host(*wants: str, kind: str = "x86_64", **has: str) -> Stock:
    return Stock(kind=kind, wants=list(wants), has=has)


def test_bare_hosts_have_the_first_build_and_hand_on_what_each_wants() -> None:
    hosts = {"one": host("a", "b"), "two": host("a", "b", "c"), "three": host("b", "a")}
    assert plan(hosts, {}) == Plan(
        build={"one": ["a", "b"], "two": ["c"]},
        parcels=[Parcel(images=["a", "b"], source="one", to=["two", "three"])],
    )


def test_hosts_that_have_the_same_image_have_nothing_to_do() -> None:
    assert plan({"one": host("a", a="1"), "two": host("a", a="1")}, {}) == NOTHING


def test_one_host_alone_makes_no_parcel() -> None:
    assert plan({"one": host("a")}, {}) == Plan(build={"one": ["a"]}, parcels=[])


def test_a_new_host_gets_the_image_and_builds_nothing() -> None:
    hosts = {"new": host("a"), "old": host("a", a="1")}
    assert plan(hosts, {}) == Plan(build={}, parcels=[Parcel(images=["a"], source="old", to=["new"])])


def test_a_new_host_gets_it_from_one_that_is_not_of_this_play() -> None:
    hosts = {"new": host("a")}
    others = {"odd": host(kind="aarch64", a="2"), "old": host(a="1")}
    assert plan(hosts, others)["parcels"] == [Parcel(images=["a"], source="old", to=["new"])]


def test_the_named_builder_comes_first_where_it_wants_the_image() -> None:
    hosts = {"one": host("a", "b"), "two": host("a")}
    assert plan(hosts, {}, builder="two")["build"] == {"two": ["a"], "one": ["b"]}


def test_a_builder_that_is_not_of_this_play_is_no_matter() -> None:
    assert plan({"one": host("a")}, {}, builder="away")["build"] == {"one": ["a"]}


def test_of_one_name_only_one_image_is_left() -> None:
    hosts = {"one": host("a", a="1"), "two": host("a", a="2"), "three": host("a", a="1")}
    assert plan(hosts, {}) == Plan(build={}, parcels=[Parcel(images=["a"], source="one", to=["two"])])


def test_a_host_that_has_an_image_hands_it_on_though_it_wants_another() -> None:
    hosts = {"one": host("b", a="1", b="1"), "two": host("a")}
    assert plan(hosts, {})["parcels"] == [Parcel(images=["a"], source="one", to=["two"])]


def test_each_kind_of_host_has_its_own_build() -> None:
    hosts = {"one": host("a"), "two": host("a", kind="aarch64"), "three": host("a", kind="aarch64")}
    assert plan(hosts, {}) == Plan(
        build={"one": ["a"], "two": ["a"]},
        parcels=[Parcel(images=["a"], source="two", to=["three"])],
    )


def test_what_differs_is_told_with_its_hosts() -> None:
    kinds = {"one": "x86_64", "two": "x86_64", "odd": "aarch64"}
    identities = {"one": {"a": "sha256:1", "b": "sha256:1"}, "two": {"a": "sha256:2"}, "odd": {"a": "sha256:3"}}
    assert differing(identities, kinds) == ["a: sha256:1 on one; sha256:2 on two"]
    assert differing(identities | {"two": {"a": "sha256:1"}}, kinds) == []


def test_a_base_image_has_the_digest_of_its_own_repository() -> None:
    answer = {
        "images": [
            {"RepoTags": ["python:3.13-slim", "registry:5000/python:3.13-slim"],
             "RepoDigests": ["python@sha256:1", "registry:5000/python@sha256:2"]},
            {"RepoTags": ["loaded:1"], "RepoDigests": None},
            {"RepoTags": None, "RepoDigests": ["python@sha256:0"]},
        ]
    }  # fmt: skip
    names = ["python:3.13-slim", "registry:5000/python:3.13-slim", "loaded:1", "missing:1"]
    assert digests(answer, names) == {
        "python:3.13-slim": "sha256:1", "registry:5000/python:3.13-slim": "sha256:2", "loaded:1": ""
    }  # fmt: skip


def test_the_first_host_that_has_a_base_image_says_by_which_digest_all_have_it() -> None:
    wants = {"new": ["base"], "old": ["base"], "older": ["base"]}
    have = {"old": {"base": "sha256:1"}, "older": {"base": "sha256:0"}}
    assert words(wants, have) == {"base": Word(host="old", digest="sha256:1")}
    assert words(wants, have, builder="older") == {"base": Word(host="older", digest="sha256:0")}


def test_one_host_asks_for_a_base_image_that_none_has() -> None:
    wants = {"one": ["base"], "two": ["base", "other"]}
    assert words(wants, {}) == {"base": Word(host="one", digest=None), "other": Word(host="two", digest=None)}


def test_one_host_asks_for_a_newer_base_image_whatever_any_has() -> None:
    wants = {"one": ["base"], "two": ["base"]}
    assert words(wants, {"two": {"base": "sha256:1"}}, anew=True) == {"base": Word(host="one", digest=None)}


def test_a_new_host_takes_the_base_image_of_hosts_that_are_not_of_this_play() -> None:
    assert words({"new": ["base"]}, {"away": {"base": "sha256:1"}}) == {"base": Word(host="away", digest="sha256:1")}


def test_a_base_image_that_was_loaded_by_hand_has_no_digest() -> None:
    assert words({"one": ["base"]}, {"one": {"base": ""}}) == {"base": Word(host="one", digest="")}
    have = {"one": {"base": ""}, "two": {"base": "sha256:1"}}
    assert words({"one": ["base"], "two": ["base"]}, have) == {"base": Word(host="two", digest="sha256:1")}
