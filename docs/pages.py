r"""Translates the Markdown files of the repository into pages of the site.

On GitHub their links lead to any file, and ``\(…\)`` is maths in gradx's notation. Sphinx wants
links from docs, and ``$…$``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DOCS = Path(__file__).parent

# Files above this folder, and the pages that include them.
INCLUDED = {
    "README.md": "start.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}

FENCED = re.compile(r"(^ *```.*?^ *``` *$)", re.MULTILINE | re.DOTALL)
CODE = r"`[^`\n]+`"
MATHS = re.compile(CODE + r"|\\\((.+?)\\\)", re.DOTALL)
LINKS = re.compile(r"(\[(?:`[^`]*`|[^\[\]`])*\])\(([^)#\s]+)(#[^)\s]*)?\)|" + CODE)


def for_site(text: str, folder: Path) -> str:
    """The text of a file in this folder, for the site. Code stays as it is."""

    def maths(match: re.Match[str]) -> str:
        return f"${match[1]}$" if match[1] else match[0]

    def link(match: re.Match[str]) -> str:
        shown, path, heading = match.groups()
        if not shown or re.match(r"[a-z]+:", path):
            return match[0]
        target = (folder / path).resolve()
        if target.is_dir():  # the site has no pages for folders
            return shown[1:-1]
        if target.parent == DOCS.parent and target.name in INCLUDED:
            target = DOCS / INCLUDED[target.name]
        return f"{shown}({os.path.relpath(target, DOCS)}{heading or ''})"

    parts = FENCED.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = LINKS.sub(link, MATHS.sub(maths, parts[i]))
    return "".join(parts)
