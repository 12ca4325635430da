from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEASURED = sorted(
    path for folder in ("dicomsort", "benchmarks", "sample_data") for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = ("tensorflow", "keras", "matplotlib", "pandas", "distributed", "dask", "pynetdicom", "urllib3", "tornado")

TEXT = {".py", ".md", ".toml", ".lock", ".txt", ".json", ".csv", ".yml", ".yaml", ".html", ".css", ""}


@pytest.mark.parametrize("path", MEASURED + TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_over_500_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_function_is_over_40_lines(path: Path) -> None:
    functions = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.is_file():
        pytest.skip("import-linter is not installed")
    ran = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, dicomsort.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_no_tracked_text_names_this_machine_or_an_index() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(
        r"(?<![\w.])/(work/\w|root/\w|opt/(pypi|wheels))|--(extra-)?index-url|--find-links|/simple/?\s", re.ASCII
    )
    found = {
        name: match.group()
        for name in filter(None, listed.stdout.split("\0"))
        if not name.startswith("sample_data/inbox/") and name != "tests/test_structure.py"
        if (ROOT / name).suffix in TEXT and (ROOT / name).is_file()
        if (match := forbidden.search((ROOT / name).read_text("utf-8", "replace")))
    }
    assert found == {}


def test_lock_pins_every_package_with_hashes_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "http" not in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert all("==" in pin and pin.endswith("\\") for pin in pins)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))
