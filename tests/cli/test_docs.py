"""Every command that README, docs and help show: its verb, its options and their values exist as written there."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hotplate.cli.main import command, with_default_verb
from tests.support.command import hotplate
from tests.support.examples import PAGES, blocks, spans
from tests.support.paths import ROOT
from tests.support.variables import option_variables

SHOWN = ["CONTRIBUTING.md", *PAGES]
VERBS = command()
# Options of other tools that the docs name.
FOREIGN = {"--capabilities", "--enable-threads", "--scope"}
# Variables without an option: secrets of stores, each also as `…_FILE`, and those of building and testing.
SECRETS = {"HOTPLATE_REDIS_PASSWORD", "HOTPLATE_REDIS_SENTINEL_PASSWORD", "HOTPLATE_COSMOS_KEY"}
OF_TESTS = {"HOTPLATE_EXTENSION", "HOTPLATE_REDIS_SERVER", "HOTPLATE_REQUIRE"}
# What may stand before a command: variables of its environment, and the core that it runs on.
BEFORE = re.compile(r"^(?:\w+=\S+ |taskset -c \d+ )*")
# What may stand behind one: the file that it prints to, and that it is not waited for.
BEHIND = re.compile(r" >\S+| &$")


def lines(page: str) -> Iterator[str]:
    """Yield the lines of a page's code blocks, with the lines that continue them."""
    for block in blocks(page):
        yield from map(str.strip, block.text.replace("\\\n", " ").splitlines())


def commands(lines: Iterator[str]) -> list[list[str]]:
    """Return those that run something of ours, as words."""
    bare = (BEHIND.sub("", BEFORE.sub("", line)) for line in lines)
    return [shlex.split(line, comments=True) for line in bare if re.match(r"(hotplate|make|python -m) [a-z]", line)]


def check(words: list[str], *, complete: bool) -> None:
    """Parse a command as its program would; unless *complete*, arguments may be missing."""
    match words:
        case ["hotplate", *arguments]:
            parse_verb(VERBS, with_default_verb(arguments), complete=complete)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["make", verb, *_]:
            assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no make {verb}"


def parse_verb(command: click.Command, words: list[str], *, complete: bool) -> None:
    while isinstance(command, click.Group) and words:
        name, *words = words
        assert name in command.commands, f"no verb {name}"
        command = command.commands[name]
    if isinstance(command, click.Group) and not complete:
        return  # the name of a group of verbs
    try:
        command.make_context("hotplate", words)
    except click.ClickException as error:
        if complete or not re.match(r"Missing parameter|Option '--\S+' requires an argument", str(error)):
            raise AssertionError(f"{error} (after {words})") from error


def options(command: click.Command) -> set[str]:
    """Return the names of all options of a command and of those below it."""
    named = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return named.union(*(options(subcommand) for subcommand in below))


@pytest.mark.parametrize("page", SHOWN)
def test_every_command_of_the_docs_parses(page: str) -> None:
    for words in commands(lines(page)):
        check(words, complete=True)
    for words in commands(spans(page)):
        check(words, complete=False)


def test_commands_in_messages_and_comments_of_the_product_parse() -> None:
    """Those in code stand between backticks, with fields for values; those of k8s/ after a # and blanks."""
    shown = []
    for folder in ("bench", "hotplate", "offline", "serve", "stores"):
        for path in (ROOT / folder).rglob("*.py"):
            shown += [(path, span) for span in re.findall(r"`(hotplate [a-z][^`\n]*)`", path.read_text())]
    for path in (ROOT / "k8s").rglob("*"):
        if path.is_file() and path.suffix not in {".json", ".svg"}:
            lines = re.findall(
                r"^# {3,}(?:hotplate|docker compose run .*? offline) (.*)", path.read_text(), re.MULTILINE
            )
            shown += [(path, f"hotplate {BEHIND.sub('', line)}") for line in lines]
    assert shown
    wrong = []
    for path, text in shown:
        try:
            words = shlex.split(re.sub(r"\{[^}]*\}", "1", text))
            check([word for word in words if word != "--help"], complete=False)
        except (AssertionError, ValueError) as error:
            wrong.append(f"{path}: {text}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", SHOWN)
def test_every_option_that_the_docs_name_exists(page: str) -> None:
    known = options(VERBS) | FOREIGN | {"--help", "--only", "--short", "--stall"}
    named = {re.split(r"[ =/]", word)[0] for span in spans(page) if span.startswith("--") for word in span.split(" --")}
    assert {name if name.startswith("--") else f"--{name}" for name in named} <= known


def verbs(command: click.Command, *words: str) -> Iterator[tuple[click.Command, list[str]]]:
    """Yield a command and those below it, each with the words that it is called by."""
    yield command, list(words)
    if isinstance(command, click.Group):
        for name, subcommand in command.commands.items():
            yield from verbs(subcommand, *words, name)


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words) or "hotplate") for _, words in verbs(VERBS)])
def test_help_names_values_by_nouns_and_its_examples_parse(words: list[str]) -> None:
    shown = hotplate(*words, "--help", COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"<[a-zA-Z\[\]]+>|\bTEXT\b", shown)  # types of Python

    examples = re.findall(r"(?:(?<!Usage): |^ {4})(hotplate .+)", shown.replace("\\\n", " "), re.MULTILINE)
    assert examples
    for example in examples:
        check(shlex.split(example), complete=True)

    defaults = re.findall(r" TIME  .*?(?:\[default: (.*?)\]|\n  -|\n\n)", shown, re.DOTALL)
    assert all(re.fullmatch(r"([\d.]+(ms|s|m|h|d))?", default) for default in defaults)


@pytest.mark.parametrize("page", SHOWN)
def test_every_variable_that_the_docs_name_exists(page: str) -> None:
    named = {name.removesuffix("_FILE") for name in re.findall(r"HOTPLATE_[A-Z_]*[A-Z]", (ROOT / page).read_text())}
    known = {name.removesuffix("_FILE") for name in option_variables()}
    assert named <= known | SECRETS | OF_TESTS


@pytest.mark.parametrize("page", SHOWN)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    here = ROOT / page
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", here.read_text()):
        path, _, heading = link.partition("#")
        target = here.parent / path if path else here
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: Path) -> set[str]:
    """Return the headings of a page as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
