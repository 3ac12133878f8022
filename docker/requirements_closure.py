"""Copy a requirements file, and the files that it includes, out of a source tree.

Usage: requirements_closure.py SOURCE REQUIREMENTS DESTINATION

Runs inside image builds, under the base image's own Python, with nothing installed.
"""

import re
import shutil
import sys
from pathlib import Path

INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]?\s*(\S+)")
LOCAL = re.compile(r"^\s*(?:(?:-e|--editable)[ =]?\s*)?(?:\.{0,2}/|\.\s*$|file:)")


def copy(source: Path, requirements: Path, destination: Path, included_by: str = "") -> None:
    """Copy one file and, first, what it includes; end with a message where something is missing."""
    path = (source / requirements).resolve()
    if not path.is_relative_to(source.resolve()):
        sys.exit(f"requirements: {requirements}{included_by} lies outside the pipeline's source")
    if not path.is_file():
        found = sorted(str(p.relative_to(source)) for p in source.rglob("*requirements*.txt"))
        sys.exit(
            f"requirements: the source has no file {requirements}{included_by}."
            f" It has: {', '.join(found) or 'no requirements file at all'}"
        )
    target = destination / requirements
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if LOCAL.match(line):
            sys.exit(f"requirements: {requirements}:{number} installs from a local path: {line}")
        include = INCLUDE.match(line)
        if include and "://" not in include[1]:
            copy(
                source,
                requirements.parent / include[1],
                destination,
                f" (included by {requirements}:{number})",
            )


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
