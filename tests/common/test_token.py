"""The join token: one reading of it, from every place that it may come from."""

import os
from pathlib import Path

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.token import MAX_TOKEN_CHARACTERS, check_token, find_token


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {}\t", "\ufeff{}\n"])
def test_what_stands_around_a_token_is_no_part_of_it(tmp_path: Path, around: str) -> None:
    text = around.format("s3cret")
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8", newline="")
    assert find_token(None, file, {}) == "s3cret"
    assert find_token(None, None, {"HYPERGPU_TOKEN_FILE": str(file)}) == "s3cret"
    if "\ufeff" not in text:
        assert find_token(text, None, {}) == "s3cret"
        assert find_token(None, None, {"HYPERGPU_TOKEN": text}) == "s3cret"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no token"),
        ("\n", "holds no token"),
        ("a\nb", "character 2 of the token, U+000A, cannot be sent in a header"),
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
    assert find_token("of-option", None, variables) == "of-option"
    assert find_token(None, file, variables) == "of-file"
    assert find_token(None, None, variables) == "of-variable"
    assert find_token(None, None, {**variables, "HYPERGPU_TOKEN": ""}) == "of-file"
    assert find_token(None, None, {"HYPERGPU_TOKEN": "", "HYPERGPU_TOKEN_FILE": ""}) == ""
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
        assert find_token(None, Path(f"/dev/fd/{read}"), {}) == "piped"
    finally:
        os.close(read)
