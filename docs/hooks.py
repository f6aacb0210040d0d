"""Pages of the site that are made of other files: the README, CONTRIBUTING, the changelog, and the API reference."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the repository to page of the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    config.nav.append({"Reference": [f"reference/{name}.md" for name in modules()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages before mkdocs looks for links between them."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for name, target in PAGES.items():
            text = text.replace(f"]({name})", f"]({target})")
        files.append(File.generated(config, page, content=text))
    for name in modules():
        text = f"# psd_gs.{name}\n\n::: psd_gs.{name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the roles of docstrings (``:func:``) away, which Markdown does not know."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)


def modules() -> list[str]:
    """Modules and packages below ``psd_gs``, each of which gets a page."""
    folder = ROOT / "src" / "psd_gs"
    found = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return sorted(path.stem for path in found if not path.stem.startswith("_"))
