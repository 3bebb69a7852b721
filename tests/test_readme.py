import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import vidmodels.cli
import vidprep.cli
from scripts.readme_tables import filled

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
APPS = {"vidprep": vidprep.cli.app, "vidmodels": vidmodels.cli.app}


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    return [line.split("#")[0].strip() for line in blocks.splitlines() if line.startswith(tuple(APPS))]


def test_the_tables_are_those_of_the_data_sets_and_recipes() -> None:
    assert filled(README) == README, "run `python -m scripts.readme_tables`"


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_is_one_that_the_program_takes(command: str) -> None:
    program, name, *words = shlex.split(command)
    group = get_command(APPS[program])
    sub_command = getattr(group, "commands")[name]  # noqa: B009 - typer's own group class, not click's
    options = {option for parameter in sub_command.params for option in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in options] == []


def test_every_link_to_a_file_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []
