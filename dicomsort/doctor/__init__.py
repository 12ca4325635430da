"""``dicomsort doctor``: is this machine, and are these folders, fit for unattended work? A line a finding.

``machine`` looks at the installation, ``folders`` at an inbox and an outbox, with files of its own that it takes away,
``paths`` at what a configuration or a command line names, ``crontab`` and ``schedule`` at the lines of one,
``commands`` at what a command would refuse.
"""

from __future__ import annotations

from dicomsort.doctor.commands import Call, Outside, examine_environment, examine_settings, refusal
from dicomsort.doctor.crontab import Job, examine_crontab, jobs_of
from dicomsort.doctor.finding import Finding, State, wrong
from dicomsort.doctor.folders import examine_folders
from dicomsort.doctor.machine import examine_machine
from dicomsort.doctor.paths import examine_config, examine_values, read_config

__all__ = [
    "Call",
    "Finding",
    "Job",
    "Outside",
    "State",
    "examine_config",
    "examine_crontab",
    "examine_environment",
    "examine_folders",
    "examine_machine",
    "examine_settings",
    "examine_values",
    "jobs_of",
    "read_config",
    "refusal",
    "wrong",
]
