"""``dicomsort`` and ``python -m dicomsort``: hear signals first, for importing the command line takes a while."""

from __future__ import annotations

import os
import resource
import sys

from dicomsort import signals

LEAST = 96  # MiB of address space, in which the command line can be imported


def main() -> None:
    """Run the command line."""
    signals.listen()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit >> 20 < LEAST:
        expected = f"expected at least about {LEAST} MiB of address space"
        os.write(2, f"dicomsort: {expected}, received a limit of {limit >> 20} MiB; raise `ulimit -v`\n".encode())
        sys.exit(1)
    from dicomsort.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
