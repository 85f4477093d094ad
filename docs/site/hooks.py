"""Add README, CHANGELOG and CONTRIBUTING to the site as pages, the linked files outside of docs/, and llms.txt."""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]+)?\)")
# Pages outside of docs/, by their names on the site.
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
SOURCES = "source"
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
INDEX = "llms.txt"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages outside of docs/, and each file there that a page links to."""
    root = Path(config.config_file_path).parent
    for name, beside in PAGES.items():
        files.append(File.generated(config, name, content=(root / beside).read_text()))
    linked = {
        target
        for page in files.documentation_pages()
        for _, link, _ in LINK.findall(page.content_string)
        if (root / (target := _in_repository(page, link))).is_file() and _in_site(target).startswith(SOURCES)
    }
    for target in linked:
        files.append(File.generated(config, _in_site(target), abs_src_path=str(root / target)))
    return files


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """Add an index of all pages for language models, one line a page (https://llmstxt.org)."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    sections: dict[str, list[str]] = {}
    for page in nav.pages:
        title = page.parent.title if isinstance(page.parent, Section) else "The project"
        sections.setdefault(title, []).append(_line_of(page.file))
    for title, pages in sections.items():
        lines += ["", f"## {title}", "", *pages]
    files.append(File.generated(config, INDEX, content="\n".join(lines) + "\n"))
    return nav


def _line_of(page: File) -> str:
    text = page.content_string
    title = TITLE.search(text)
    headings = "; ".join(HEADING.findall(text))
    described = f": {headings}" if headings else ""
    return f"- [{title[1] if title else page.name}]({page.url}){described}"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to their targets on the site; a link to a folder becomes text."""
    del files
    root = Path(config.config_file_path).parent

    def rewritten(match: re.Match[str]) -> str:
        text, link, heading = match.groups(default="")
        target = _in_repository(page.file, link)
        return text if (root / target).is_dir() else f"[{text}]({_in_site(target)}{heading})"

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Make wide blocks of code scrollable by keyboard."""
    return html.replace("<pre><span></span><code>", '<pre tabindex="0"><span></span><code>')


def _in_repository(page: File, link: str) -> str:
    """Return a link's target, relative to the root of the repository."""
    folder = PurePosixPath(PAGES.get(page.src_uri, f"docs/{page.src_uri}")).parent
    return os.path.normpath(folder / link)


def _in_site(target: str) -> str:
    """Return a file's path on the site; all pages are at its root."""
    by_source = {beside: name for name, beside in PAGES.items()}
    below_docs = target.removeprefix("docs/")
    return by_source.get(target) or (f"{SOURCES}/{target}" if below_docs == target else below_docs)
