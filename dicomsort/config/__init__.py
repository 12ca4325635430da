"""The settings of a command: a flag beats the environment (``DICOMSORT_*``), which beats a TOML file, that the default.

``settings`` declares the options of each command, ``resolve`` finds their values; all commands may share one file and
one environment.
"""

from __future__ import annotations

from dicomsort.config.fields import Option, checked, parsed
from dicomsort.config.file import TABLES
from dicomsort.config.resolve import load_receive, load_send, load_sort, load_watch
from dicomsort.config.settings import (
    RECEIVE,
    SEND,
    SORT,
    TRAINING,
    WATCH,
    Destination,
    ReceiveSettings,
    Routes,
    SendSettings,
    SortSettings,
    TrainSettings,
    WatchSettings,
)

__all__ = [
    "RECEIVE",
    "SEND",
    "SORT",
    "TABLES",
    "TRAINING",
    "WATCH",
    "Destination",
    "Option",
    "ReceiveSettings",
    "Routes",
    "SendSettings",
    "SortSettings",
    "TrainSettings",
    "WatchSettings",
    "checked",
    "load_receive",
    "load_send",
    "load_sort",
    "load_watch",
    "parsed",
]
