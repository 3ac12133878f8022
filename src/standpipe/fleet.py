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
