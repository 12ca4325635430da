"""What descriptions name: a modality in words, which decides nothing alone, for it is typed by people.

Study Description (0008,1030) and Series Description (0008,103E) are free text (PS3.3 C.7.2.1, C.7.3.1), and so is, in
the field, a Modality (0008,0060) that is no defined term. A study's words may speak of another of its series.
"""

from __future__ import annotations

import re
from typing import Final

from dicomsort.modalities import CT, MRI, XRAY, modality_category
from dicomsort.records import Header

_OTHERS: Final = "OTHER"
_WORDS: Final[dict[str, str]] = {
    word: category
    for category, words in {
        CT: "CT CTA CAT CBCT HRCT TDM TAC",
        MRI: "MR MRI MRA MRCP FMRI IRM RMN NMR MRT",
        XRAY: "XR XRAY CR DX DR RX RADIOGRAPH RADIOGRAPHY MAMMO MAMMOGRAM MAMMOGRAPHY",
        _OTHERS: "US ULTRASOUND SONO SONOGRAPHY ECHO DOPPLER PET PT NM SPECT ECG ENDOSCOPY",
    }.items()
    for word in words.split()
}
_X_RAY: Final = re.compile(r"\bX[ -]RAYS?\b")
_WORD: Final = re.compile(r"[A-Z]+")


def hinted(header: Header) -> str:
    """The one category, CT, MRI or XRAY, that the header's words name; empty where they name none or several."""
    texts = [header.study_description, header.series_description]
    if modality_category(header.modality) is None:
        texts.append(header.modality)
    plain = _X_RAY.sub("XRAY", " ".join(texts).upper())
    named = {_WORDS[word] for word in _WORD.findall(plain) if word in _WORDS}
    return named.pop() if len(named) == 1 and _OTHERS not in named else ""
