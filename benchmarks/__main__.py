"""Benchmarks and studies, each a part that can be run alone: python -m benchmarks PART [options]."""

import ast
import runpy
import sys
from pathlib import Path

PARTS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))


def main() -> None:
    """Run a part, or list them."""
    names = [path.stem for path in PARTS]
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(__doc__)
        for path in PARTS:
            print(f"  {path.stem:<12}{(ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()[0]}")
        sys.exit(0 if len(sys.argv) < 2 else 2)
    part = sys.argv.pop(1)
    runpy.run_module(f"benchmarks.{part}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
