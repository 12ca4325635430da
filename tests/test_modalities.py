from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pydicom._uid_dict import UID_dictionary
from test_headers import header_of

from dicomsort import modalities
from dicomsort.modalities import (
    ASK,
    CT,
    FOLLOWS,
    MRI,
    OTHER_PREFIX,
    XRAY,
    kind_of,
    modality_category,
    sop_class_category,
)

ROOT = "1.2.840.10008.5.1.4.1.1."
NO_OBJECTS = {"Media Storage Directory Storage", "Storage Commitment Push Model SOP Class"}
NO_OBJECTS |= {"Storage Commitment Pull Model SOP Class"}
DEFINED_TERMS = (
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT "
    "IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG "
    "RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA "
    "XA XAPROTOCOL XC AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST VF"
)


def test_no_storage_class_of_the_standard_is_missing() -> None:
    storage = {
        uid: name
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and name not in NO_OBJECTS
    }
    assert len(storage) > 180
    assert {name for uid, name in storage.items() if sop_class_category(uid) is None} == set()


def test_no_defined_term_is_missing() -> None:
    assert [term for term in DEFINED_TERMS.split() if modality_category(term) is None] == []


def test_every_category_is_one_that_is_documented() -> None:
    categories = {*map(sop_class_category, modalities._SOP_CLASSES), *map(modality_category, modalities._KINDS)}
    assert {c for c in categories if c and not c.startswith(OTHER_PREFIX)} == {CT, MRI, XRAY, ASK, FOLLOWS}
    assert all(c and len(c) > len(OTHER_PREFIX) for c in categories - {CT, MRI, XRAY, ASK, FOLLOWS})


@pytest.mark.parametrize(
    ("suffix", "category"),
    [
        ("2", CT), ("2.1", CT), ("2.2", CT), ("4", MRI), ("4.1", MRI), ("4.4", MRI), ("1", XRAY), ("1.2.1", XRAY),
        ("12.2", XRAY), ("13.1.1", XRAY), ("13.1.3", XRAY), ("7", ASK), ("7.4", ASK), ("6.1", "OTHER:US"),
        ("20", "OTHER:NM"), ("128", "OTHER:PT"), ("130", "OTHER:PT"), ("88.11", FOLLOWS), ("66.4", FOLLOWS),
        ("481.1", FOLLOWS), ("481.2", FOLLOWS), ("104.1", FOLLOWS), ("77.1.6", "OTHER:SM"),
    ],
)  # fmt: skip
def test_what_a_sop_class_says(suffix: str, category: str) -> None:
    assert sop_class_category(ROOT + suffix) == category


@pytest.mark.parametrize(
    ("term", "category"),
    [
        *((term, XRAY) for term in ("CR", "DX", "RG", "MG", "XA", "RF", "PX", "IO")),
        ("CT", CT), (" CT ", CT), ("MR", MRI),
        ("US", "OTHER:US"), ("EC", "OTHER:US"), ("OT", ASK), ("SC", ASK), ("SR", FOLLOWS), ("RTDOSE", FOLLOWS),
        ("ct", None), ("CAT", None), ("MRI", None), ("XRAY", None), ("", None),
    ],
)  # fmt: skip
def test_what_a_modality_says(term: str, category: str | None) -> None:
    assert modality_category(term) == category


def test_private_and_broken_sop_classes_say_nothing() -> None:
    assert [sop_class_category(uid) for uid in ("", "1.2.3", "1.2.840.113619.4.26", ROOT, ROOT + "2 ")] == [None] * 5


def test_the_folder_below_other() -> None:
    assert kind_of(ROOT + "6.1", "") == "US"
    assert kind_of(ROOT + "88.11", "OT") == "SR"
    assert kind_of("", "RTDOSE") == "RTDOSE"
    assert kind_of("1.2.3", "EC") == "US"
    assert kind_of(ROOT + "2", "CT") == ""


def test_the_tables_agree_with_the_truth_of_the_corpus(shared: Path) -> None:
    wrong = []
    with (shared / "dicom" / "index.csv").open(encoding="utf-8", newline="") as index:
        rows = [row for row in csv.DictReader(index) if row["header_state"] == "ok"]
    for row in rows:
        if row["path"] == "trunc_900.dcm":  # the header is whole, its truth speaks of the missing pixels
            continue
        header = header_of(shared / "dicom" / row["source_id"] / row["path"])
        sop_class, modality = sop_class_category(header.sop_class_uid), modality_category(header.modality)
        decided = modality if sop_class == ASK else sop_class
        expected = {row["truth"]} if row["truth"] != "none" else {FOLLOWS, f"{OTHER_PREFIX}{header.modality}"}
        if decided not in expected and modality not in expected:
            wrong.append((row["path"], sop_class, modality))
    assert len(rows) > 400
    assert wrong == []
