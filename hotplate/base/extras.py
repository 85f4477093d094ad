"""The extras of hotplate, as in `pip install 'hotplate[redis]'`, by the modules that they install."""

from collections.abc import Sequence

# The extras that install each module of another package: the first is named where no other is wanted. All extras
# install those of `server`.
EXTRAS_BY_MODULE = {
    "aiohttp": ("server",),
    "azure": ("cosmos", "azure-monitor"),
    "azure.monitor": ("azure-monitor",),
    "click": ("server",),
    "cryptography": ("cosmos", "oidc"),
    "fsspec": ("events", "offline"),
    "hiredis": ("redis",),
    "httptools": ("cosmos", "bench"),
    "implicit": ("offline",),
    "jwt": ("oidc",),
    "lmdb": ("server",),
    "matplotlib": ("bench",),
    "mlflow": ("mlflow",),
    "mmh3": ("bench",),
    "msgspec": ("server",),
    "numpy": ("offline", "fold-in", "bench"),
    "openapi_ui_bundles": ("server",),
    "opentelemetry": ("telemetry", "azure-monitor"),
    "orjson": ("server",),
    "polars": ("offline",),
    "prometheus_client": ("server",),
    "py4j": ("spark",),
    "pyarrow": ("arrow", "spark"),
    "pyspark": ("spark",),
    "redis": ("redis",),
    "redis_entraid": ("redis-entra",),
    "rich": ("server",),
    "scipy": ("offline", "bench"),
    "threadpoolctl": ("offline",),
    "uvloop": ("server",),
    "xxhash": ("server",),
    "zstandard": ("server",),
}
# What a verb of the command needs, if not `server`.
_EXTRAS_BY_VERB = {
    **dict.fromkeys(("demo", "train", "publish", "run", "import", "evaluate"), "offline"),
    "bench": "bench",
    "cosmos-emulator": "bench",
}


def extra_of_verb(arguments: Sequence[str]) -> str:
    """Return the extra that the command needs for its *arguments*, which begin with the verb."""
    return _EXTRAS_BY_VERB.get(arguments[0], "server") if arguments else "server"


def install_hint(error: ModuleNotFoundError, wanted: str) -> str | None:
    """Return a sentence that says which extra installs a missing module; None if none does.

    It is the extra *wanted* for what is done, unless that does not install the module.
    """
    name = error.name or ""
    words = name.split(".")
    extras = EXTRAS_BY_MODULE.get(".".join(words[:2]), EXTRAS_BY_MODULE.get(words[0]))
    if extras is None:
        return None
    extra = wanted if wanted in extras or extras == ("server",) else extras[0]
    return f"the module {name} is not installed; install it with: {install_command(extra)}"


def install_command(extra: str) -> str:
    """Return the command that installs *extra*; pip adds it to the installed hotplate, wherever that came from."""
    return f"pip install 'hotplate[{extra}]'"
