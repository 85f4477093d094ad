"""The table of extras is that of pyproject.toml."""

import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hotplate.base.extras import EXTRAS_BY_MODULE, extra_of_verb, install_command, install_hint
from tests.support.paths import ROOT

# The modules of distributions that have other names.
MODULES = {
    "azure-cosmos": ["azure"],
    "azure-identity": ["azure"],
    "azure-mgmt-cosmosdb": ["azure"],
    "azure-monitor-opentelemetry-exporter": ["azure", "azure.monitor"],
    "opentelemetry-exporter-otlp-proto-http": ["opentelemetry"],
    "opentelemetry-sdk": ["opentelemetry"],
    "pyjwt": ["jwt"],
    "redis-entraid": ["redis_entraid"],
}
# Modules that are imported, and installed by what an extra requires.
OF_REQUIREMENTS = {"cryptography", "hiredis", "py4j"}


def modules_of(distribution: str) -> list[str]:
    return MODULES.get(distribution, [distribution.replace("-", "_")])


def requirements_by_extra() -> dict[str, list[str]]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {
        extra: [name for text in requirements if (name := Requirement(text).name) != "hotplate"]
        for extra, requirements in extras.items()
    }


def test_table_has_the_modules_of_each_extra() -> None:
    extras_by_module = defaultdict[str, set[str]](set)
    for extra, distributions in requirements_by_extra().items():
        for distribution in distributions:
            for module in modules_of(distribution):
                extras_by_module[module].add(extra)
    extras_by_module["opentelemetry"].add("azure-monitor")  # which requires the extra telemetry
    table = {module: set(extras) for module, extras in EXTRAS_BY_MODULE.items() if module not in OF_REQUIREMENTS}
    assert table == extras_by_module
    assert EXTRAS_BY_MODULE.keys() >= OF_REQUIREMENTS


def test_modules_are_those_of_the_installed_distributions() -> None:
    distributions_by_module = {
        module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()
    }
    installed = set().union(*distributions_by_module.values())
    for distribution in chain.from_iterable(requirements_by_extra().values()):
        for module in modules_of(distribution):
            owners = distributions_by_module.get(module.partition(".")[0], set())
            assert distribution in owners or distribution not in installed, module


@pytest.mark.parametrize(
    ("module", "wanted", "extra"),
    [
        ("polars", "offline", "offline"),
        ("msgspec", "offline", "offline"),
        ("msgspec", "server", "server"),
        ("numpy", "bench", "bench"),
        ("numpy", "fold-in", "fold-in"),
        ("numpy", "server", "offline"),
        ("azure.cosmos", "cosmos", "cosmos"),
        ("azure.monitor.opentelemetry", "cosmos", "azure-monitor"),
        ("azure", "azure-monitor", "azure-monitor"),
        ("opentelemetry", "azure-monitor", "azure-monitor"),
        ("opentelemetry", "server", "telemetry"),
        ("redis.asyncio", "bench", "redis"),
    ],
)
def test_missing_module_is_named_with_an_extra_that_installs_it(module: str, wanted: str, extra: str) -> None:
    hint = install_hint(ModuleNotFoundError(name=module), wanted)
    assert hint == f"the module {module} is not installed; install it with: {install_command(extra)}"


@pytest.mark.parametrize("name", ["hotplate.stores.absent", "tomli", None])
def test_module_of_no_extra_has_no_hint(name: str | None) -> None:
    assert install_hint(ModuleNotFoundError(name=name), "server") is None


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [([], "server"), (["serve"], "server"), (["train", "x.csv"], "offline"), (["bench", "ru"], "bench")],
)
def test_extra_of_a_verb(arguments: list[str], extra: str) -> None:
    assert extra_of_verb(arguments) == extra
