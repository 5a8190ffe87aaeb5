"""The join token: one reading of it, from every place that it may come from."""

import os
from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.token import (
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENS,
    OPERATOR,
    TokenSource,
    check_token,
    find_token,
    shown_token,
    token_file,
)


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {}\t", "\ufeff{}\n"])
def test_what_stands_around_a_token_is_no_part_of_it(tmp_path: Path, around: str) -> None:
    text = around.format("s3cret")
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8", newline="")
    assert find_token(None, file, {}).first == "s3cret"
    assert find_token(None, None, {"HYPERGPU_TOKEN_FILE": str(file)}).first == "s3cret"
    if "\ufeff" not in text:
        assert find_token(text, None, {}).first == "s3cret"
        assert find_token(None, None, {"HYPERGPU_TOKEN": text}).first == "s3cret"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no token"),
        ("\n", "holds no token"),
        ("a\tb", "character 2 of the token, U+0009, cannot be sent in a header"),
        ("a\x00", "character 2 of the token, U+0000,"),
        ("schlüssel", "character 5 of the token, U+00FC,"),
        ("a\x7f", "character 2 of the token, U+007F,"),
        ("x" * (MAX_TOKEN_CHARACTERS + 1), "longer than 4096 characters"),
    ],
)
def test_what_cannot_be_a_token_is_refused_in_one_line_that_names_the_source(
    tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8", newline="")
    sources = [
        ((text, None, {}), "--token"),
        ((None, file, {}), f"--token-file {file}"),
        ((None, None, {"HYPERGPU_TOKEN_FILE": str(file)}), f"HYPERGPU_TOKEN_FILE {file}"),
    ]
    if text:
        sources.append(((None, None, {"HYPERGPU_TOKEN": text}), "HYPERGPU_TOKEN"))
    for given, source in sources:
        with pytest.raises(ConfigError) as caught:
            find_token(*given)
        assert str(caught.value).startswith(source)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "schl" not in str(caught.value), "a secret is not printed"


def test_the_longest_token_and_every_printable_character_are_taken() -> None:
    assert check_token("x" * MAX_TOKEN_CHARACTERS, "--token") == "x" * MAX_TOKEN_CHARACTERS
    printable = "".join(map(chr, range(0x21, 0x7F))) + " ~"
    assert check_token(printable, "--token") == printable


def test_options_count_before_variables_and_the_token_before_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("of-file")
    variables = {"HYPERGPU_TOKEN": "of-variable", "HYPERGPU_TOKEN_FILE": str(file)}
    assert find_token("of-option", None, variables).first == "of-option"
    assert find_token(None, file, variables).first == "of-file"
    assert find_token(None, None, variables).first == "of-variable"
    assert find_token(None, None, {**variables, "HYPERGPU_TOKEN": ""}).first == "of-file"
    assert find_token(None, None, {"HYPERGPU_TOKEN": "", "HYPERGPU_TOKEN_FILE": ""}).first == ""
    with pytest.raises(ConfigError, match="give either --token or --token-file"):
        find_token("a", file, {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, told in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "larger than"),
    ):
        with pytest.raises(ConfigError, match=f"cannot read {path}: .*{told}"):
            find_token(None, path, {})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        find_token(None, binary, {})


def test_a_pipe_is_read_as_a_shell_gives_it() -> None:
    read, write = os.pipe()
    os.write(write, b"piped\n")
    os.close(write)
    try:
        assert find_token(None, Path(f"/dev/fd/{read}"), {}).first == "piped"
    finally:
        os.close(read)


def test_other_kinds_have_options_and_variables_of_their_own(tmp_path: Path) -> None:
    assert find_token(None, None, {"HYPERGPU_OPERATOR_TOKEN": "o", "HYPERGPU_TOKEN": "j"}, OPERATOR).first == "o"
    assert not find_token(None, None, {"HYPERGPU_TOKEN": "j"}, OPERATOR)
    with pytest.raises(ConfigError, match=r"^--operator-token-file: cannot read"):
        find_token(None, tmp_path, {}, OPERATOR)


def test_a_command_shows_the_strongest_token_that_it_finds() -> None:
    variables = {"HYPERGPU_TOKEN": "j", "HYPERGPU_VIEWER_TOKEN": "v", "HYPERGPU_OPERATOR_TOKEN": "o"}
    assert shown_token("given", None, variables) == "given"
    assert shown_token(None, None, variables) == "o"
    assert shown_token(None, None, {**variables, "HYPERGPU_OPERATOR_TOKEN": ""}) == "v"
    assert shown_token(None, None, {"HYPERGPU_TOKEN": "j"}) == "j"
    assert shown_token(None, None, {}) == ""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_has_a_token_a_line_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", Clock()
    file.write_text("new\n\nold\n")
    tokens = TokenSource(token_file(file, "f").all, file, "f", clock)
    assert (tuple(tokens.all), tokens.first) == (("new", "old"), "new")
    for content, expected in (
        ("newest\nnew", ("newest", "new")),
        ("", ("newest", "new")),
        ("schl\u00fcssel", ("newest", "new")),
        ("\n".join("abcdefghi"), ("newest", "new")),
        ("last", ("last",)),
    ):
        replacement = tmp_path / "replacement"
        replacement.write_text(content)
        replacement.replace(file)
        before = tokens.all
        clock.now += 0.5
        assert tokens.all == before, "it is looked at once a second"
        clock.now += 0.6
        assert tuple(tokens.all) == expected, content
    file.unlink()
    clock.now += 2.0
    assert tokens.first == "last", "a file that is being replaced may be missing for a moment"


def test_a_file_holds_a_few_tokens_at_most(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n" * (MAX_TOKENS + 1))
    with pytest.raises(ConfigError, match="holds 9 tokens, one a line: keep at most 8"):
        token_file(tmp_path / "token", "--token-file")
