"""`hypergpu init` where it cannot make a project."""

import json
from pathlib import Path

from hypergpu.project import COMMANDS
from tests.hypergpu.conftest import Cli


def test_a_directory_that_holds_something_is_left_alone(cli: Cli) -> None:
    Path("full").mkdir()
    Path("full/notes").touch()
    result = cli("init", "full")
    assert (result.code, result.out) == (2, "")
    assert result.err == "hypergpu: full is not empty, it holds notes; give the name of a new directory\n"
    assert [file.name for file in Path("full").iterdir()] == ["notes"]


def test_a_file_is_no_directory(cli: Cli) -> None:
    Path("file").touch()
    for name in ("file", "file/below"):
        result = cli("init", name)
        assert result.code == 2
        assert f"{name} is not a directory; give the name of a new one" in result.err


def test_an_empty_directory_will_do_and_its_readme_has_the_commands_that_are_printed(cli: Cli) -> None:
    Path("project").mkdir()
    made = json.loads(cli("init", "project", "--json").out)
    assert [Path(file).name for file in made["files"]] == ["README.md", "config.yaml", "my_task.py", "test_my_task.py"]
    readme = Path("project/README.md").read_text()
    assert readme.count("\n") == 5
    assert [command for command, _ in COMMANDS if f"`{command}`" not in readme] == []
