"""``dicomsort doctor``: is this machine, and are these folders, fit for unattended work? A line a finding.

``machine`` looks at the installation, ``folders`` at an inbox and an outbox, with files of its own that it takes away.
"""

from __future__ import annotations

from dicomsort.doctor.finding import Finding, State
from dicomsort.doctor.folders import examine_folders
from dicomsort.doctor.machine import examine_machine

__all__ = ["Finding", "State", "examine_folders", "examine_machine"]
