"""A page of benchmarks, of which each writes a section and leaves the others as they are; and logs to go on from."""

from __future__ import annotations

import os
from pathlib import Path


def whole_lines(log: Path) -> list[str]:
    """The lines of a log that is gone on with; the end of an interrupted one is cut off."""
    data = log.read_bytes()
    end = data.rfind(b"\n") + 1
    os.truncate(log, end)
    return data[:end].decode().splitlines()


def write_section(page: Path, title: str, text: str) -> None:
    """Replace the section `## title` of a Markdown page, or add it at the end."""
    whole = page.read_text() if page.exists() else "# Benchmarks\n"
    head, *sections = whole.split("\n## ")
    fresh = f"{title}\n\n{text.strip()}\n"
    kept = [fresh if section.partition("\n")[0] == title else section for section in sections]
    if fresh not in kept:
        kept.append(fresh)
    page.write_text("\n## ".join([head, *kept]))
