"""Writes a bundle: everything into a folder beside the target, then one rename; no reader sees an incomplete one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dicomsort.bundle.spec import EVALUATION_NAME, FORMAT_VERSION, MODEL_NAME, SPEC_NAME, check
from dicomsort.errors import BundleError, UsageError
from dicomsort.files import Files, flush_path
from dicomsort.own_files import kind_of


@contextmanager
def staged(folder: Path, outputs: frozenset[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place when the block succeeds, and is removed otherwise.

    ``outputs`` are the names of the files that a bundle may hold: an existing ``folder`` is replaced only if it holds
    nothing else; its mode stays. UsageError where it holds something else, is a mount point, or cannot be written.
    """
    target = Path(os.path.abspath(folder))
    check_target(target, outputs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        msg = f"--out {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(msg) from error
    try:
        yield part
        if not (part / SPEC_NAME).is_file():
            raise BundleError(f"bundle {str(folder)!r}: expected {SPEC_NAME} among the files to place, received none")
        check_target(target, outputs)
        _place(part, target, outputs)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def seal(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write ``bundle.json`` into ``folder``: ``spec`` with the format's version, and the files' sizes and SHA-256.

    The files are the model, and the replay set where ``spec`` has a block for it. BundleError where ``load`` would not
    accept the result.
    """
    size, sha256 = _measure(folder / MODEL_NAME)
    whole = {"format_version": FORMAT_VERSION, **spec, "model_sha256": sha256, "model_size": size}
    if (evaluation := spec.get("evaluation")) is not None:
        size, sha256 = _measure(folder / EVALUATION_NAME)
        whole["evaluation"] = {**evaluation, "sha256": sha256, "size": size}
    check(whole, str(folder))
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    (folder / SPEC_NAME).write_text(text, encoding="utf-8")


def _measure(file: Path) -> tuple[int, str]:
    """Return a file's size and SHA-256."""
    content = file.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def check_target(target: Path, outputs: frozenset[str]) -> None:
    """Raise UsageError where ``target`` is something that must not be replaced by a bundle of these files."""
    if not target.exists() and not target.is_symlink():
        return
    expected = f"--out {str(target)!r}: expected a new folder or an earlier bundle"
    if target.is_symlink() or not target.is_dir():
        raise UsageError(f"{expected}, received a file or a link")
    if os.path.ismount(target):
        msg = f"--out {str(target)!r}: expected a folder that can be renamed, received a mount point; name one below it"
        raise UsageError(msg)
    there = sorted(target.iterdir())
    foreign = [path.name for path in there if path.name not in outputs or path.is_symlink() or not path.is_file()]
    if foreign:
        raise UsageError(f"{expected}, received one with {foreign[0]!r} in it")
    for path in there:
        if (kind := kind_of(path.name)) and (problem := kind.problem(str(path))):
            raise UsageError(f"{expected}, received one whose {path.name!r} is not {kind.name}: {problem}")
    if there and not (target / SPEC_NAME).is_file():
        raise UsageError(f"{expected}, received one with {there[0].name!r} and without {SPEC_NAME} in it")


def _place(part: Path, target: Path, outputs: frozenset[str]) -> None:
    """Flush ``part`` and rename it to ``target``; an earlier bundle is renamed first and removed last."""
    exists = target.exists()
    part.chmod(stat.S_IMODE(target.stat().st_mode) if exists else 0o755)
    files = Files()
    for path in (*part.iterdir(), part):
        flush_path(files, str(path))
    old = part.with_suffix(".old")
    if exists:
        target.rename(old)
    try:
        part.rename(target)
    except OSError:
        if exists:
            old.rename(target)
        raise
    if exists:
        _remove(old, outputs)


def _remove(old: Path, outputs: frozenset[str]) -> None:
    """Remove an earlier bundle; files that were added to it meanwhile stay, in the folder beside."""
    with suppress(OSError):
        for path in old.iterdir():
            if path.is_file() and path.name in outputs:
                path.unlink()
        old.rmdir()
