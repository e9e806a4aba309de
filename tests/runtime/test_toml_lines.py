"""Every setting is found on the line on which it stands, however the file is written."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.toml_lines import line_of

TEXT = '''\
# a comment
workers = 2

[edge]
port = 1 # here
routers = [
  "a",
  # [edge] in a comment, and a bracket ] too
  "b",
]
"host" = """
port = 5
[router]
"""

[[provider]]
name = "x"

  [[provider]]
  models = ["a", "b"]
  name = "y"
[rpc.deep]
x.y = 1
[telemetry]
last = true'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("workers",), 2),
        (("edge",), 4),
        (("edge", "port"), 5),
        (("edge", "routers"), 6),
        (("edge", "routers", 1), 6),
        (("edge", "host"), 11),
        (("provider",), 16),
        (("provider", 0), 16),
        (("provider", 0, "name"), 17),
        (("provider", 1), 19),
        (("provider", 1, "models"), 20),
        (("provider", 1, "name"), 21),
        (("rpc",), 22),
        (("rpc", "deep", "x", "y"), 23),
        (("telemetry", "last"), 25),
    ],
)
@pytest.mark.parametrize("ending", ["", "\n", "\n\n# end\n"])
def test_a_setting_is_found_where_it_stands(
    path: tuple[str | int, ...], line: int, ending: str
) -> None:
    assert line_of(TEXT + ending, path) == line


def test_an_inline_table_is_found_by_its_statement() -> None:
    text = 'a = 1\nprovider = [\n  { name = "x" },\n  { name = "y", bad = 1 },\n]\nb = 2\n'
    assert line_of(text, ("provider", 1, "bad")) == 2
    assert line_of(text, ("b",)) == 6


def test_a_file_of_one_long_statement_is_found_at_its_start() -> None:
    assert line_of("a = [\n" + "1,\n" * 50 + "]", ("a",)) == 1


STATEMENT = st.sampled_from(
    ["\n", "# note\n", "{} = 1\n", '{} = """\nx\n"""\n', "{} = [\n1,\n\n2]\n", "{}.a = 'x'\n"]
)


@given(st.lists(STATEMENT, max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_statement_is_found(statements: list[str]) -> None:
    text = ""
    lines = {}
    for number, statement in enumerate(statements):
        if "{}" in statement:
            lines[f"k{number}"] = text.count("\n") + 1
        text += statement.format(f"k{number}")
    assert tomllib.loads(text).keys() == lines.keys()
    assert {key: line_of(text, (key,)) for key in lines} == lines
