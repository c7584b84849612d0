"""Copies the pages into the build folder, where the generated ones join them.

The sources link to files of the repository as a reader of the repository finds them. Here links to `CHANGELOG.md`,
`CONTRIBUTING.md` and others become links to the pages made of them, and those to other files show the path only.
"""

import re
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
}
"""The files outside docs/ that become pages, and the names of the pages."""
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def stage(folder: Path) -> None:
    """Copies everything that the site is made of into an empty folder."""
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("_site", "__pycache__"))
    for source, page in PAGES.items():
        if (ROOT / source).exists():
            shutil.copy(ROOT / source, folder / page)
    for page in folder.rglob("*.md"):
        place = page.relative_to(folder)
        origin = next((ROOT / source for source, name in PAGES.items() if name == str(place)), DOCS / place)
        page.write_text(relinked(page.read_text(), origin, place))


def relinked(text: str, origin: Path, place: Path) -> str:
    """Returns a page's text with links as they are in the built site.

    Args:
        text: the page.
        origin: the file that it was written in, in the repository.
        place: the file in the site, from its root on.

    >>> relinked("[x](../CHANGELOG.md#a), [adam](../functional_opt/optimizers/adam.py)", DOCS / "x.md", Path("x.md"))
    '[x](changelog.md#a), adam (`functional_opt/optimizers/adam.py`)'
    """

    def link(match: re.Match) -> str:
        words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        file = (origin.parent / path).resolve()
        if not path or ":" in path or not file.is_relative_to(ROOT) or not file.exists():
            return match[0]
        inside = str(file.relative_to(ROOT))
        if file.is_relative_to(DOCS):
            page = file.relative_to(DOCS)
        elif inside in PAGES:
            page = Path(PAGES[inside])
        else:
            return words if words.strip("`") == inside else f"{words} (`{inside}`)"
        up = "../" * (len(place.parts) - 1)
        return f"[{words}]({up}{page}{hash_}{anchor})"

    return LINK.sub(link, text)
