"""The installation: versions, decoders, model, room for temporary files, limits, clock, port."""

from __future__ import annotations

import errno
import importlib.metadata
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dicomsort.bundle import Predictor, default_path, load
from dicomsort.doctor.finding import Finding, checked, fine, note, wrong
from dicomsort.engines import open_engine
from dicomsort.engines.engine import TaskLimits
from dicomsort.engines.processes import usable_cores
from dicomsort.errors import DicomsortError
from dicomsort.memory import available
from dicomsort.records import INPUT_SHAPE
from dicomsort.report.text import size
from dicomsort.training import PACKAGES

EXTRAS = {"pacs": ("pynetdicom",), "cluster": ("distributed",), "tune": ("optuna",)}
DESCRIPTORS = 256  # open files that a run may need: workers' pipes, folders, copies
TEMPORARY = 1 << 30  # bytes; the spool takes 800 a file, 1,200 where each is a series of its own
LIMITS = TaskLimits(60, 1 << 30)  # of the model's first run
_EPOCH = 1_767_225_600  # 2026-01-01; a clock before it was never set


def examine_machine(model: Path | None, port: int | None) -> Iterator[Finding]:
    """Check what does not depend on folders; ``port`` is where ``receive`` will listen, None for nowhere."""
    checks = {
        "versions": _versions(),
        "decoders": _decoders(),
        "model": _model(model or default_path()),
        "temporary folder": _temporary(),
        "limits": _limits(),
        "clock": _clock(),
        "port": _port(port),
    }
    for what, findings in checks.items():
        yield from checked(what, findings)


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in importlib.metadata.requires("dicomsort") or ()]
    installed = {
        each: _installed(each.name) for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})
    }
    missing = sorted(each.name for each, version in installed.items() if version is None and each.name in PACKAGES)
    bad = [
        wrong(
            f"expected {each}, received {version or 'none'}",
            "install the checkout or the wheel anew into an environment of its own",
        )
        for each, version in installed.items()
        if each.name not in missing and (version is None or not each.specifier.contains(version, prereleases=True))
    ]
    whole = "sorting needs" if missing else "it needs"
    own = f"dicomsort {importlib.metadata.version('dicomsort')}, Python {platform.python_version()}"
    yield from bad or [fine(f"{own}; every package that {whole} is there")]
    if missing:
        yield note(
            f"{', '.join(missing)}: not installed, so this installation sorts, and cannot train or evaluate",
            "nothing to mend; `pip install .` in a checkout, without --no-deps, brings them",
            "training",
        )
    for extra, names in EXTRAS.items():
        there = [f"{name} {version}" for name in names if (version := _installed(name))]
        yield fine(f"[{extra}]: {', '.join(there) or 'not installed'}", "extras")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _decoders() -> Iterator[Finding]:
    try:
        from dicomsort.pixels.decoders import decoder_failures
    except ImportError as error:
        yield wrong(f"expected imagecodecs, NumPy and pydicom to load, received: {error}", "install anew")
        return
    bad = [wrong(f"{name}: {error}", "install imagecodecs anew") for name, error in decoder_failures()]
    yield from bad or [fine("JPEG, JPEG lossless, JPEG-LS, JPEG 2000, HTJ2K and JPEG XL decode")]


def _model(path: Path) -> Iterator[Finding]:
    try:
        with open_engine("processes", 1, None, limits=LIMITS) as engine:
            answer = engine.submit(try_model, path).result()
    except DicomsortError as error:
        yield wrong(str(error), "name another with --model, or install the checkout or the wheel anew")
    else:
        yield fine(answer)


def try_model(path: Path) -> str:
    """Run a bundle's model once, in a worker process as a sort does; BundleError where it is not what it should be."""
    import numpy as np

    bundle = load(path)
    predictor = Predictor(bundle)
    image = np.zeros((1, *INPUT_SHAPE), np.uint8)
    predictor.predict(image)
    started = time.perf_counter()
    predictor.predict(image)
    spent = (time.perf_counter() - started) * 1000
    labels = ", ".join(bundle.labels)
    return f"{labels}; SHA-256 {bundle.model_sha256[:12]}… as bundle.json says; {spent:.0f} ms an image, in a worker"


def _temporary() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    room = f"{folder}: {size(free)} free"
    mend = "free some: a million files need 0.8 to 1.2 GB; or set TMPDIR to another"
    yield fine(room) if free >= TEMPORARY else note(room, mend)


def _limits() -> Iterator[Finding]:
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files != resource.RLIM_INFINITY and open_files < DESCRIPTORS:
        yield wrong(f"expected {DESCRIPTORS} open files, received {open_files}", "raise it: `ulimit -n 1024`")
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest != resource.RLIM_INFINITY:
        yield note(f"files may have {largest:,} bytes at most", "`ulimit -f unlimited`, or larger files fail")
    free = available()
    if free is not None and free < 2 << 30:
        yield note(f"{size(free)} of memory are free", "use fewer --workers, or free some")
    yield fine(f"{usable_cores()} cores")


def _clock() -> Iterator[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _EPOCH:
        yield wrong(f"expected a time after 2025, received {shown}", "set the clock: settling depends on it")
    else:
        yield fine(shown)


def _port(port: int | None) -> Iterator[Finding]:
    if port is None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield note(f"{port} is in use", f"by `dicomsort receive`, or else: `ss -ltnp 'sport = :{port}'`")
            else:
                mend = "ports below 1024 are root's: take 11112, or give the service CAP_NET_BIND_SERVICE"
                yield wrong(f"expected to listen on {port}, received {error.strerror}", mend)
        else:
            yield fine(f"{port} is free")
