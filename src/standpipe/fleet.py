"""Which host of a fleet builds an image, and who gets it from whom, so that each is built once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypedDict


class Stock(TypedDict):
    """What a host says of its images: `kind` is what one image serves, `has` the ids of those that are there."""

    kind: str  # architecture, and how the engine stores images (that decides what an id is)
    wants: list[str]
    has: dict[str, str]


class Parcel(TypedDict):
    """Images that go from one host to others together."""

    images: list[str]
    source: str
    to: list[str]


class Plan(TypedDict):
    """What each host is to build, and what is handed over after that."""

    build: dict[str, list[str]]
    parcels: list[Parcel]


class Word(TypedDict):
    """By which digest all hosts have a base image: `host` knows it, or asks the registry where it is None."""

    host: str
    digest: str | None


def plan(hosts: dict[str, Stock], others: dict[str, Stock], builder: str = "") -> Plan:
    """Say who builds and who gets what from whom.

    `hosts` are those of this play, in its order; `others` are asked for images alone. The `builder` comes first where
    it is among the hosts that want an image; else the first that has it, or the first of all.
    A host whose image of that name has another id gets the one that the rest have.
    """
    build: dict[str, list[str]] = {}
    parcels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for kind, image in wanted(hosts):
        want = [host for host, stock in hosts.items() if stock["kind"] == kind and image in stock["wants"]]
        first = sorted(want, key=lambda host: host != builder)  # the rest keeps its order
        near = [host for host in [*first, *hosts] if has(hosts[host], kind, image)]
        far = [host for host, stock in others.items() if has(stock, kind, image)]
        source = next(iter([*near, *far, *first]))
        identity = (hosts | others)[source]["has"].get(image)
        if identity is None:
            build.setdefault(source, []).append(image)
        to = tuple(host for host in want if host != source and hosts[host]["has"].get(image, "") != identity)
        if to:
            parcels.setdefault((source, to), []).append(image)
    return Plan(
        build=build,
        parcels=[Parcel(images=images, source=source, to=list(to)) for (source, to), images in parcels.items()],
    )


def stock(answer: dict[str, Any], wants: list[str] | None = None, architecture: str = "") -> Stock:
    """Read a host's stock from what docker_host_info answers, which is nothing where there is no engine yet."""
    info = answer.get("host_info") or {}
    stores_otherwise = any("io.containerd.snapshotter" in str(value) for value in info.get("DriverStatus") or [])
    return Stock(
        kind=(info.get("Architecture") or architecture) + (" containerd" if stores_otherwise else ""),
        wants=list(wants or []),
        has={tag: image["Id"] for image in answer.get("images") or [] for tag in image["RepoTags"] or []},
    )


def digests(answer: dict[str, Any], names: list[str]) -> dict[str, str]:
    """Read by which digest a host has each base image from what docker_host_info answers; "" is without one."""
    found = {}
    for image in answer.get("images") or []:
        for name in set(image.get("RepoTags") or []).intersection(names):
            repository = name.rpartition(":")[0]
            pairs = [known.split("@") for known in image.get("RepoDigests") or []]
            found[name] = min((digest for at, digest in pairs if at == repository), default="")
    return found


def words(
    wants: dict[str, list[str]], have: dict[str, dict[str, str]], builder: str = "", anew: bool = False
) -> dict[str, Word]:
    """Say by which digest all hosts have each base image: one host's word, so that all build of the same.

    `wants` are the hosts of this play, in its order, with the base images that their pipelines want; `have` may know of
    others. With `anew` nobody's word counts, and one host asks the registry.
    """
    found = {}
    for name in dict.fromkeys(name for names in wants.values() for name in names):
        first = sorted((host for host in wants if name in wants[host]), key=lambda host: host != builder)
        knows = [host for host in dict.fromkeys([*first, *have]) if name in have.get(host, {})]
        knows.sort(key=lambda host: not have[host][name])  # one that was loaded by hand is nobody else's
        host = first[0] if anew else next(iter([*knows, *first]))
        found[name] = Word(host=host, digest=None if anew else have.get(host, {}).get(name))
    return found


def wanted(hosts: dict[str, Stock]) -> Iterator[tuple[str, str]]:
    """Yield each image that some host wants, with the kind of host, once and in the hosts' order."""
    yield from dict.fromkeys((stock["kind"], image) for stock in hosts.values() for image in stock["wants"])


def has(stock: Stock, kind: str, image: str) -> bool:
    """Say whether a host has an image that serves hosts of a kind."""
    return stock["kind"] == kind and image in stock["has"]


def differing(identities: dict[str, dict[str, str]], kinds: dict[str, str]) -> list[str]:
    """Tell of each image that is not the same on all hosts of a kind; `identities` are ids by image, by host."""
    seen: defaultdict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
    for host, images in identities.items():
        for image, identity in images.items():
            seen[kinds[host], image].setdefault(identity, []).append(host)
    return [
        f"{image}: " + "; ".join(f"{identity[:19]} on {', '.join(hosts)}" for identity, hosts in found.items())
        for (_, image), found in seen.items()
        if len(found) > 1
    ]
