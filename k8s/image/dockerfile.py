"""A Dockerfile as its stages and their instructions: as much of the language as k8s/Dockerfile speaks, and no more."""

import json
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Each instruction, and the options that it may have here.
INSTRUCTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(["FROM", "RUN", "LABEL", "ENV", "ARG", "WORKDIR", "USER"], frozenset()),
    **dict.fromkeys(["STOPSIGNAL", "ENTRYPOINT", "CMD", "EXPOSE"], frozenset()),
    "COPY": frozenset({"from"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "retries"}),
}


class DockerfileError(ValueError):
    """What the file says makes no sense, or is not understood here; the sentence names the line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined; *value* is what follows its options."""

    name: str
    options: Mapping[str, str]
    value: str
    line: int

    def error(self, sentence: str) -> DockerfileError:
        """Make the error that names this instruction."""
        return DockerfileError(f"line {self.line}, {self.name}: {sentence}")

    def after(self, word: str) -> "Instruction":
        """Return what follows *word*, with which the value has to begin."""
        if not self.value.startswith(f"{word} "):
            raise self.error(f"{word} is missing")
        return replace(self, value=self.value.removeprefix(f"{word} "))

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """Split the value as a shell would, and put variables in."""
        return [self.expanded(word, variables) for word in shlex.split(self.value)]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Read NAME=VALUE pairs."""
        pairs = [word.partition("=") for word in self.words(variables)]
        if any(not equals for _, equals, _ in pairs):
            raise self.error("takes NAME=VALUE")
        return {name: value for name, _, value in pairs}

    def expanded(self, text: str, variables: Mapping[str, str]) -> str:
        """Put variables in for `$NAME` and `${NAME}`."""
        try:
            return string.Template(text).substitute(variables)
        except (KeyError, ValueError) as error:
            raise self.error(f"no variable {error}") from None

    def command(self) -> list[str]:
        """Read a command: a JSON array, or else a line for the shell."""
        if not self.value.startswith("["):
            return ["/bin/sh", "-c", self.value]
        try:
            words: list[str] = json.loads(self.value)
        except ValueError as error:
            raise self.error(f"not a JSON array: {error}") from None
        return words


@dataclass(frozen=True, slots=True)
class Stage:
    """What one FROM begins: the image or stage that it starts from, and what is done to it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def parse(text: str) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name; raises DockerfileError for what is not understood."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z][a-z0-9-]*)", instruction.value)
            if match is None:
                raise instruction.error("takes IMAGE AS NAME")
            stage = stages[match[2]] = Stage(match[2], match[1])
        elif stage is None:
            raise instruction.error("nothing stands before the first FROM")
        else:
            stage.instructions.append(instruction)
    return stages


def _instructions(text: str) -> list[Instruction]:
    found, parts, first = [], list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            found.append(_instruction(" ".join(parts), first))
            parts = []
    return found


def _instruction(text: str, line: int) -> Instruction:
    name, _, value = text.partition(" ")
    options: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", value):
        options[match[1]] = match[2] or ""
        value = value[match.end() :]
    instruction = Instruction(name, options, value, line)
    if name not in INSTRUCTIONS:
        raise instruction.error("this instruction is not known here")
    if unknown := options.keys() - INSTRUCTIONS[name]:
        raise instruction.error(f"--{min(unknown)} is not known here")
    return instruction


def ignored(patterns: str, path: str) -> bool:
    """Say whether a .dockerignore keeps *path*, relative to the context, out of it: the last line that fits decides."""
    out = False
    for line in patterns.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        if _fits(pattern.removeprefix("!"), path):
            out = not pattern.startswith("!")
    return out


def _fits(pattern: str, path: str) -> bool:
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(f"{regex}(?:/.*)?", path) is not None
