"""What is in an image, as a CycloneDX document: the packages of its Debian and of its Python, each with its version.

The image itself is asked, in a container that can do nothing else.
Source of the format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from standpipe.errors import ConfigurationError

ASKED_WITHIN = 120  # seconds
ALONE = ("--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=65534:65534")

# Runs in the image, under its own Python, with nothing but the standard library.
LIST = """
import importlib.metadata, json, pathlib, platform
def field(text, name):
    return next((line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(name + ": ")), None)
status = pathlib.Path("/var/lib/dpkg/status")
stanzas = status.read_text(errors="replace").split("\\n\\n") if status.exists() else []
debian = [
    {key: field(stanza, key) for key in ("Package", "Version", "Architecture", "Source")}
    for stanza in stanzas if (field(stanza, "Status") or "").endswith(" installed")
]
python = []
for found in importlib.metadata.distributions():
    about = found.metadata
    python.append({"name": about["Name"], "version": found.version,
                   "license": about.get("License-Expression"), "summary": about.get("Summary")})
release = pathlib.Path("/etc/os-release").read_text()
system = {key: value.strip('"') for key, value in (line.split("=", 1) for line in release.splitlines() if "=" in line)}
print(json.dumps({"debian": debian, "python": python, "system": system, "interpreter": platform.python_version()}))
"""


def listed(image: str) -> dict[str, Any]:
    """Ask an image what is in it."""
    command = ["docker", "run", *ALONE, "--entrypoint", "python", image, "-I", "-c", LIST]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=ASKED_WITHIN, check=False)
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigurationError(f"{image} does not say what is in it: {said}")
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def document(image: dict[str, Any], name: str, found: dict[str, Any]) -> str:
    """Make the document; `image` is what Docker says of it. The same image has the same document."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    bom = Bom(serial_number=uuid5(NAMESPACE_URL, image["Id"]))
    bom.metadata.timestamp = datetime.fromisoformat(image["Created"])
    labels = (image.get("Config") or {}).get("Labels") or {}
    bom.metadata.component = Component(
        name=name.partition(":")[0],
        version=labels.get("org.opencontainers.image.revision") or name.partition(":")[2] or None,
        type=ComponentType.CONTAINER,
        bom_ref=image["Id"],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=image["Id"].removeprefix("sha256:"))],
        properties=[Property(name=key, value=value) for key, value in sorted(labels.items()) if value],
    )
    system = found["system"]
    distribution = f"{system.get('ID', 'linux')}-{system.get('VERSION_ID', '')}".rstrip("-")
    for package in found["debian"]:
        qualifiers = {"arch": package["Architecture"], "distro": distribution}
        if package["Source"]:
            qualifiers["upstream"] = package["Source"].split()[0]
        purl = PackageURL("deb", system.get("ID", "debian"), package["Package"], package["Version"], qualifiers)
        bom.components.add(_library(Component, purl))
    for package in found["python"]:
        purl = PackageURL("pypi", None, package["name"], package["version"])
        licenses = [LicenseExpression(package["license"])] if package["license"] else []
        bom.components.add(_library(Component, purl, licenses=licenses, description=package["summary"]))
    bom.components.add(_library(Component, PackageURL("generic", None, "python", found["interpreter"])))
    return str(JsonV1Dot6(bom).output_as_string(indent=1))


def _library(component: Any, purl: Any, **more: Any) -> Any:
    return component(name=purl.name, version=purl.version, purl=purl, bom_ref=purl.to_string(), **more)
