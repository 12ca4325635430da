"""A connection of SQLite that counts its statements, for tests of what happens at the n-th."""

from __future__ import annotations

import sqlite3
from typing import Any


class CountedConnection(sqlite3.Connection):
    """Calls ``count_down`` before each statement."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.count_down()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self.count_down()
        return super().executemany(*arguments)

    def count_down(self) -> None:
        """Do what a test wants to happen at a statement."""
        raise NotImplementedError
