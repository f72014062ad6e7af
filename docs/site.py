"""Complete the pages of the documentation site when mkdocs builds it.

- `<!-- help: COMMAND -->` becomes what `sid-lsg COMMAND --help` prints.
- A link to a file of the repository that is not on the site leads to the file on GitHub, if
  REPOSITORY_URL names the repository there; else its text stands alone. An image from outside docs/
  is copied into the site.

Pages are thus readable in the repository too, with links that lead somewhere.
"""

import os
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parent.parent
HELP = re.compile(r"^<!-- help: ([\w-]+) -->$", re.M)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
SHOWN = {".md", ".png"}  # what of docs/ is on the site
WIDTH = "100"


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Return the Markdown of a page as the site shows it."""
    markdown = HELP.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)
    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def leading(found: re.Match[str]) -> str:
        image, text, link, anchor = found[1], found[2], found[3], found[4] or ""
        target = Path(os.path.normpath(folder / link))
        shown = target.is_relative_to(config.docs_dir) and target.suffix in SHOWN
        if shown or not target.exists():
            return found[0]
        place = target.relative_to(REPOSITORY).as_posix()
        if not image and not config.repo_url:
            return text
        if not image:
            kind = "tree" if target.is_dir() else "blob"
            return f"[{text}]({config.repo_url}/{kind}/main/{place}{anchor})"
        if files.get_file_from_path(f"repository/{place}") is None:
            copied = f"repository/{place}"
            files.append(File.generated(config, copied, abs_src_path=str(target)))
        ups = "../" * page.file.src_uri.count("/")
        return f"![{text}]({ups}repository/{place})"

    return LINK.sub(leading, markdown)


@cache
def help_of(command: str) -> str:
    """Return what `sid-lsg COMMAND --help` prints."""
    os.environ["COLUMNS"] = WIDTH
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    from sid_lsg.cli import main

    printed = StringIO()
    try:
        with redirect_stdout(printed):
            main([command, "--help"])
    except SystemExit as end:
        if end.code:
            raise
    return printed.getvalue()
