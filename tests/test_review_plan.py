"""Whatever is decided about whatever was held: one operation a file, inside the outbox, no target twice."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dicomsort.plan import Decided, decide, parse_layout
from dicomsort.records import Examined, Found, Header, Kind, Row, Status, Verb

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0") | st.just("\udcff"), min_size=1, max_size=8)
PATHS = st.lists(NAMES.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=3).map("/".join)
LAYOUTS = st.sampled_from(["uid", "keep", "readable", "{class}/{series_description}/{patient_id}"])


class Taken:
    """An outbox in which some names are taken: by the same content (True) or by other (False)."""

    def __init__(self, taken: dict[int, bool]) -> None:
        self.taken, self.asked, self.given = taken, 0, set[str]()

    def claim(self, name: str) -> bool:
        is_free = name not in self.given
        self.given.add(name)
        return is_free

    def passable(self, path: str) -> str:
        return path

    def holds(self, destination: str, content: Examined) -> bool | None:
        self.asked += 1
        return self.taken.get(self.asked)


@st.composite
def decided(draw: st.DrawFn) -> list[Decided]:
    made, layout = [], parse_layout(draw(LAYOUTS))
    for number, source in enumerate(draw(st.lists(PATHS, min_size=1, max_size=6, unique=True))):
        uids = [f"1.2.{draw(st.integers(1, 3))}" for _ in range(3)]
        kind = draw(st.sampled_from([Kind.DICOM, Kind.PNG]))
        text = draw(NAMES)
        header = Header(
            kind, study_uid=uids[0], series_uid=uids[1], sop_uid=uids[2], series_description=text, patient_id=text
        )
        was = f"REVIEW/unsure/{source}"
        examined = Examined(Found(was, 1, 2, 3, number), header, f"{number:064x}")
        folder = draw(st.sampled_from(["CT", "XRAY", "OTHER/US", "OTHER/image"]))
        made.append(Decided(examined, Row(source, was), folder, draw(st.booleans()), layout, "by x; was y"))
    return made


def parents(paths: set[str]) -> Iterable[tuple[str, int, int]]:
    return [(path, 0o755, 1) for path in sorted(paths, reverse=True)]


@given(decided(), st.dictionaries(st.integers(1, 12), st.booleans()))
def test_every_file_has_one_operation_and_none_shares_a_target(files: list[Decided], taken: dict[int, bool]) -> None:
    operations = list(decide(files, parents, Taken(taken)))
    assert [o.number for o in operations] == list(range(len(operations)))
    own = [o for o in operations if o.verb is not Verb.REMOVE_FOLDER]
    assert sorted(o.source for o in own) == sorted(f"outbox/{f.examined.found.path}" for f in files)
    targets = [o.target for o in own if o.verb is Verb.MOVE]
    assert len(targets) == len({target.casefold() for target in targets})
    for o in own:
        assert o.row is not None
        place = o.target or o.kept
        parts = place.split("/")
        assert (o.verb is Verb.LEAVE) == (place == "")
        assert not place or (parts[0] == "outbox" and parts[1] in {"CT", "XRAY", "OTHER"})
        assert not {"", ".", ".."} & set(parts) or place == ""
        assert (o.row.reason == "reviewed") == (o.verb is not Verb.LEAVE)
        assert o.row.status in {Status.SORTED, Status.OTHER, Status.DUPLICATE, Status.IGNORED}
    kinds = [o.verb for o in operations]
    assert kinds == sorted(kinds, key=lambda v: (v is Verb.REMOVE_FOLDER, v is Verb.REMOVE))
