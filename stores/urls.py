"""What of a store's URL may be shown."""

from urllib.parse import urlsplit


def redacted(url: str) -> str:
    """Return *url* without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else url
