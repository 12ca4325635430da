from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dicomsort"
MEASURED = sorted(
    path for folder in ("dicomsort", "benchmarks", "sample_data") for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = ("tensorflow", "keras", "matplotlib", "pandas", "distributed", "dask", "pynetdicom")

# Beside files.py: what runs outside sorting, what writes a bundle that a command was asked for by name, and the spool
# and the workers' files in temporary folders.
WRITERS = ("files.py", "training", "bundle", "catalog", "catalog.py", "adapters")
PATH_METHODS = {
    "chmod", "hardlink_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
OS_FUNCTIONS = {
    "chmod", "chown", "fchmod", "ftruncate", "link", "makedirs", "mkdir", "mkfifo", "remove", "removedirs", "rename",
    "renames", "replace", "rmdir", "symlink", "truncate", "unlink", "utime", "write", "writev", "pwrite", "sendfile",
    "copy_file_range", "open",
}  # fmt: skip
TEXT = {".py", ".md", ".toml", ".lock", ".txt", ".json", ".csv", ".yml", ".yaml", ""}


@pytest.mark.parametrize("path", MEASURED + TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_over_300_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 300


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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_files_py_changes_the_disk(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in WRITERS:
        return
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in _calls(path) if _changes_disk(node)] == []


def test_the_check_of_changes_knows_its_calls() -> None:
    changing = (
        "os.link(a, b)", "os.replace(a, b)", "os.makedirs(a)", "shutil.rmtree(a)", "open(a, 'w')", "open(a, mode='xb')",
        "Path(a).unlink()", "path.open('a')", "target.write_text(b)", "os.open(a, os.O_WRONLY | os.O_CREAT)",
    )  # fmt: skip
    harmless = (
        "os.stat(a)", "open(a)", "open(a, 'rb')", "path.open('rb')", "files.unlink(a)", "dataclasses.replace(a, b=c)",
        "os.open(a, os.O_RDONLY)", "shutil.get_terminal_size()", "shutil.disk_usage(a)",
    )  # fmt: skip
    assert [code for code in changing if not _changes_disk(_call(code))] == []
    assert [code for code in harmless if _changes_disk(_call(code))] == []


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


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call))


def _call(code: str) -> ast.Call:
    node = ast.parse(code, mode="eval").body
    assert isinstance(node, ast.Call)
    return node


def _changes_disk(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id="open"):
            return _writes(_mode(call, 1))
        case ast.Attribute(value=ast.Name(id="os"), attr="open"):
            return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"))
        case ast.Attribute(value=ast.Name(id="os"), attr=attr):
            return attr in OS_FUNCTIONS
        case ast.Attribute(value=ast.Name(id="shutil"), attr=attr):
            return attr.startswith(("copy", "move", "rm", "chown", "make_archive", "unpack"))
        case ast.Attribute(value=receiver) if ast.unparse(receiver).endswith("files"):
            return False  # files.py itself, or what it gave out
        case ast.Attribute(attr="open"):
            return _writes(_mode(call, 0))
        case ast.Attribute(attr=attr):
            return attr in PATH_METHODS
    return False


def _mode(call: ast.Call, position: int) -> str:
    named = [word.value for word in call.keywords if word.arg == "mode"]
    mode = next(iter([*named, *call.args[position : position + 1]]), None)
    return mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else ""


def _writes(mode: str) -> bool:
    return bool(set(mode) & set("wax+"))
