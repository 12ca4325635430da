"""Every claim of the manual that can be checked: commands, options, tables, links, the demo's result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from command import run
from manual import BLOCKS, PAGES, ROOT, block, demo, fenced, page, section

from dicomsort.cli import app
from dicomsort.cli.console import EXIT_NEEDS_PERSON, EXIT_UNREAD
from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK
from dicomsort.config import SORT, load_watch
from dicomsort.dicom.elements import HEADER_LIMIT
from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.pixels import MAX_PIXELS
from dicomsort.plan.layout import MAX_COMPONENT
from dicomsort.report.metrics import FAMILIES
from dicomsort.service.watch import LONGEST_PAUSE
from dicomsort.signals import EXIT_INTERRUPTED


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("name", BLOCKS)
def test_generated_parts_are_what_the_program_does(name: str, outbox: Path) -> None:
    where, make = BLOCKS[name]
    found = block(name).search(page(where))
    assert found is not None
    assert found[0] == make(outbox) + "\n"


def commands() -> Iterator[list[str]]:
    """Every line of the manual's shell and cron blocks that runs dicomsort, as words."""
    for kind in ("sh", "cron"):
        for line in "".join(fenced(kind)).splitlines():
            words = shlex.split(line, comments=True)[5 if kind == "cron" else 0 :]
            while words and ("=" in words[0] or words[0] in {"runuser", "-u", "--", "dicomsort"} - {words[-1]}):
                if words[0] == "dicomsort" and words[1:2] != ["--"]:
                    break
                words.pop(0)
            if words and words[0].endswith("dicomsort"):
                yield words[1:]


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    group = typer.main.get_command(app)
    known = {option for parameter in group.params for option in parameter.opts}
    if words[0] in group.commands:  # type: ignore[attr-defined]
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
    else:
        assert words[0].startswith("--")
    assert {word for word in words if word.startswith("--")} <= known


def test_every_command_is_in_the_manual_and_its_help_has_an_example() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"dicomsort {name} " in text or f"dicomsort {name}\n" in text or f"`dicomsort {name}`" in text, name
        assert "Example" in run(name, "--help").out, name
        assert f"dicomsort {name}" in " ".join(str(command.help).split()), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_make_targets_links_and_anchors_exist(path: Path) -> None:
    text, makefile = path.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_alerts_and_panel_use_figures_that_there_are() -> None:
    for name in ("alerts.yml", "grafana-panel.json"):
        used = set(re.findall(r"\bdicomsort_\w+", (ROOT / "deploy" / name).read_text(encoding="utf-8")))
        assert used
        assert used <= set(FAMILIES), name
    json.loads((ROOT / "deploy" / "grafana-panel.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "lines"), [("README.md", 200), ("design.md", 250)])
def test_no_page_grows_beyond_what_is_read(name: str, lines: int) -> None:
    assert len(page(name).splitlines()) <= lines


def test_exit_codes() -> None:
    codes = set(map(int, re.findall(r"^\| (\d+) \|", section("deciding.md", "## Exit codes"), re.MULTILINE)))
    errors = {DicomsortError.exit_code, UsageError.exit_code, OutboxLocked.exit_code}
    assert codes == {0, EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_NEEDS_PERSON} | errors


def test_limits() -> None:
    limits = section("README.md", "## Limits")
    assert f"{SECONDS_PER_TASK:.0f} seconds and {BYTES_PER_TASK >> 30} GiB" in limits
    assert f"{MAX_PIXELS:,} pixels" in limits
    assert f"{HEADER_LIMIT >> 20} MiB" in limits
    assert f"at most {MAX_COMPONENT} bytes each" in section("deciding.md", "## Layouts")


def test_the_configuration_of_the_service_is_one(tmp_path: Path) -> None:
    (text,) = (block for block in fenced("toml") if block.startswith("# /etc/dicomsort.toml\n"))
    file = tmp_path / "dicomsort.toml"
    file.write_text(text, encoding="utf-8")
    settings = load_watch({}, {}, file)
    assert (settings.every, settings.sort.settle, list(settings.routes)) == (60, 120, ["CT", "MRI"])
    assert f"{LONGEST_PAUSE / 60:.0f} minutes" in section("operations.md", "## As a service")
    defaults = [SORT[name].default for name in ("log_size", "log_count")]
    assert defaults == [float(size) for size in re.findall(r"\((\d+)\)", section("operations.md", "## Logs"))]
