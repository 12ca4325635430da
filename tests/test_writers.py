"""Only ``files`` changes what is on disk; the few modules beside it that write are named here, with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dicomsort"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# None of these is given a path of an inbox, or one below an outbox.
WRITERS = {
    "files/__init__.py": "the only one that sort, resume and undo change anything with",
    "__main__.py": "one line on stderr",
    "cli/console.py": "the standard streams",
    "signals.py": "one line on stderr",
    "catalog.py": "the spool of a run, in a temporary folder that ends with it",
    "sorting/pipeline.py": "what a dry run unpacks, in a temporary folder that ends with it",
    "discover.py": "the names of a folder that holds very many, in a temporary file without a name",
    "outputs.py": "the file that --log-file names",
    "bundle/staging.py": "a bundle, in a folder beside the one that train was given by name, then renamed",
    "training/data/rendered.py": "renderings, in the folder that --cache names, and temporary tensors",
    "training/evaluate/evaluation.py": "figures and pictures, in the folder that --out names, and temporary tensors",
    "training/evaluate/plots.py": "plots, in a staging folder",
    "training/evaluate/reporting.py": "figures and card, in a staging folder",
    "training/export/bundle.py": "the files of a bundle, in its staging folder",
    "training/export/tflite.py": "the files of a bundle, in its staging folder",
    "training/fit/checkpoint.py": "where an interrupted training goes on, beside the bundle to come",
    "training/fit/quantize.py": "a network on its way to LiteRT, in a temporary folder",
    "training/fit/transfer.py": "temporary tensors of a training, and the checkpoint of its cross-validation",
    "training/pipeline.py": "the files of a bundle, in its staging folder",
    "training/progress.py": "what libraries print while they convert, in a temporary file",
    "training/tune.py": "the journal of a search beside the bundle to come, and its table in the staging folder",
}
CHANGING = {
    "os": {
        "chflags", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate", "lchown", "link", "makedirs",
        "mkdir", "mkfifo", "mknod", "posix_fallocate", "pwrite", "pwritev", "remove", "removedirs", "removexattr",
        "rename", "renames", "replace", "rmdir", "sendfile", "setxattr", "splice", "symlink", "truncate", "unlink",
        "utime", "write", "writev",
    },
    "shutil": {
        "chown", "copy", "copy2", "copyfile", "copyfileobj", "copymode", "copystat", "copytree", "make_archive", "move",
        "rmtree", "unpack_archive",
    },
    "tempfile": {
        "NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile", "mkdtemp", "mkstemp",
    },
    "logging": {"FileHandler"},
    "logging.handlers": {"RotatingFileHandler", "TimedRotatingFileHandler", "WatchedFileHandler"},
    "sqlite3": {"connect"},
}  # fmt: skip
METHODS = {
    "chmod", "hardlink_to", "lchmod", "mkdir", "open_memmap", "rename", "rmdir", "save_as", "savefig", "symlink_to",
    "tofile", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
WRITING_FLAGS = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND")


@pytest.mark.parametrize("module", MODULES)
def test_only_files_py_changes_the_disk(module: str) -> None:
    found = [f"line {node.lineno}: {ast.unparse(node)}" for node in _changes((PACKAGE / module).read_text("utf-8"))]
    if module in WRITERS:
        assert found, f"{module} writes nothing any more: take it off the list"
    else:
        assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "os.link(a, b)", "os.replace(a, b)", "os.makedirs(a)", "shutil.rmtree(a)", "open(a, 'w')", "open(a, mode='xb')",
        "Path(a).unlink()", "path.open('a')", "target.write_text(b)", "os.open(a, os.O_WRONLY | os.O_CREAT)",
        "from os import unlink", "from shutil import move as take", "map(os.unlink, paths)", "import os as system",
        "tempfile.mkstemp()", "os.fdopen(a, 'wb')", "open(a, mode)", "path.open(mode)", "image.save(path)",
        "np.memmap(a, mode='w+')", "self.path.rename(b)", "io.open(a, 'r+')", "np.save(path, a)",
    ],
)  # fmt: skip
def test_the_check_knows_what_changes(code: str) -> None:
    assert list(_changes(code))


@pytest.mark.parametrize(
    "code",
    [
        "os.stat(a)", "open(a)", "open(a, 'rb')", "path.open('rb')", "files.unlink(a)", "dataclasses.replace(a, b=c)",
        "os.open(a, os.O_RDONLY)", "shutil.get_terminal_size()", "shutil.disk_usage(a)", "self._files.link(a, b)",
        "image.save(stream, 'PNG')", "path.open(encoding='utf-8')", "name.replace(a, b)",
    ],
)  # fmt: skip
def test_the_check_knows_what_does_not(code: str) -> None:
    assert not list(_changes(code))


def _changes(code: str) -> Iterator[ast.expr | ast.stmt]:
    """Every place that changes something on disk, or could without being seen to."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module in CHANGING:
                if {alias.name for alias in names} & CHANGING[module]:
                    yield node
            case ast.Import(names=names):
                if any(alias.name in CHANGING and alias.asname for alias in names):
                    yield node
            case ast.Attribute(value=ast.Name(id=module), attr=attr) if attr in CHANGING.get(module, ()):
                yield node
            case ast.Call() if _is_changing(node):
                yield node


def _is_changing(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id="open") | ast.Attribute(value=ast.Name(id="io"), attr="open") | ast.Attribute(attr="fdopen"):
            return _writes(call, 1)
        case ast.Attribute(value=ast.Name(id="os"), attr="open"):
            return any(flag in ast.unparse(call) for flag in WRITING_FLAGS)
        case ast.Attribute(value=receiver) if ast.unparse(receiver).endswith("files"):
            return False  # files itself, or what it gave out
        case ast.Attribute(value=ast.Name(id="Plan" | "Image"), attr="open"):
            return False  # they read
        case ast.Attribute(attr="open"):
            return _writes(call, 0)
        case ast.Attribute(attr="memmap"):
            return _writes(call, 2)
        case ast.Attribute(value=receiver, attr="save") if ast.unparse(receiver).endswith("_checkpoint"):
            return False  # ours, on the list
        case ast.Attribute(attr="save"):
            return not (call.args and ast.unparse(call.args[0]) == "stream")  # who opened the stream is looked at
        case ast.Attribute(attr=attr):
            return attr in METHODS
    return False


def _writes(call: ast.Call, position: int) -> bool:
    """Whether the mode is one that writes, or cannot be told."""
    named = [word.value for word in call.keywords if word.arg == "mode"]
    mode = next(iter([*named, *call.args[position : position + 1]]), None)
    if isinstance(mode, ast.Constant) and isinstance(mode.value, str):
        return bool(set(mode.value) & set("wax+"))
    return mode is not None
