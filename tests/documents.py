"""The commands and programs that the documents show, and whether the real programs take them."""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

import vidmodels.cli
import vidprep.cli
from scripts.benchmarks.__main__ import BENCHMARKS
from scripts.reproduce import main as reproduce

__all__ = ["DOCUMENTS", "Block", "Command", "blocks", "inline_commands", "parse", "python_blocks"]

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "vidmodels" / "methods").rglob("*.md")),
    ROOT / "splits" / "README.md",
)
GROUPS: dict[str, Any] = {"vidprep": get_command(vidprep.cli.app), "vidmodels": get_command(vidmodels.cli.app)}
OTHERS = ("torchrun", "pip", "python", "dask", "mkdir", "sha256sum")
SHELLS = ("sh", "bash", "console")

FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n+)?^```(?P<language>\S*)\n(?P<body>.*?)^```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One line of a block, as it stands there."""

    line: str
    words: tuple[str, ...]
    needs: str
    """What it cannot be run without, as its block or the comment behind it says; "": a test runs it."""

    @property
    def text(self) -> str:
        """Its words, one space apart, which is what rules of running are looked up by."""
        return " ".join(self.words)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Commands that follow each other."""

    place: str
    """DOCUMENT:LINE."""
    commands: tuple[Command, ...]


def blocks() -> list[Block]:
    """Every block of commands of every document."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            lines = [line for line in _joined(fence["body"]) if line.strip() and not line.lstrip().startswith("#")]
            if not (fence["language"] in SHELLS or (not fence["language"] and any(map(_is_command, lines)))):
                continue
            line_number = text.count("\n", 0, fence.start("body"))
            commands = tuple(_command(line, fence["needs"] or "") for line in lines)
            found.append(Block(place=f"{document.relative_to(ROOT).as_posix()}:{line_number}", commands=commands))
    return found


def _joined(body: str) -> list[str]:
    return body.replace("\\\n", " ").splitlines()


def _is_command(line: str) -> bool:
    first = line.split()[0]
    return first in GROUPS or first in OTHERS or first.startswith("scripts/")


def _command(line: str, needs: str) -> Command:
    behind = re.search(r"\s#.*\bneeds: (.+)$", line)
    return Command(line=line, words=tuple(shlex.split(line, comments=True)), needs=behind[1] if behind else needs)


def inline_commands() -> list[tuple[str, str]]:
    """(document, command) of every command in running text: `vidprep info NAME`."""
    found = []
    for document in DOCUMENTS:
        text = FENCE.sub("", document.read_text(encoding="utf-8"))
        for span in re.findall(r"(?<!`)`((?:vidprep|vidmodels) [a-z][^`]*)`(?!`)", text.replace("\n", " ")):
            found.append((document.relative_to(ROOT).as_posix(), span))
    return found


def python_blocks() -> list[tuple[str, str]]:
    """(DOCUMENT:LINE, program) of every block of Python."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            if fence["language"] == "python":
                line = text.count("\n", 0, fence.start("body"))
                found.append((f"{document.relative_to(ROOT).as_posix()}:{line}", fence["body"]))
    return found


def parse(words: Sequence[str]) -> None:
    """Let the real program take the command line, without running it.

    Raises:
        Exception: of the program's own, where it does not take it.
    """
    program, *rest = words
    if program in GROUPS:
        _parse_group(GROUPS[program], program, rest)
    elif program == "torchrun":
        module = rest.index("-m")
        assert rest[module + 1] == "vidmodels.cli", words
        _parse_group(GROUPS["vidmodels"], "vidmodels", rest[module + 2 :])
    elif program == "python":
        assert rest[0] == "-m", words
        assert importlib.util.find_spec(rest[1]) is not None, f"no module {rest[1]}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        for extra in re.findall(r"\[(\w+)\]", " ".join(rest)):
            assert extra in extras, f"no extra {extra}"
    elif program.startswith("scripts/"):
        _parse_script(program, rest)
    else:
        assert program in OTHERS, f"{program} is no program that the documents may name without saying so in OTHERS"


def _parse_group(group: Any, name: str, words: Sequence[str]) -> None:
    context = group.context_class(group, info_name=name)
    sub_name, command, rest = group.resolve_command(context, list(words))
    if hasattr(command, "commands"):
        _parse_group(command, sub_name, rest)
    else:
        command.make_context(sub_name, list(rest), parent=context)


def _parse_script(program: str, words: Sequence[str]) -> None:
    path = ROOT / program
    assert path.is_file(), f"no {program}"
    assert path.stat().st_mode & 0o111, f"{program} is not executable"
    if program == "scripts/bench":
        assert all(word in BENCHMARKS for word in words if word.isidentifier() and not word.startswith("--")), words
    if program == "scripts/reproduce":
        assert reproduce([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0


def names_that_are_missing(program: str) -> list[str]:
    """What a program imports of the two packages, or calls them by, that is not there."""
    missing = []
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in GROUPS:
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not _has(module, alias.name)]
    return missing


def _has(module: Any, name: str) -> bool:
    return hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}") is not None
