"""Copy a requirements file, and the files that it includes, out of a source tree; with what pip is to be told of them.

Usage: requirements_closure.py SOURCE REQUIREMENTS DESTINATION

Runs inside image builds, under the base image's own Python, with nothing installed.
"""

import re
import shutil
import sys
from pathlib import Path

INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]?\s*(\S+)")
HASH = re.compile(r"(?:^|\s)--hash[ =]")
LOCKS = {
    "uv.lock": "uv export --format requirements-txt --no-emit-project --output-file requirements.txt",
    "poetry.lock": "poetry export --format requirements.txt --output requirements.txt",
    "Pipfile.lock": "pipenv requirements --hash > requirements.txt",
    "pylock.toml": "uv pip compile pylock.toml --generate-hashes --output-file requirements.txt",
    "pyproject.toml": "uv pip compile pyproject.toml --generate-hashes --output-file requirements.txt",
}
WHERE = r"^\s*(?:(?:-e|--editable)[ =]?\s*)?(?:[^\s@/:]+\s*@\s*)?"
LOCAL = re.compile(WHERE + r"(?:\.\.?(?:\[[^\]]*\])?\s*(?:$|[;#])|file:|[^\s:@#;=-][^\s:@#;=]*/|/)")
# What pip does not find in a place that is not there, it takes from the public index without a word.
PLACE = re.compile(
    r"(?:^|\s)(-f|--find-links|-i|--index-url|--extra-index-url)(?:[ =]\s*|(?<=-[fi]))(?!https?://|\$\{)(?=[^\s=])"
)
REPOSITORY = re.compile(WHERE + r"(?:git|hg|svn|bzr)\+")


def text_of(path: Path, name: str) -> str:
    """Return what a file says, by whatever editor; end with a message where it is in no encoding that is known here."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        sys.exit(f"requirements: {name} is not in UTF-8. Save it in that, without a coding line")


def copy(source: Path, requirements: Path, destination: Path, included_by: str = "") -> None:
    """Copy one file and, first, what it includes; end with a message where something is missing."""
    if requirements.name in LOCKS:
        sys.exit(
            f"requirements: {requirements} is none of pip's own. Commit what this makes of it, and name that:"
            f" {LOCKS[requirements.name]}"
        )
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
    for number, line in enumerate(text_of(path, f"{requirements}{included_by}").splitlines(), start=1):
        if LOCAL.match(line):
            sys.exit(f"requirements: {requirements}:{number} installs from a local path: {line}")
        place = PLACE.search(re.sub(r"(?:^|\s)#.*", "", line)) if line.lstrip().startswith("-") else None
        if place:
            sys.exit(
                f"requirements: {requirements}:{number}: {place[1]} names no address (http://, https://)."
                " The step that installs sees nothing else, and would take the packages from the public index"
            )
        if REPOSITORY.match(line):
            sys.exit(
                f"requirements: {requirements}:{number} installs from a repository, which the step that installs has no"
                " program for. Name its archive (https://.../archive/COMMIT.tar.gz), or a package of an index"
            )
        include = INCLUDE.match(line)
        if include and "://" not in include[1]:
            copy(
                source,
                requirements.parent / include[1],
                destination,
                f" (included by {requirements}:{number})",
            )


if __name__ == "__main__":
    there = Path(sys.argv[3])
    copy(Path(sys.argv[1]), Path(sys.argv[2]), there)
    # One hash means that all are wanted: what has none is then refused.
    hashed = any(HASH.search(text_of(path, path.name)) for path in there.rglob("*") if path.is_file())
    (there / ".options").write_text("--require-hashes\n" if hashed else "")
