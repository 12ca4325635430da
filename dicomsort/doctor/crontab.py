"""The lines of a crontab that run dicomsort, as cron takes them apart."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomsort.doctor.finding import Finding, fine, note, wrong

_JOB = re.compile(r"\s*(?:@\w+|(?:[^\s=#]+\s+){4}[^\s=#]+)\s+(.*)")
_ENDS = re.compile(r"[;&|<>0-9]*[;&|<>].*")  # where the shell begins something else


@dataclass(frozen=True, slots=True)
class Job:
    """A line that runs dicomsort: its number, its user ("" in a user's own crontab), the program, its arguments."""

    number: int
    user: str
    program: str
    arguments: list[str]
    problem: str = ""


def jobs_of(text: str) -> Iterator[Job]:
    """The jobs of a crontab; a line without dicomsort is none."""
    for number, line in enumerate(text.splitlines(), 1):
        found = _JOB.match(line)
        if found is None or "dicomsort" not in line:
            continue
        if "\0" in line:
            yield Job(number, "", "", [], "expected a command of the shell, received the character NUL")
            continue
        command, percent, _ = found[1].partition("%")
        try:
            words = shlex.split(command)
        except ValueError as error:
            yield Job(number, "", "", [], f"expected a command of the shell, received: {error}")
            continue
        program = next((place for place, word in enumerate(words) if os.path.basename(word) == "dicomsort"), None)
        # In a crontab of the system the user comes first, and may have that very name.
        if program == 0 and words[1:2] and os.path.basename(words[1]) == "dicomsort":
            program = 1
        if program is None:
            continue
        user = words[0] if program == 1 and "/" not in words[0] and "=" not in words[0] else ""
        arguments = words[program + 1 :]
        end = next((place for place, word in enumerate(arguments) if _ENDS.fullmatch(word)), len(arguments))
        problem = "expected no % (a line feed, to cron)" if percent and not command.endswith("\\") else ""
        yield Job(number, user, words[program], arguments[:end], problem)


def examine_crontab(file: Path, text: str, jobs: list[Job]) -> Iterator[Finding]:
    """Look at what does not depend on what the commands are."""
    what = "crontab"
    if not jobs:
        yield wrong(what, f"expected a line that runs dicomsort, received none in {file}", "see deploy/crontab")
    if text and not text.endswith("\n"):
        yield wrong(
            what, f"{file}: expected a line feed at its end, received none", "cron ignores the last line: add one"
        )
    for job in jobs:
        line = f"{what} line {job.number}"
        if job.problem:
            yield wrong(line, f"{job.problem}", "mend the line")
            continue
        if os.path.isabs(job.program) and os.access(job.program, os.X_OK):
            yield fine(line, f"{job.program} can be run")
        else:
            told = f"expected the absolute path of a program, received {job.program!r}"
            yield wrong(
                line, told, "cron finds programs in /usr/bin and /bin alone: give the path of your installation"
            )
        yield from _user(line, job)


def _user(line: str, job: Job) -> Iterator[Finding]:
    if not job.user:
        return
    try:
        account = pwd.getpwnam(job.user)
    except KeyError:
        yield wrong(line, f"expected a user of this machine, received {job.user!r}", f"useradd --system {job.user}")
        return
    if account.pw_uid != os.geteuid():
        mend = f"run `runuser -u {job.user} -- dicomsort doctor …`"
        yield note(line, f"it runs as {job.user}; what is said of rights here holds for you alone", mend)
