"""The house rules that a program can check: sizes, names, and what may be called where.

``EXCEPTIONS`` may only shrink: an entry that is no longer needed fails the test.
"""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 5
BAD_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
ROOMS = ("runtime", "services", "edge", "cli", "tools", "bench", "tests")
PRODUCT = ("runtime", "services", "edge", "cli")

PORTS = {"time.time", "time.monotonic", "asyncio.sleep", "datetime.now", "os.urandom"}
"""What only ``runtime/clock.py`` may reach for; everybody else is given a clock."""
ENVIRONMENT = {"os.environ", "os.getenv"}
"""What only ``runtime/config.py`` may read; the command hands the environment to it."""
DANGEROUS = {"eval", "exec", "compile", "pickle.loads", "os.system", "os.popen"}

STORES = ("store", "_schema", "_rows", "_sql")
"""How a service's modules are named that speak SQL."""

MAY_USE = {
    "runtime/clock.py": PORTS,
    "runtime/config.py": ENVIRONMENT,
    "cli/main.py": ENVIRONMENT,
}

EXCEPTIONS: set[str] = set()
"""``path: rule`` of what is allowed to stay for now."""


def sources(*rooms: str) -> list[Path]:
    return sorted(
        path
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if not {".peers", "node_modules"} & set(path.parts)
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults_of_size(path: Path, tree: ast.Module) -> Iterator[str]:
    if len(path.read_text().splitlines()) > FILE_LINES_MAX:
        yield "too many lines"
    for function in functions(tree):
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX:
            yield f"{function.name} is too long"
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        counted = [argument for argument in given if argument.arg not in ("self", "cls")]
        # A command's parameters are its options, a test's its fixtures and its table's columns.
        named_by_others = function.name.startswith("test_") or any(
            dotted(decorator.func).endswith(("command", "callback"))
            for decorator in function.decorator_list
            if isinstance(decorator, ast.Call)
        )
        if len(counted) > PARAMETERS_MAX and not named_by_others:
            yield f"{function.name} has too many parameters"


def faults_of_calls(path: Path, tree: ast.Module) -> Iterator[str]:
    allowed = MAY_USE.get(relative(path), set())
    for node in ast.walk(tree):
        name = dotted(node)
        for banned in (PORTS | ENVIRONMENT | DANGEROUS) - allowed:
            if name == banned or ("." in banned and name.endswith(f".{banned}")):
                yield f"uses {banned}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            if "random" in names or module == "random":
                yield "imports random"
            if "subprocess" in names:
                yield "imports subprocess"


def faults_of_stores(path: Path, tree: ast.Module) -> Iterator[str]:
    """In a room of usage, a module that speaks SQL says so in its name."""
    speaks = any(
        name.split(".")[0] == "sqlalchemy"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    )
    if speaks and path.parts[0] == "services" and not path.stem.endswith(STORES):
        yield "speaks SQL and is not named a store"


def faults_of_form(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree) and tree.body:
        yield "has no module docstring"
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield f"{function.name} imports inside"
            if isinstance(node, ast.Global):
                yield f"{function.name} keeps module state"


@pytest.mark.parametrize("path", sources(*ROOMS), ids=relative)
def test_the_house_is_tidy(path: Path) -> None:
    tree = ast.parse(path.read_text())
    faults = set(faults_of_size(path, tree))
    if path.relative_to(ROOT).parts[0] in PRODUCT:
        faults |= set(faults_of_calls(path, tree)) | set(faults_of_form(tree))
        faults |= set(faults_of_stores(path.relative_to(ROOT), tree))
    if BAD_NAMES & set(re.split(r"[/._]", relative(path).removesuffix(".py"))):
        faults.add("has a name that says nothing")
    found = {f"{relative(path)}: {fault}" for fault in faults}
    expected = {entry for entry in EXCEPTIONS if entry.startswith(f"{relative(path)}:")}
    assert found == expected


def test_a_module_that_calls_itself_pure_is_held_to_it() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (held,) = [
        set(contract["source_modules"])
        for contract in contracts["contracts"]
        if contract["name"].startswith("Pure rooms")
    ]
    says = {
        relative(path).removesuffix(".py").replace("/", ".")
        for path in sources(*PRODUCT)
        if re.search(r"\bPure\b|: pure\b", ast.get_docstring(ast.parse(path.read_text())) or "")
    }
    rooms = tuple(f"{module}." for module in held)
    assert len(says) > 50
    assert {module for module in says - held if not module.startswith(rooms)} == set()


def test_no_committed_file_names_a_machine_path_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    banned = re.compile(
        "|".join(["/wo" + "rk/", "py" + "pi\\.org", "python" + "hosted", "registry\\." + "npmjs"])
    )
    hits = [
        name
        for name in listed.split("\0")
        if name
        and (ROOT / name).is_file()
        and banned.search((ROOT / name).read_text("utf-8", "replace"))
    ]
    assert hits == []


def test_locks_pin_every_package_by_hash_and_name_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^[a-z0-9][^\s=]*==", text, re.MULTILINE)
        assert len(pins) > 20
        assert "://" not in text
        for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
            assert "--hash=sha256:" in block, block
