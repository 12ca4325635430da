"""Every claim of the README that can be checked: commands, options, tables, the demo's result.

``PYTHONPATH=. python tests/test_readme.py`` writes the parts between markers anew.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
from command import by_source, placed, run

from dicomsort.classify import RULES
from dicomsort.cli import EXIT_INTERRUPTED, app
from dicomsort.cli import sort as sort_command
from dicomsort.cli.console import EXIT_UNREAD
from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK
from dicomsort.config import SORT, load_watch
from dicomsort.dicom.elements import HEADER_LIMIT
from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.pixels import MAX_PIXELS
from dicomsort.plan import TOKENS
from dicomsort.plan.layout import MAX_COMPONENT
from dicomsort.report.metrics import FAMILIES
from dicomsort.service.watch import LONGEST_PAUSE

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SHOWN_FOLDERS = 2
EXCERPT = (
    "CD_2019/DICOM/PA1/ST1/SE1/IM0001",
    "CD_2019/DICOM/PA1/ST1/SR1/IM0001",
    "CD_2019/DICOM/PA2/ST1/SE1/IM0001",
    "export/0002.dcm",
    "export/study.zip",
    "export/IM0001 (copy).dcm",
    "from-modality/ct/sent again/1.dcm",
    "from-modality/us/heart.dcm",
    "mail/CT head.png",
    "mail/attachment.dcm",
)
CELLS = ("source", "status", "class", "reason", "decided_by", "header_class", "pixel_class")


def demo(folder: Path) -> Path:
    """The outbox of the demo's sort."""
    outbox = folder / "outbox"
    assert run("sort", "--engine", "serial", "--quiet", ROOT / "sample_data" / "inbox", outbox).code == 3
    return outbox


def tree(outbox: Path) -> str:
    """The outbox as a tree, UIDs shortened, the first files of each folder of a class."""
    lines = ["```", "outbox/"]
    tops: dict[str, list[str]] = {}
    for path in placed(outbox):
        tops.setdefault(path.split("/")[0], []).append(path)
    for top, paths in tops.items():
        lines += [f"  {short(path)}" for path in paths[:SHOWN_FOLDERS]]
        if len(paths) > SHOWN_FOLDERS:
            lines.append(f"  {top}/… {len(paths) - SHOWN_FOLDERS} more")
    return "\n".join([*lines, "  manifest.csv", "```"])


def short(path: str) -> str:
    parts = path.split("/")
    return "/".join(f"{part[:6]}…{part[-8:]}" if re.fullmatch(r"[0-9.]{18,}(dcm)?", part) else part for part in parts)


def manifest(outbox: Path) -> str:
    found = by_source(outbox)
    head = [f"| {' | '.join(CELLS)} |", "|" + "---|" * len(CELLS)]
    return "\n".join([*head, *(f"| {' | '.join(found[source][cell] for cell in CELLS)} |" for source in EXCERPT)])


def rules(_: Path) -> str:
    lines = [f"| {number} | `{rule.name}` | {rule.when} | {rule.then} |" for number, rule in enumerate(RULES, 1)]
    return "\n".join(["| | rule | when | then |", "|---|---|---|---|", *lines])


def tokens(_: Path) -> str:
    lines = [f"| `{{{name}}}` | {meaning} |" for name, (meaning, _) in TOKENS.items()]
    return "\n".join(["| token | value |", "|---|---|", "| `{class}` | the judged class |", *lines])


def metrics(_: Path) -> str:
    lines = [f"| `{name}` | {kind} | {help_.removesuffix('.')} |" for name, (kind, help_) in FAMILIES.items()]
    return "\n".join(["| figure | type | what it tells |", "|---|---|---|", *lines])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "tree": tree,
    "manifest": manifest,
    "rules": rules,
    "tokens": tokens,
    "metrics": metrics,
}


def block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("name", BLOCKS)
def test_generated_parts_are_what_the_program_does(name: str, outbox: Path) -> None:
    found = block(name).search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == BLOCKS[name](outbox)


def commands() -> Iterator[list[str]]:
    """Every line of the README's shell and cron blocks that runs dicomsort, as words."""
    for kind, text in re.findall(r"```(sh|cron)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)[5 if kind == "cron" else 0 :]
            while words and "=" in words[0]:
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


def test_every_command_is_in_the_readme_and_its_help_has_an_example() -> None:
    text = README.read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"dicomsort {name} " in text or f"dicomsort {name}\n" in text or f"`dicomsort {name}`" in text, name
        assert "Example" in run(name, "--help").out, name
        assert f"dicomsort {name}" in " ".join(str(command.help).split()), name


def test_make_targets_and_linked_files_exist() -> None:
    text, makefile = README.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).is_file(), link


def test_exit_codes() -> None:
    codes = set(map(int, re.findall(r"^\| (\d+) \|", section("### Exit codes"), re.MULTILINE)))
    errors = {DicomsortError.exit_code, UsageError.exit_code, OutboxLocked.exit_code}
    assert codes == {0, EXIT_INTERRUPTED, EXIT_UNREAD, sort_command.NEEDS_PERSON} | errors


def section(heading: str) -> str:
    return (
        README.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    )


def test_limits() -> None:
    limits = section("## Limits")
    assert f"{SECONDS_PER_TASK:.0f} seconds and {BYTES_PER_TASK >> 30} GiB" in limits
    assert f"{MAX_PIXELS:,} pixels" in limits
    assert f"{HEADER_LIMIT >> 20} MiB" in limits
    assert f"at most {MAX_COMPONENT} bytes each" in section("### Layouts")


def test_the_configuration_of_the_service_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(# /etc/dicomsort.toml\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "dicomsort.toml"
    file.write_text(text, encoding="utf-8")
    settings = load_watch({}, {}, file)
    assert (settings.every, settings.sort.settle, list(settings.routes)) == (60, 120, ["CT", "MRI"])
    assert f"{LONGEST_PAUSE / 60:.0f} minutes" in section("### As a service")
    defaults = [SORT[name].default for name in ("log_size", "log_count")]
    assert defaults == [float(size) for size in re.findall(r"\((\d+)\)", section("### Logs"))]


def write() -> None:
    """Put what the program does between the markers."""
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        made = demo(Path(folder))
        for name, make in BLOCKS.items():
            text = re.sub(
                rf"<!-- {name} -->\n.*?<!-- /{name} -->", f"<!-- {name} -->\n<!-- /{name} -->", text, flags=re.DOTALL
            )
            text = text.replace(f"<!-- {name} -->\n", f"<!-- {name} -->\n{make(made)}\n")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
