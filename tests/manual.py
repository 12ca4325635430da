"""The manual: README.md and the pages of docs, as the tests read them.

``PYTHONPATH=.:tests python tests/manual.py`` writes the parts between markers anew.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from command import by_source, placed, run

from dicomsort.classify import RULES
from dicomsort.cli import app
from dicomsort.config import TABLES
from dicomsort.config.resolve import PREFIX, SCOPED
from dicomsort.plan import TOKENS
from dicomsort.report.metrics import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
SHOWN_FOLDERS = 2
EXCERPT = (
    "CD_2019/DICOM/PA1/ST1/SE1/IM0001",
    "CD_2019/DICOM/PA1/ST1/SR1/IM0001",
    "export/0002.dcm",
    "export/study.zip!/IM0001.dcm",
    "export/IM0001 (copy).dcm",
    "from-modality/ct/sent again/1.dcm",
    "mail/CT head.png",
    "mail/attachment.dcm",
)
CELLS = ("source", "status", "class", "reason", "decided_by", "header_class", "pixel_class")


def page(name: str) -> str:
    """The text of README.md or of a page of docs, by the name of the file."""
    (found,) = (path for path in PAGES if path.name == name)
    return found.read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text below a heading of a page, up to the next of its level or of a higher one."""
    whole = page(name)
    assert whole.count(f"\n{heading}\n") == 1, heading
    level, lines, is_code = len(heading.partition(" ")[0]), list[str](), False
    for line in whole.partition(f"\n{heading}\n")[2].splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if not is_code and re.match(rf"#{{1,{level}}} ", line):
            break
        lines.append(line)
    return "".join(lines)


def fenced(kind: str) -> Iterator[str]:
    """The code blocks of a kind, of all pages."""
    for path in PAGES:
        yield from re.findall(rf"^```{kind}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def demo(folder: Path) -> Path:
    """The outbox of the demo's sort."""
    outbox = folder / "outbox"
    assert (
        run("sort", "--archives", "open", "--engine", "serial", "--quiet", ROOT / "sample_data" / "inbox", outbox).code
        == 3
    )
    return outbox


def _tree(outbox: Path) -> str:
    """The outbox as a tree, UIDs shortened, the first files of each folder of a class."""
    lines = ["```", "outbox/"]
    tops: dict[str, list[str]] = {}
    for path in placed(outbox):
        tops.setdefault(path.split("/")[0], []).append(path)
    for top, paths in tops.items():
        lines += [f"  {_short(path)}" for path in paths[:SHOWN_FOLDERS]]
        if len(paths) > SHOWN_FOLDERS:
            lines.append(f"  {top}/… {len(paths) - SHOWN_FOLDERS} more")
    return "\n".join([*lines, "  manifest.csv", "```"])


def _short(path: str) -> str:
    parts = path.split("/")
    return "/".join(f"{part[:6]}…{part[-8:]}" if re.fullmatch(r"[0-9.]{18,}(dcm)?", part) else part for part in parts)


def _manifest(outbox: Path) -> str:
    found = by_source(outbox)
    head = [f"| {' | '.join(CELLS)} |", "|" + "---|" * len(CELLS)]
    return "\n".join([*head, *(f"| {' | '.join(found[source][cell] for cell in CELLS)} |" for source in EXCERPT)])


def _rules(_: Path) -> str:
    lines = [f"| {number} | `{rule.name}` | {rule.when} | {rule.then} |" for number, rule in enumerate(RULES, 1)]
    return "\n".join(["| | rule | when | then |", "|---|---|---|---|", *lines])


def _tokens(_: Path) -> str:
    lines = [f"| `{{{name}}}` | {meaning} |" for name, (meaning, _) in TOKENS.items()]
    return "\n".join(["| token | value |", "|---|---|", "| `{class}` | the judged class |", *lines])


def _metrics(_: Path) -> str:
    lines = [f"| `{name}` | {kind} | {help_.removesuffix('.')} |" for name, (kind, help_) in FAMILIES.items()]
    return "\n".join(["| figure | type | what it tells |", "|---|---|---|", *lines])


def _options(_: Path) -> str:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n\n".join(_options_of(name, command) for name, command in commands.items())


def _options_of(name: str, command: Any) -> str:
    lines = [f"### {name}", "", str(command.help).strip().partition("\n\n")[0].replace("\n", " "), ""]
    lines += ["| option | what it does | default | variable |", "|---|---|---|---|"]
    table = TABLES.get(name, {})
    of_words = {word: key for key, option in table.items() for word, _ in option.flags_of_words}
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name == "help":
            continue
        flag = next(each for each in parameter.opts if each.startswith("--"))
        key = of_words.get(parameter.name, parameter.name)
        scope = f"{name.upper()}_" if name in SCOPED else ""
        variable = f"`{PREFIX}{scope}{key.upper()}`" if key in table else ""
        told = re.search(r" [\[(]default: (.+?)[\])]", str(parameter.help))
        words = str(parameter.help).replace(told[0], "") if told else str(parameter.help)
        words = f"{words} {_values(parameter.metavar)}".strip()
        is_word = parameter.name in of_words
        default = told[1] if told else _default(table[key].default if key in table else parameter.default)
        default = "" if is_word else default
        lines.append(f"| `{flag}` | {words.replace('|', '&#124;')} | {default} | {variable} |".replace("  ", " "))
    return "\n".join(lines)


def _values(metavar: str | None) -> str:
    """The values of an option where they are a fixed set, as its metavar lists them."""
    values = [f"`{value}`" for value in (metavar or "").split("|")]
    return f"Values: {', '.join(values)}." if metavar and metavar.islower() else ""


def _default(value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    return "on" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


BLOCKS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "tree": ("README.md", _tree),
    "manifest": ("README.md", _manifest),
    "rules": ("deciding.md", _rules),
    "tokens": ("deciding.md", _tokens),
    "metrics": ("operations.md", _metrics),
    "options": ("configuration.md", _options),
}


def block(name: str) -> re.Pattern[str]:
    """What finds the generated part of that name."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def write() -> None:
    """Put what the program does between the markers."""
    with tempfile.TemporaryDirectory() as folder:
        outbox = demo(Path(folder))
        for name, (where, make) in BLOCKS.items():
            (path,) = (path for path in PAGES if path.name == where)
            made = make(outbox) + "\n"
            path.write_text(
                block(name).sub(lambda _, made=made: made, path.read_text(encoding="utf-8")), encoding="utf-8"
            )


if __name__ == "__main__":
    write()
