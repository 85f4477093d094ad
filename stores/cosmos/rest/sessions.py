"""What this process has written, so that its own reads can ask to see it: session tokens by container and range."""


class Sessions:
    """Lives as long as its driver; tokens look like `RANGE:VERSION#LSN`, with more where there are several regions."""

    def __init__(self) -> None:
        self._seen = dict[str, dict[bytes, bytes]]()

    def note(self, container: str, token: bytes | None) -> None:
        """Take the token of a write's answer; of one range the furthest counts, as answers overtake each other."""
        if token is None:
            return
        seen = self._seen.setdefault(container, {})
        for part in token.split(b","):
            of_range, _, progress = part.partition(b":")
            if of_range not in seen or _order(progress) >= _order(seen[of_range]):
                seen[of_range] = progress

    def token(self, container: str) -> bytes:
        """Return what to send along; empty where nothing was written."""
        return b",".join(b"%b:%b" % one for one in self._seen.get(container, {}).items())

    def forget(self, container: str) -> None:
        """Forget a container that is gone: another of its name counts anew."""
        self._seen.pop(container, None)


def _order(progress: bytes) -> tuple[int, int]:
    version, _, lsn = progress.partition(b"#")
    lsn = lsn.partition(b"#")[0]
    try:
        return int(version), int(lsn or b"0")
    except ValueError:
        return -1, 0
