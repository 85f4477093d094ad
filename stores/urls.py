"""URLs of stores: redaction, query parameters and secrets."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qs, urlsplit

from hotplate.stores.errors import StoreMisused

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# A URL, also one chained as simplecache::az://…, or shortened to one slash by pathlib.
_LIKE_A_URL = re.compile(r"((?:[A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)

# A query may hold secrets, and a ? before an @ may be the password's.
END = re.compile(r"[?#]")
END_BEHIND_AT = re.compile(r"[?#&=;]")

# A path in the parameter `ca`, which may hold an @, because it follows hosts that cannot be part of a password.
_HOST = r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?"
_LIST = re.compile(
    rf"(?P<start>{SCHEME.pattern}(?:[^/?#@\[\]]*@)?)(?P<hosts>{_HOST}(?:,{_HOST})+)(?P<rest>[\t\r\n]*(?:[/?#].*)?)",
    re.DOTALL,
)
_CA = re.compile(rf"({SCHEME.pattern}(?:[^/?#@]*@)?{_HOST}(?:,{_HOST})*(?:/[^?#@]*)?\?(?:[^#@]*&)?ca=)([./][^#&]*)")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def default_url() -> str:
    """Return the URL of the store in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"file://{Path(data).absolute() / 'hotplate'}"


def require_url(url: object) -> None:
    """Raise StoreMisused for a path, None, and what else is not a text; not shown, as it may hold a password."""
    if not isinstance(url, str):
        kind = type(url).__name__
        raise StoreMisused(f"the URL of a store is a string, such as file:///var/lib/hotplate, not of the type {kind}")


def scheme_of(url: str) -> str:
    """Return the scheme in lower case, or an empty string."""
    match = SCHEME.match(url)
    return match[1].lower() if match else ""


def url_of(path: Path | str) -> str | None:
    """Return *path* as a URL, None for a local path; a Path has lost slashes. Paths of file:// are absolute."""
    parts = _LIKE_A_URL.fullmatch(str(path))
    if parts is None:
        return None
    scheme = parts[1].lower()
    root = "/" if scheme.endswith("file") else ""
    return f"{scheme}://{root}{parts[2]}"


def local_path(path: Path | str) -> Path:
    """Return a path of this machine; ValueError for a URL, which would become a folder such as `./az:`."""
    url = url_of(path)
    if url is not None:
        raise ValueError(
            f"{redacted(url)} is a URL, but this has to be a path on this machine; copy the files with the tools of "
            "that storage, or mount it"
        )
    return Path(path)


def redacted(url: str) -> str:
    """Return *url* without credentials, even unescaped ones, and without query and fragment.

    With an @, only the part behind the last one is shown, up to the first character that may begin a parameter.
    """
    url = _escaped(url)
    scheme = scheme_of(url)
    start = f"{scheme}://" if scheme else ""
    _, at, shown = url[len(start) :].rpartition("@")
    return start + (END_BEHIND_AT if at else END).split(shown, maxsplit=1)[0]


def without_password(url: str) -> str:
    """Return *url* without its password; StoreMisused as `split`."""
    parts = split(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    return parts._replace(netloc=f"{user}{at}{hosts}").geturl()


def split(url: str) -> SplitResult:
    """Split a URL; StoreMisused if a password or parameter is not percent-encoded."""
    try:
        parts = _split_url(_escaped(url))
    except ValueError:  # its message quotes the URL
        parts = None
    if parts is None or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise StoreMisused(
            f"the URL that ends in {redacted(url)} cannot be understood: write / ? # [ ] @ and % in a user, a password "
            f"or a parameter as %2F %3F %23 %5B %5D %40 and %25"
        )
    return parts


def _split_url(url: str) -> SplitResult:
    """Split a URL, which may list several hosts with commas, as those of clusters do; raises ValueError."""
    match = _LIST.fullmatch(url)
    if match is None:
        return urlsplit(url)
    # Later versions of Python refuse brackets of an IPv6 address among other hosts.
    parts = urlsplit(f"{match['start']}host{match['rest']}")
    return parts._replace(netloc=parts.netloc.removesuffix("host") + match["hosts"])


def _escaped(url: str) -> str:
    """Return *url* with an @ in the path of `ca` percent-encoded."""
    return _CA.sub(lambda match: match[1] + match[3].replace("@", "%40"), url)


Options = Mapping[str, tuple[str, str]]
"""The pattern of each query parameter of a URL, and the advice for other values."""


def parameters(parts: SplitResult, known: Options, shown: str) -> dict[str, str]:
    """Return the query parameters; StoreMisused for an unknown, repeated or invalid one."""
    options = parse_qs(parts.query, keep_blank_values=True)
    for name, values in options.items():
        if name not in known:
            raise StoreMisused(
                f"{shown} takes no parameter {name!r}; {parts.scheme}:// takes {', '.join(sorted(known))}"
            )
        if len(values) > 1:
            raise StoreMisused(f"{shown} has the parameter {name!r} twice")
        pattern, advice = known[name]
        if not re.fullmatch(pattern, values[0]):
            raise StoreMisused(f"{name}={values[0][:90]} of {shown} is not valid; write {advice}")
    return {name: values[0] for name, values in options.items()}


CA = (r".+", "the path of a file with certificates")


def certificate(options: Mapping[str, str], shown: str) -> str | None:
    """Return the parameter `ca`, None without one; StoreMisused if the file does not exist."""
    ca = options.get("ca")
    if ca is not None and not Path(ca).is_file():
        raise StoreMisused(f"the file {ca}, which should certify {shown}, does not exist")
    return ca


def secret(name: str, environment: Mapping[str, str]) -> str | None:
    """Return the variable *name*, or the content of the file in *name*_FILE; None if neither is set.

    Raises StoreMisused for a file that is empty, or cannot be read as UTF-8.
    """
    if value := environment.get(name):
        return value
    file = secret_file(name, environment)
    return None if file is None else file.read()


class SecretFile(NamedTuple):
    """The file of a secret, and the variable that names it."""

    variable: str
    path: str

    def read(self) -> str:
        """Return the secret; StoreMisused if the file is empty, or cannot be read as UTF-8."""
        try:
            content = Path(self.path).read_text(encoding="utf-8-sig").rstrip("\r\n")
        except OSError as error:
            raise StoreMisused(f"{self.variable} names {self.path}, which cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:  # its message and traceback could show the secret
            raise StoreMisused(f"{self.variable} names {self.path}, which is not text in UTF-8") from None
        if not content.strip():
            raise StoreMisused(f"{self.variable} names {self.path}, which is empty; write the secret into it")
        return content


def secret_file(name: str, environment: Mapping[str, str]) -> SecretFile | None:
    """Return the file in *name*_FILE; None without one, or if the variable *name* has the secret itself."""
    variable = f"{name}_FILE"
    path = environment.get(variable)
    return SecretFile(variable, path) if path and not environment.get(name) else None
