"""``dicomsort doctor``: is this machine, and are these folders, fit for unattended work? A line a finding.

``machine`` checks the installation, ``folders`` an inbox and an outbox, with files of its own that it takes away,
``crontab`` the lines of one, ``commands`` what a configuration or a command line names and a command would refuse.
"""

from __future__ import annotations

from dicomsort.doctor.commands import Call, examine_call, examine_config, examine_environment
from dicomsort.doctor.crontab import Job, examine_crontab, jobs_of
from dicomsort.doctor.finding import Finding, State, wrong
from dicomsort.doctor.folders import examine_folders
from dicomsort.doctor.machine import examine_machine

__all__ = [
    "Call",
    "Finding",
    "Job",
    "State",
    "examine_call",
    "examine_config",
    "examine_crontab",
    "examine_environment",
    "examine_folders",
    "examine_machine",
    "jobs_of",
    "wrong",
]
