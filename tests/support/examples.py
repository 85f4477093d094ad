"""The programs that a page shows, as they stand there."""

import re

from tests.support.paths import ROOT


def examples(page: str, heading: str = "", language: str = "python") -> list[str]:
    """Return the programs of a page, or of its part between a heading and the next one."""
    text = (ROOT / page).read_text()
    if heading:
        text = re.split(rf"^##+ {heading}$", text, maxsplit=1, flags=re.MULTILINE)[1]
        text = re.split(r"^##+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
