"""Lines of the log: their format, and logging set-up."""

import logging
import sys
import time

import orjson


def timestamp(time_s: float) -> str:
    """Format a Unix time for a log line: UTC, to the millisecond."""
    whole_s, ms = divmod(int(time_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{ms:03}Z"


def printable(text: str) -> str:
    """Return *text* as UTF-8 can encode it: aiohttp makes surrogates of other bytes in paths and headers."""
    return text.encode(errors="backslashreplace").decode()


class JsonLines(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as a line of JSON, with the traceback of an exception as `error`."""
        fields: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            fields["error"] = printable(self.formatException(record.exc_info))
        return orjson.dumps(fields, default=str).decode()


def configure_logging() -> None:
    """Log to standard error: readable lines on a terminal, otherwise JSON lines."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(plain if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
