"""The programs that a page shows, as they stand there."""

import re

from tests.support.paths import ROOT


def examples(page: str, heading: str = "") -> list[str]:
    """Return the Python programs of a page, or of its part below a heading."""
    text = (ROOT / page).read_text()
    if heading:
        text = re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
