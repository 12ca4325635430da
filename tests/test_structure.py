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


@pytest.mark.parametrize("path", MEASURED + TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_constant_of_a_module_is_given_twice(path: Path) -> None:
    """A merge can leave two definitions of one name: the last is in effect, whatever the comment at the first says."""
    given = [target.id for node in _tree(path).body for target in _targets(node) if isinstance(target, ast.Name)]
    assert sorted({name for name in given if given.count(name) > 1}) == []


def _targets(node: ast.stmt) -> list[ast.expr]:
    """What a statement assigns to, tuples taken apart."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part for target in targets for part in getattr(target, "elts", [target])]


PACKAGES = sorted({path.parent for path in MEASURED if path.is_relative_to(ROOT / "dicomsort")})


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_package_has_over_15_modules(package: Path) -> None:
    assert len([path for path in package.glob("*.py") if path.stem not in {"__init__", "__main__"}]) <= 15


def test_layers_hold_and_no_package_has_a_circle() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.is_file():
        pytest.skip("import-linter is not installed")
    ran = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, dicomsort.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def _texts() -> dict[str, str]:
    """The texts of the checkout by their paths, but the sample inbox and this file."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {
        name: (ROOT / name).read_text("utf-8", "replace")
        for name in filter(None, listed.stdout.split("\0"))
        if not name.startswith("sample_data/inbox/") and name != "tests/test_structure.py"
        if (ROOT / name).suffix in TEXT and (ROOT / name).is_file()
    }


def test_no_tracked_text_names_this_machine_or_an_index() -> None:
    forbidden = re.compile(
        r"(?<![\w.])/(work/\w|root/\w|opt/(pypi|wheels))|--(extra-)?index-url|--find-links|/simple/?\s", re.ASCII
    )
    found = {name: match.group() for name, text in _texts().items() if (match := forbidden.search(text))}
    assert found == {}


# The name on PyPI belongs to somebody else: whoever installed it would run a stranger's code.
BY_NAME = re.compile(
    r"(?<![\w/.-])dicomsort\[[a-z]"
    r"|\b(re)?install dicomsort\b(?![-./])"
    r"|\b(pip3?|uv|poetry|conda|pipx)[ \t]+(pip +|tool +)?(install|add|run|inject|download)"
    r"([ \t]+[^\s;&|#`)]+)*?[ \t]+['\"]?dicomsort(?![\w./-])"
    r"|\buvx[ \t]+dicomsort\b",
    re.ASCII,
)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("install dicomsort[tune]", True),
        ("the extra dicomsort[pacs]", True),
        ("pip install dicomsort", True),
        ("bin/pip install --upgrade 'dicomsort>=0.1'", True),
        ("uv tool install dicomsort", True),
        ("pip install '.[tune]'", False),
        ("pip install 'dicomsort-0.1.0-py3-none-any.whl[tune]'", False),
        ("bin/pip install '/path/to/dicomsort[pacs]'  # this checkout", False),
        ("install -d -o dicomsort -g dicomsort /srv/inbox", False),
        ("`pip install '.[pacs]'` lets dicomsort send", False),
    ],
)
def test_what_installs_by_name_is_recognised(text: str, wrong: bool) -> None:  # noqa: FBT001
    assert bool(BY_NAME.search(text)) is wrong


def test_no_text_tells_to_install_it_by_name_from_an_index() -> None:
    assert {name: match.group() for name, text in _texts().items() if (match := BY_NAME.search(text))} == {}


def test_lock_pins_every_package_with_hashes_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "http" not in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert all("==" in pin and pin.endswith("\\") for pin in pins)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))
