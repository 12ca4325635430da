"""``dicomsort`` and ``python -m dicomsort``: hear signals first, for importing the command line takes a while."""

from __future__ import annotations

from dicomsort import signals


def main() -> None:
    """Run the command line."""
    signals.listen()
    from dicomsort.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
