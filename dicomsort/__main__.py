"""``python -m dicomsort`` is the command ``dicomsort``."""

from __future__ import annotations

from dicomsort.cli import main

if __name__ == "__main__":
    main()
