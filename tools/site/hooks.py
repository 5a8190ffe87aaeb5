"""Hooks of MkDocs: pages that are generated from the code, and links that leave the folder of the documents."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site.reference import api_page, cli_page, configuration_page

ROOT = Path(__file__).resolve().parents[2]
_OUTSIDE = re.compile(r"\]\((?:\.\./)+((?!adr/)[\w./-]+?)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that exist in no file of docs/."""
    home = _without_outside_links((ROOT / "README.md").read_text(encoding="utf-8"), config, "")
    own_task = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    pages = {
        "index.md": home,
        "own-task.md": _without_outside_links(own_task, config, "examples/"),
        "reference/cli.md": cli_page(),
        "reference/configuration.md": configuration_page(),
        "reference/api.md": api_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at the repository."""
    del page, files
    return _OUTSIDE.sub(lambda link: f"]({config.repo_url}/blob/main/{link[1]}{link[2] or ''})", markdown)


def _without_outside_links(markdown: str, config: MkDocsConfig, folder: str) -> str:
    """Rewrite the links of a document that stands outside docs/: those into docs/ become relative to it."""

    def link(found: re.Match[str]) -> str:
        target = found[1]
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')})"
        if target == "examples/README.md":
            return "](own-task.md)"
        return f"]({config.repo_url}/blob/main/{folder}{target})"

    return re.sub(r"\]\((?!https?:|#|\.\./)([^)\s]+)\)", link, markdown)
