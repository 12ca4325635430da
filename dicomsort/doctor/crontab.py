"""The lines of a crontab that run dicomsort, as cron takes them apart: schedule, variables, command."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dicomsort.config import load_sort
from dicomsort.doctor.finding import Finding, checked, fine, note, refused, wrong

_NAMES = frozenset(
    {"@reboot", "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
    | {"@every_minute", "@every_second"}  # of FreeBSD
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# The least and the greatest number of each field, and the names that stand for numbers from the least on.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART = re.compile(r"(?:\*|(\w*)(?:([-~])(\w*))?)(?:/(\d{1,9}))?", re.ASCII)


def _schedule_problem(schedule: str) -> str:
    if schedule.startswith("@"):
        known = ", ".join(sorted(_NAMES))
        return "" if schedule.lower() in _NAMES else f"expected one of {known}, received {schedule!r}"
    for text, (name, least, most, names) in zip(schedule.split(), _FIELDS, strict=True):
        for part in text.lower().split(","):
            if not _is_part(part, least, most, names):
                return f"expected as the {name} numbers from {least} to {most}, ranges, steps or *, received {text!r}"
    return ""


def _is_part(part: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    """Whether it is ``*``, a number, a range, or a random number of one (``~``), with a step or without."""
    found = _PART.fullmatch(part)
    if found is None or not part or (found[4] and int(found[4]) == 0):
        return False
    if part.startswith("*"):
        return True
    ends = [_number(end, least, names) for end in (found[1], found[3]) if end]
    is_whole = all((found[1], found[3])) if found[2] == "-" else bool(found[1] or found[2])
    return is_whole and all(least <= end <= most for end in ends) and ends == sorted(ends)


def _number(text: str, least: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + least
    return int(text) if text.isdigit() and len(text) < 4 else -1  # noqa: PLR2004 - digits of the largest, and a zero


_JOB = re.compile(r"\s*(@\S+|(?:[^\s=#]+\s+){4}[^\s=#]+)\s+(.*)")
_VARIABLE = re.compile(r"""\s*(["']?)([^\s"'=#]+)\1\s*=(.*)""")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)")
_ENDS = re.compile(r"[;&|<>0-9]*[;&|<>].*")  # where the shell begins something else
_NO_USERS = frozenset({"env", "exec", "export", "ionice", "nice", "nohup", "time"})  # begin a command of the shell
_PATH = "/usr/bin:/bin"  # where cron looks for programs
_NO_JOB = (
    "expected NAME=VALUE, or a time in five fields (or a name as @daily) and a command behind it, received neither: "
    "cron ignores the whole file"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A line that runs dicomsort: its user ("" in a user's own crontab), program and arguments, or its ``problem``.

    ``environ`` is what the crontab, up to this line, and the line itself set: cron gives a job nothing of ours.
    """

    number: int
    problem: str
    user: str = ""
    program: str = ""
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


def jobs_of(text: str) -> Iterator[Job]:
    """Yield the jobs of a crontab, and the lines that cron cannot read; lines that run something else are left out."""
    environ: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if variable := _VARIABLE.fullmatch(line):
            environ = environ | {variable[2]: _unquoted(variable[3])}
        elif line.strip() and not line.lstrip().startswith("#") and (job := _job_of(number, line, environ)):
            yield job


def _unquoted(value: str) -> str:
    value = value.strip()
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if is_quoted else value


def _job_of(number: int, line: str, environ: Mapping[str, str]) -> Job | None:
    found = _JOB.match(line)
    if found and "dicomsort" not in line:
        return None
    problem = _schedule_problem(found[1]) if found else _NO_JOB
    if "\0" in line:
        problem = "expected a command of the shell, received the character NUL"
    if problem or found is None:
        return Job(number, problem)
    command, *percent = re.split(r"(?<!\\)%", found[2], maxsplit=1)
    try:
        words = shlex.split(command.replace(r"\%", "%"))
    except ValueError as error:
        return Job(number, f"expected a command of the shell, received: {error}")
    places = [place for place, word in enumerate(words) if os.path.basename(word) == "dicomsort"]
    if not places:
        return None
    program, assigned = places[0], [_ASSIGNED.fullmatch(word.removesuffix(";")) for word in words]
    # In a crontab of the system the user comes first, and may have that very name.
    if program == 0 and places[1:] and all(assigned[1 : places[1]]):
        program = places[1]
    is_user = program > 0 and "/" not in words[0] and not assigned[0] and words[0] not in _NO_USERS
    user, arguments = words[0] if is_user and all(assigned[1:program]) else "", words[program + 1 :]
    end = next((place for place, word in enumerate(arguments) if _ENDS.fullmatch(word)), len(arguments))
    problem = "expected no % (a line feed, to cron)" if percent else ""
    whole = {**environ, **{each[1]: each[2] for each in assigned[:program] if each}}
    run = [_at_home(word, user) for word in (words[program], *arguments[:end])]
    return Job(number, problem, user, run[0], run[1:], whole)


def _at_home(word: str, user: str) -> str:
    """Return a word as the shell of that user reads it, for ~ at its beginning."""
    return os.path.expanduser(f"~{user}{word[1:]}" if word.startswith("~/") else word)


def examine_crontab(file: Path, text: str, jobs: list[Job]) -> Iterator[Finding]:
    """Check what does not depend on what the commands are."""
    if not jobs:
        message = f"expected a line that runs dicomsort, received none in {file}"
        yield wrong(message, "see deploy/crontab", "crontab")
    if text and not text.endswith("\n"):
        message = f"{file}: expected a line feed at its end, received none"
        yield wrong(message, "cron ignores the last line: add one", "crontab")
    for number, line in enumerate(text.splitlines(), 1):
        if variable := _VARIABLE.fullmatch(line):
            set_alone = {variable[2]: _unquoted(variable[3])}
            yield from refused("mend the line", partial(load_sort, {}, set_alone, None), f"crontab line {number}")
    for job in jobs:
        yield from checked(f"crontab line {job.number}", _examine_job(job))


def _examine_job(job: Job) -> Iterator[Finding]:
    if job.problem:
        yield wrong(job.problem, "mend the line")
        return
    is_found_by_cron = os.path.isabs(job.program) or "/" not in job.program
    if is_found_by_cron and shutil.which(job.program, path=job.environ.get("PATH", _PATH)) is not None:
        yield fine(f"{job.program} can be run")
    else:
        mend = "cron finds programs in /usr/bin and /bin alone: give the path of your installation"
        yield wrong(f"expected the absolute path of a program, received {job.program!r}", mend)
    if not job.user:
        return
    try:
        account = pwd.getpwnam(job.user)
    except KeyError:
        yield wrong(f"expected a user of this machine, received {job.user!r}", f"useradd --system {job.user}")
        return
    if account.pw_uid != os.geteuid():
        mend = f"run this as {job.user}: `runuser -u {job.user} -- PATH/dicomsort doctor …`"
        yield note(f"the rights were checked for you; the job runs as {job.user}", mend)
