"""Draws the pictures of the gallery."""

from pathlib import Path


def write(folder: Path) -> None:
    (folder / "gallery").mkdir(exist_ok=True)
    (folder / "gallery" / "index.md").write_text("# Gallery\n\nSoon.\n")
