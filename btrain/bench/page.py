"""A page of benchmarks: each writes a section of its own and leaves the others as they are."""

from __future__ import annotations

from pathlib import Path


def write_section(page: Path, title: str, text: str) -> None:
    """Replace the section `## title` of a Markdown page, or add it at the end."""
    whole = page.read_text() if page.exists() else "# Benchmarks\n"
    head, *sections = whole.split("\n## ")
    fresh = f"{title}\n\n{text.strip()}\n"
    kept = [fresh if section.partition("\n")[0] == title else section for section in sections]
    if fresh not in kept:
        kept.append(fresh)
    page.write_text("\n## ".join([head, *kept]))
