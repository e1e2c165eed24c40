"""The size budget: files <= 400 lines (kernels 600), functions p90 <= 45. Prints a table, exits with 1 when over.

As a script: `python tests/sizes.py`.
"""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

TREE = Path(__file__).parents[1]
PACKAGES = ("pipeline", "teacher_dump", "student_train", "shards")
FILE_CEILING, KERNEL_CEILING, FUNCTION_P90 = 400, 600, 45


def file_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lines(path: Path) -> list[int]:
    """Length of every function, docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [n.end_lineno - n.lineno + 1 for n in functions if n.end_lineno]


def p90(values: list[int]) -> float:
    return statistics.quantiles(values, n=10)[-1] if len(values) > 1 else float(sum(values))


def ceiling(path: Path) -> int:
    return KERNEL_CEILING if "kernels" in path.parts else FILE_CEILING


def main() -> int:
    over = []
    print(f"{'package':16}{'files':>6}{'lines':>8}{'median':>8}{'longest':>9}{'functions':>11}{'median':>8}{'p90':>6}")
    for package in PACKAGES:
        paths = sorted((TREE / package).rglob("*.py"))
        files = {path: file_lines(path) for path in paths}
        functions = [n for path in paths for n in function_lines(path)]
        print(
            f"{package:16}{len(files):6}{sum(files.values()):8}{statistics.median(files.values()):8.0f}"
            f"{max(files.values()):9}{len(functions):11}{statistics.median(functions):8.0f}{p90(functions):6.0f}"
        )
        over += [f"{p.relative_to(TREE)}: {n} lines, at most {ceiling(p)}" for p, n in files.items() if n > ceiling(p)]
        if p90(functions) > FUNCTION_P90:
            over.append(
                f"{package}: 90 % of the functions have up to {p90(functions):.0f} lines, at most {FUNCTION_P90}"
            )
    for path in sorted((TREE / "tests").rglob("*.py")):
        if file_lines(path) > FILE_CEILING:
            over.append(f"{path.relative_to(TREE)}: {file_lines(path)} lines, at most {FILE_CEILING}")
    for line in over:
        print(f"over budget: {line}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
