"""Names in docstrings and comments, and paths in CONTRIBUTING.md and pyproject.toml, exist."""

import ast
import collections.abc
import inspect
import pickle
import re
import tokenize
import tomllib
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hotplate
import hotplate.client
import hotplate.offline.errors
import hotplate.serve.errors
import hotplate.stores.errors
from tests.support.paths import ROOT

ROOMS = ("bench", "hotplate", "offline", "serve", "stores", "tools")
# Names of other programs, and of what code builds at run time.
VOCABULARY = {"py", "pyx", "ps", "column_1"}
SPAN = re.compile(r"`+([^`\n]+)`+")
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")
# Build results, in a separate folder or beside the sources.
BUILT = {"dist", "hotplate/serve/connections/lane.*.so"}


def modules() -> Iterator[Path]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if not any(ancestor.is_symlink() for ancestor in (path, *path.parents)):
                yield path


def names_and_prose(path: Path) -> tuple[set[str], list[str]]:
    """Return the names and words of a module's code, and its docstrings and comments."""
    names = {*path.relative_to(ROOT).with_suffix("").parts}
    prose = list[str]()
    begins = True
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and begins):
                prose.append(token.string)
            else:
                names.update(re.findall(r"\w+", token.string))
            if token.type not in {tokenize.COMMENT, tokenize.NL}:
                begins = token.type in {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return names, prose


def test_names_in_docstrings_and_comments_exist() -> None:
    by_path = {path: names_and_prose(path) for path in modules()}
    known = VOCABULARY.union(*(names for names, _ in by_path.values()))
    stale = [
        f"{path.relative_to(ROOT)}: {span}"
        for path, (_, prose) in by_path.items()
        for text in prose
        for span in SPAN.findall(text)
        if NAME.fullmatch(span) and not known.issuperset(span.removesuffix("()").rstrip(".").split("."))
    ]
    assert stale == []


def contributing_paths() -> Iterator[str]:
    """Yield the paths of the map of CONTRIBUTING.md: a row's folder, and what its text names there."""
    page = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things live")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*) \|$", page, re.MULTILINE):
        folders, _, text = row.partition(" | ")
        yield from re.findall(r"`([^`]+)`", folders)
        (first, *_) = re.findall(r"`([^`]+)`", folders)
        for name in re.findall(r"`([^`]+)`", text):
            yield name if (ROOT / name).exists() else first + name


def configured_paths() -> Iterator[str]:
    """Yield the paths and patterns of pyproject.toml, those in braces one by one."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    yield from tools["mypy"]["files"]
    yield tools["mypy"]["mypy_path"]
    yield from tools["hatch"]["build"]["only-include"]
    yield from tools["hatch"]["build"]["targets"]["wheel"]["exclude"]
    for pattern in tools["ruff"]["lint"]["per-file-ignores"]:
        before, brace, following = pattern.partition("{")
        names, _, after = following.partition("}")
        yield from (f"{before}{name}{after}" for name in (names.split(",") if brace else [""]))


def test_paths_in_contributing_and_configuration_exist() -> None:
    paths = [*contributing_paths(), *configured_paths()]
    assert len(paths) > 60
    missing = [path for path in paths if path not in BUILT and not any(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def test_public_names_match_their_typed_imports() -> None:
    module = ast.parse((ROOT / "hotplate/__init__.py").read_text())
    typed = {
        name.asname or name.name: f"{statement.module}:{name.name}"
        for statement in ast.walk(module)
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("hotplate.")
        for name in statement.names
    }
    del typed["install_hint"]  # of the error for a missing extra
    assert typed == hotplate._HOMES
    assert sorted([*typed, "__version__"]) == sorted(hotplate.__all__)


def public_callables() -> Iterator[tuple[str, Any]]:
    """Yield the public functions and classes, and the public methods of these, with their names."""
    for name in hotplate.__all__:
        public = getattr(hotplate, name)
        yield name, public
        if inspect.isclass(public):
            for method, function in inspect.getmembers(public, inspect.isroutine):
                if not method.startswith("_"):
                    yield f"{name}.{method}", function


def test_errors_that_public_docstrings_name_are_public() -> None:
    errors = {
        name
        for module in (hotplate.client, hotplate.offline.errors, hotplate.serve.errors, hotplate.stores.errors)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    named = {
        (name, word)
        for name, public in public_callables()
        for word in errors.intersection(re.findall(r"\w+", public.__doc__ or ""))
    }
    assert ("publish", "HeldBack") in named
    assert {(name, word) for name, word in named if word not in hotplate.__all__} == set()


def classes_in(annotation: Any) -> Iterator[type]:  # noqa: ANN401 -- any annotation
    """Yield the classes of the package in an annotation, such as A and B of dict[str, A | B], without protocols."""
    arguments = get_args(annotation)
    for argument in arguments:
        yield from classes_in(argument)
    is_ours = inspect.isclass(annotation) and annotation.__module__.startswith("hotplate.")
    if is_ours and not arguments and not getattr(annotation, "_is_protocol", False):
        yield annotation


def test_types_of_public_settings_are_public() -> None:
    public = {name: getattr(hotplate, name) for name in hotplate.__all__}
    found = {public[name] for name in public if name.endswith(("Settings", "Options", "Params")) or name == "Rules"}
    reached = set[type]()
    while found:
        settings = found.pop()
        reached.add(settings)
        hints = get_type_hints(settings, localns=vars(collections.abc) | public)
        found |= {each for hint in hints.values() for each in classes_in(hint)} - reached
    assert hotplate.Columns in reached
    assert {reached_class.__name__ for reached_class in reached} - public.keys() == set()


def test_public_errors_are_pickled_with_their_details() -> None:
    """A pool of processes that cannot load an error of a worker breaks, or waits forever."""
    for error, detail in (
        (hotplate.RequestRefused("no such list", 422), "status"),
        (hotplate.GateFailed("ndcg is 0.1", None), "result"),  # type: ignore[arg-type]  # any value
    ):
        loaded = pickle.loads(pickle.dumps(error))
        assert (type(loaded), str(loaded)) == (type(error), str(error))
        assert getattr(loaded, detail) == getattr(error, detail)


def test_every_error_of_stores_is_pickled_with_its_text_and_attributes() -> None:
    for path in (*ROOT.glob("stores/**/[!_]*.py"), ROOT / "serve/errors.py"):
        import_module(".".join(("hotplate", *path.relative_to(ROOT).with_suffix("").parts)))
    values: dict[str, Any] = {"message": "it failed", "where": "the store", "retry_after_s": 1.5, "kind": "forbidden"}
    values |= {"permanent": True, "record": b"x", "now": 1.0}
    kinds = list[type[hotplate.StoreError]]([hotplate.StoreError])
    for kind in kinds:  # grows
        kinds += [each for each in kind.__subclasses__() if each.__module__.startswith("hotplate.")]
        names = signature(kind.__init__).parameters.keys() - {"self", "args", "kwargs"}
        error = kind(**{name: values[name] for name in names}) if names else kind("it failed")
        loaded = pickle.loads(pickle.dumps(error))
        assert (type(loaded), str(loaded), vars(loaded)) == (kind, str(error), vars(error))
    assert {"CosmosDenied", "PartDenied", "RowsLost", "UnknownList"} <= {kind.__name__ for kind in kinds}


def test_page_of_tests_support_names_each_module() -> None:
    folder = ROOT / "tests/support"
    named = re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text())
    assert sorted(named) == sorted(path.name for path in folder.glob("*.py"))


def test_test_files_are_named_after_a_module_or_listed_with_their_behaviour() -> None:
    names: dict[str, set[str]] = {}
    for path in (*modules(), *ROOT.glob("serve/**/*.pyx")):
        room, *folders, _ = path.relative_to(ROOT).parts
        names.setdefault(folders[0] if room == "hotplate" and folders else room, set()).update(folders, {path.stem})
    tests = ROOT / "tests"
    files = {path.relative_to(tests) for path in tests.rglob("test_*.py") if "third_party" not in path.parts}
    behaviours = set[str]()
    for path in files:
        room = path.parts[0] if len(path.parts) > 1 else "hotplate"
        if path.stem.removeprefix("test_") not in names.get(room, set()):
            behaviours.add(str(path))
    rows = [line for line in (tests / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)} == behaviours
