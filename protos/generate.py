"""Generates the Python code of the protos into common/, or checks that what is there is what they say."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
TARGET = PROTOS.parent / "common"


def generate(target: Path) -> list[Path]:
    """Writes the generated modules below `target` and returns their paths relative to it."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    includes = resources.files("grpc_tools") / "_proto"
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    arguments = [
        *(f"-I{PROTOS}", f"-I{includes}", f"--plugin=protoc-gen-mypy={plugin}"),
        *(f"--python_out={target}", f"--mypy_out=quiet:{target}", *sources),
    ]
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc failed")
    return sorted(path.relative_to(target) for path in target.rglob("*_pb2.py*") if "__pycache__" not in path.parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed code is stale")
    if not parser.parse_args().check:
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        stale = [
            path
            for path in generate(fresh)
            if not (TARGET / path).exists() or not filecmp.cmp(fresh / path, TARGET / path, shallow=False)
        ]
    if stale:
        sys.exit(f"generated code is stale, run 'make proto': {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
