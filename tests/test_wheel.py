from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from building import make_dicom

pytest.importorskip("build", reason="the package build is not installed")
BUNDLE = {"bundle.json", "model.tflite", "card.md", "metrics.json"}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's content; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    _run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder)
    return folder


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_the_package_and_the_default_bundle_only(wheel: Path, root: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("dicomsort/models/default/") for name in names if name.startswith("dicomsort/models/")}
    kept = {"evaluation.npz"} if (root / "models" / "default" / "evaluation.npz").is_file() else set()
    assert shipped >= BUNDLE | kept
    assert {name for name in shipped - BUNDLE - kept if not name.endswith(".png")} == set()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dicomsort"}
    assert {"dicomsort/py.typed", "dicomsort/cli.py", "dicomsort/cli/__init__.py"} & set(names)


@pytest.mark.xdist_group("wheel")
def test_the_installed_wheel_sorts_from_any_folder(installed: Path, tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox" / "a.dcm", modality="CT")
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); from dicomsort.cli import main; main()"
    _run("-c", code, "sort", "inbox", "outbox", "--engine", "serial", "--held-ok", cwd=tmp_path)
    assert (tmp_path / "outbox" / "manifest.csv").read_text("utf-8").count("a.dcm") == 1


@pytest.mark.xdist_group("wheel")
def test_the_installed_wheel_finds_its_own_bundle(installed: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import dicomsort; print(dicomsort.__file__)"
    assert _run("-c", code, cwd=tmp_path).startswith(str(installed))
    assert (installed / "dicomsort" / "models" / "default" / "model.tflite").stat().st_size > 0


@pytest.mark.xdist_group("wheel")
def test_the_installed_wheel_has_the_templates_of_its_pages(installed: Path, root: Path, tmp_path: Path) -> None:
    pages = {
        path.relative_to(root)
        for kind in ("html", "css", "js", "svg")
        for path in (root / "dicomsort").rglob(f"*.{kind}")
    }
    assert pages
    assert {path for path in pages if not (installed / path).is_file()} == set()
    make_dicom(tmp_path / "inbox" / "a.dcm", modality="CT")
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); from dicomsort.cli import main; main()"
    _run("-c", code, "sort", "inbox", "outbox", "--engine", "serial", cwd=tmp_path)
    _run("-c", code, "report", "outbox", "--pictures", "0", "--html", "report.html", cwd=tmp_path)
    assert "1 file: 1 sorted, nothing needs you." in (tmp_path / "report.html").read_text("utf-8")


def _run(*arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
