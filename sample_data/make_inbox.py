"""Make ``sample_data/inbox`` from the test files of the packages pydicom and pydicom-data.

``python sample_data/make_inbox.py`` writes the inbox, the README.md that lists it, and the NOTICE, beside this script;
``python sample_data/make_inbox.py FOLDER`` writes them to FOLDER. The same versions of the packages (MADE_WITH in the
README) give the same bytes.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import NamedTuple

import data_store
import pydicom.data
import recipes as r

HERE = Path(__file__).resolve().parent
PACKAGES = ("pydicom", "pydicom-data", "pillow", "numpy")
HEAD_STUDY = "1.2.276.0.7230010.3.1.2.296485376.1.1521713414.1800996"  # of 693_J2KR.dcm
SC = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage
DX = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
README_TXT = "This disc holds images in DICOM format.\nLoad the folder DICOM into a viewer to see them.\n"


class Entry(NamedTuple):
    """One file of the inbox: where it lies, the test file it comes from, how it is made, and what it is."""

    path: str
    source: str
    recipe: r.Recipe
    what: str


# fmt: off
ENTRIES = (
    # A disc that a patient brought: no suffixes, a DICOMDIR, a text file.
    Entry("CD_2019/DICOMDIR", "dicomdirtests/DICOMDIR", r.as_it_is, "DICOMDIR: an index, no image"),
    Entry("CD_2019/README.TXT", "", r.text(README_TXT), "text file"),
    Entry("CD_2019/DICOM/PA1/ST1/SE1/IM0001", "693_J2KR.dcm", r.as_it_is, "CT, head; JPEG 2000 lossless"),
    Entry("CD_2019/DICOM/PA1/ST1/SE1/IM0002", "693_J2KI.dcm", r.as_it_is, "CT, the same series; JPEG 2000 lossy"),
    Entry("CD_2019/DICOM/PA1/ST1/SR1/IM0001", "reportsi.dcm", r.joined_to(HEAD_STUDY),
          "SR: a report without pixels; made to belong to the study above, which it follows"),
    Entry("CD_2019/DICOM/PA2/ST1/SE1/IM0001", "dicomdirtests/98892001/CT2N/6293", r.as_it_is,
          "CT scout (ImageType LOCALIZER), header real, pixels reduced to 16 x 16 by its makers"),
    Entry("CD_2019/DICOM/PA2/ST1/SE2/IM0001", "dicomdirtests/98892001/CT5N/2062", r.as_it_is,
          "CT, axial, the scout's study; 16 x 16"),
    Entry("CD_2019/DICOM/PA3/ST1/SE1/IM0001", "RG3_J2KI.dcm", r.as_it_is,
          "radiograph (CR), leg; MONOCHROME1, 10 bits, JPEG 2000 lossy"),
    # What the modalities sent.
    Entry("from-modality/ct/1.dcm", "CT_small.dcm", r.as_it_is, "CT, spine; 128 x 128, uncompressed"),
    Entry("from-modality/ct/abdomen 0001.dcm", "explicit_VR-UN.dcm", r.as_it_is, "CT, abdomen; tags of unknown VR"),
    Entry("from-modality/ct/head 0001.dcm", "J2K_pixelrep_mismatch.dcm", r.as_it_is,
          "CT, skull base; pixel representation contradicts its JPEG 2000 stream"),
    Entry("from-modality/ct/neck 0001.dcm", "bad_sequence.dcm", r.as_it_is,
          "CT, neck; lossless JPEG, a sequence in the wrong encoding, UIDs that are none"),
    Entry("from-modality/ct/perfusion.dcm", "eCT_Supplemental.dcm", r.as_it_is, "CT, enhanced: 2 frames, perfusion"),
    Entry("from-modality/ct/sent again/1.dcm", "CT_small.dcm", r.edited_pixels,
          "CT with the UIDs of from-modality/ct/1.dcm and other content: its upper quarter blanked"),
    Entry("from-modality/mr/shoulder.dcm", "MR2_J2KI.dcm", r.as_it_is, "MR, shoulder; JPEG 2000 lossy"),
    Entry("from-modality/mr/enhanced.dcm", "emri_small_jpeg_ls_lossless.dcm", r.as_it_is,
          "MR, enhanced: 10 frames, JPEG-LS lossless"),
    Entry("from-modality/mr/SE2/1", "MR_small_RLE.dcm", r.as_instance(1), "MR; RLE; made instance 1"),
    Entry("from-modality/mr/SE2/2", "MR_small_bigendian.dcm", r.as_instance(2), "MR; big endian; made instance 2"),
    Entry("from-modality/mr/SE2/3", "MR_small_implicit.dcm", r.chain(r.as_instance(3), r.without_preamble),
          "MR; no preamble, implicit VR; made instance 3, preamble and meta information cut off"),
    Entry("from-modality/mr/SE2/4", "MR_truncated.dcm", r.as_instance(4), "MR; pixel data cut short; made instance 4"),
    Entry("from-modality/cr/chest.dcm", "RG1_J2KI.dcm", r.as_it_is, "radiograph (CR), chest; MONOCHROME1, JPEG 2000"),
    Entry("from-modality/dx/hand-held.dcm", "RG1_UNCR.dcm",
          r.reduced(5, "dx", SOPClassUID=DX, Modality="DX", PresentationIntentType="FOR PRESENTATION"),
          "radiograph (DX), chest; a fifth as high and wide, retagged from CR"),
    Entry("from-modality/us/lymph node.dcm", "US1_J2KI.dcm", r.as_it_is, "ultrasound, colour (YBR_ICT)"),
    Entry("from-modality/us/heart.dcm", "examples_ybr_color.dcm", r.as_it_is, "ultrasound, 30 frames; JPEG baseline"),
    Entry("from-modality/nm/bones.dcm", "JPGExtended.dcm", r.as_it_is, "nuclear medicine; 12-bit JPEG"),
    # What an older archive gave back: tags lost or wrong, copies.
    Entry("export/0001.dcm", "MR2_J2KI.dcm", r.retagged("mr-lost", SOPClassUID=SC, Modality=None, ImageType=None),
          "MR, shoulder, its Modality lost, now a Secondary Capture"),
    Entry("export/0002.dcm", "explicit_VR-UN.dcm", r.retagged("ct-wrong", Modality="CR"),
          "CT, abdomen, whose Modality wrongly says CR"),
    Entry("export/0003.dcm", "RG3_UNCR.dcm", r.reduced(5, "xr-lost", SOPClassUID=SC, Modality=None),
          "radiograph, leg, its Modality lost, now a Secondary Capture; a fifth as high and wide"),
    Entry("export/0004.dcm", "image_dfl.dcm", r.as_it_is, "Secondary Capture: a test pattern; deflated"),
    Entry("export/0005.dcm", "rtplan.dcm", r.as_it_is, "RT plan: no pixels, its study is not here"),
    Entry("export/IM0001 (copy).dcm", "693_J2KR.dcm", r.as_it_is, "duplicate of CD_2019/DICOM/PA1/ST1/SE1/IM0001"),
    Entry("export/study.zip", "MR_small.dcm", r.zipped("IM0001.dcm"), "ZIP archive of an MR image"),
    # What came by mail: pictures of the same studies.
    Entry("mail/CT head.png", "693_UNCR.dcm", r.as_png(256), "PNG of the CT head"),
    Entry("mail/MR shoulder 16 bit.png", "MR2_UNCR.dcm", r.as_png16(256), "PNG, 16 bits, of the MR shoulder"),
    Entry("mail/MR abdomen.jpg", "MR-SIEMENS-DICOM-WithOverlays.dcm", r.as_jpeg(400), "JPEG of an MR abdomen"),
    Entry("mail/Röntgen Bein.jpg", "RG3_UNCR.dcm", r.as_jpeg(512), "JPEG of the leg radiograph"),
    Entry("mail/IMG_2041.JPG", "RG1_UNCR.dcm", r.as_phone_jpeg(512), "JPEG of the chest radiograph, turned by EXIF"),
    Entry("mail/attachment.dcm", "CT_small.dcm", r.first_bytes(600), "damaged: CT cut off in the middle of its header"),
    Entry("mail/Thumbs.db", "", r.thumbnails_database, "Windows thumbnail database"),
)
# fmt: on


def source_bytes(name: str) -> bytes:
    """The test file ``name`` of pydicom or, failing that, of pydicom-data; empty for no name."""
    if not name:
        return b""
    folders = (Path(pydicom.data.data_manager.DATA_ROOT, "test_files"), Path(data_store.__file__).parent / "data")
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"expected {name} among the test files of pydicom or pydicom-data")
    return found.read_bytes()


def package_of(name: str) -> str:
    """The package that the test file ``name`` comes from; ``this script`` for no name."""
    if not name:
        return "this script"
    return "pydicom-data" if (Path(data_store.__file__).parent / "data" / name).is_file() else "pydicom"


def build(folder: Path) -> None:
    """Write ``inbox/``, ``README.md`` and ``NOTICE`` into ``folder``; files of these names are written anew."""
    for entry in ENTRIES:
        target = folder / "inbox" / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.recipe(source_bytes(entry.source)))
    (folder / "README.md").write_text(readme(), "utf-8")
    (folder / "NOTICE").write_text(notice(), "utf-8")


def made_with() -> str:
    """The versions that the inbox was made with, in one line."""
    return "Made with " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + "."


def readme() -> str:
    """README.md: what each file of the inbox is."""
    rows = "\n".join(f"| `{entry.path}` | {entry.what} |" for entry in ENTRIES)
    return README.format(count=len(ENTRIES), made_with=made_with(), rows=rows)


def notice() -> str:
    """NOTICE: which file comes from which test file, changed or not, and the licences of both packages."""
    lines = "\n".join(
        f"{entry.path}\n    {package_of(entry.source)}: {entry.source or '-'}"
        f"{' (unchanged)' if entry.recipe is r.as_it_is else ' (derived, see README.md)' if entry.source else ''}"
        for entry in ENTRIES
    )
    licences = "\n".join(f"\n{'=' * 20} {name} {'=' * 20}\n\n{licence(name)}" for name in ("pydicom", "pydicom-data"))
    return NOTICE.format(lines=lines, licences=licences)


def licence(package: str) -> str:
    """The licence text that ``package`` was installed with."""
    files = distribution(package).files or []
    return next(file.read_text("utf-8") for file in files if file.name == "LICENSE" and "-info" in str(file)).strip()


README = """\
# Sample data
`inbox/` looks as an inbox does: {count} real files, or files derived from real ones, from the test files of the
packages pydicom and pydicom-data (MIT, see NOTICE), which were published as anonymous test
files. `python sample_data/make_inbox.py` makes the folder, this table and NOTICE; the same versions make the same
bytes.

{made_with}

| file in `inbox/` | what it is |
|---|---|
{rows}
"""

NOTICE = """\
The files in inbox/ come from the test files of the Python packages pydicom and pydicom-data, both under the MIT
licence. What each test file is and who provided it stands in pydicom's own list, its test_files/README.txt.

{lines}
{licences}
"""

if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
