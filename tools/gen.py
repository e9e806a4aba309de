"""Regenerates the package ``onegate/`` from ``protos/``; ``--check`` only compares and fails on
a difference.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = ROOT / "onegate"
MARK = '"""Generated from protos/ by `make gen`; never edited."""\n'


def generate(out: Path) -> None:
    """Writes the whole generated package into ``out``/onegate."""
    well_known = str(resources.files("grpc_tools") / "_proto")
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        if not (Path(sys.executable).parent / plugin).exists():
            raise SystemExit(f"{plugin} is missing: run `make setup`")
    plugins = Path(sys.executable).parent
    files = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_async:{out}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for folder in [out / "onegate", *(p for p in (out / "onegate").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").write_text(MARK)
    (out / "onegate" / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths of files that are not byte for byte the same in both trees."""
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    same, _, _ = filecmp.cmpfiles(left, right, sorted(names), shallow=False)
    return sorted(names - set(same))


def main() -> None:
    """Regenerates, or compares with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        fresh = Path(temporary) / "onegate"
        if check:
            if changed := differences(fresh, PACKAGE):
                raise SystemExit(f"generated code is stale, run `make gen`: {', '.join(changed)}")
            return
        shutil.rmtree(PACKAGE, ignore_errors=True)
        shutil.copytree(fresh, PACKAGE)


if __name__ == "__main__":
    main()
