"""Pictures of terminal runs for the README: ``python docs/make_screens.py`` (needs tmux).

Each command runs in a real terminal, on a copy of sample_data; what its screen shows at the end becomes an SVG.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 112
SCREENS = {
    "sort": ("sort", "inbox", "outbox"),
    "dry-run": ("sort", "--dry-run", "--evidence", "header", "inbox/from-modality"),
    "runs": ("runs", "outbox"),
    "undo": ("undo", "outbox"),
    "doctor": ("doctor", "--port", "11112", "inbox", "outbox"),
}
_DONE = "the-command-has-ended"


def main() -> None:
    """Make every picture, in order: later commands meet what earlier ones left."""
    if shutil.which("tmux") is None:
        sys.exit("expected tmux (Debian: tmux), received none")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "sample_data" / "inbox", Path(folder, "inbox"))
        for name, words in SCREENS.items():
            (ROOT / "docs" / f"{name}.svg").write_text(picture(words, screen(words, folder)), encoding="utf-8")
            print(f"docs/{name}.svg")


def screen(words: tuple[str, ...], folder: str) -> str:
    """Run a command in a terminal; the lines of its screen at the end, with their colours."""
    server = ["tmux", "-L", f"dicomsort-{os.getpid()}", "-f", os.devnull]
    command = f"{shlex.join([sys.executable, '-P', '-m', 'dicomsort', *words])}; echo {_DONE}; sleep 60"
    start = [*server, "new-session", "-d", "-x", str(WIDTH), "-y", "60", "-c", folder, command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    subprocess.run(start, check=True, env=environment)
    try:
        while _DONE not in (shown := captured(server)):
            time.sleep(0.2)
    finally:
        subprocess.run([*server, "kill-server"], check=True)
    return shown.partition(_DONE)[0].rstrip()


def captured(server: list[str]) -> str:
    """What the terminal shows now."""
    command = [*server, "capture-pane", "-e", "-p", "-S", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def picture(words: tuple[str, ...], shown: str) -> str:
    """An SVG of a terminal that shows the command and its output."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ dicomsort {shlex.join(words)}", style="bold"))
    console.print(Text.from_ansi(shown))
    drawn = console.export_svg(title="dicomsort", unique_id=f"screen-{words[0]}")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # nothing is fetched to show it


if __name__ == "__main__":
    main()
