"""What ``receive`` overrides and uses of the inside of pynetdicom is there, and takes the arguments it is given.

A release that changes it would fail in the midst of an association; here it fails by name.
"""

from __future__ import annotations

import ast
import inspect
import io
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from pynetdicom import _config, evt
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.timer import Timer
from pynetdicom.transport import (
    AddressInformation,
    AssociationServer,
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from dicomsort.pacs.receive import network
from dicomsort.pacs.receive.network import BoundedDimseProvider

ROOT = Path(__file__).resolve().parents[1]
RECEIVING = ROOT / "dicomsort/pacs/receive"

# The methods and functions that are overridden or called, with the names of their parameters.
SIGNATURES: list[tuple[Any, str, str]] = [
    (AssociationSocket, "__init__", "self assoc client_socket address"),
    (AssociationSocket, "recv", "self nr_bytes"),
    (StateMachine, "__init__", "self dul"),
    (StateMachine, "do_action", "self event"),
    (RequestHandler, "handle", "self"),
    (RequestHandler, "_create_association", "self"),
    (
        AssociationServer,
        "__init__",
        "self ae address ae_title contexts ssl_context evt_handlers request_handler",
    ),
    (AssociationServer, "get_request", "self"),
    (AssociationServer, "server_close", "self"),
    (AssociationServer, "shutdown", "self"),
    (ThreadedAssociationServer, "process_request", "self request client_address"),
    (ThreadedAssociationServer, "process_request_thread", "self request client_address"),
    (ThreadedAssociationServer, "finish_request", "self request client_address"),
    (ThreadedAssociationServer, "verify_request", "self request client_address"),
    (ThreadedAssociationServer, "handle_error", "self request client_address"),
    (DIMSEServiceProvider, "__init__", "self assoc"),
    (DIMSEServiceProvider, "receive_primitive", "self primitive"),
    (DIMSEServiceProvider, "get_msg", "self block"),
    (DIMSEServiceProvider, "send_msg", "self primitive context_id"),
    (DIMSEMessage, "__init__", "self"),
    (DIMSEMessage, "decode_msg", "self primitive assoc"),
    (DULServiceProvider, "kill_dul", "self"),
    (Timer, "restart", "self"),
    (ACSE, "send_reject", "self result source diagnostic"),
    (Association, "abort", "self block"),
    (Association, "kill", "self"),
    (ApplicationEntity, "__init__", "self ae_title"),
    (ApplicationEntity, "add_supported_context", "self abstract_syntax transfer_syntax scu_role scp_role"),
]
ENTITY = (
    "supported_contexts", "implementation_class_uid", "implementation_version_name", "maximum_associations",
    "maximum_pdu_size", "require_calling_aet", "network_timeout", "dimse_timeout", "acse_timeout",
)  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "expected"), SIGNATURES, ids=lambda each: getattr(each, "__name__", each))
def test_a_method_is_there_and_takes_what_it_took(owner: type, name: str, expected: str) -> None:
    found = getattr(owner, name, None)
    assert found is not None, f"pynetdicom: expected {owner.__name__}.{name}, received none"
    parameters = " ".join(inspect.signature(found).parameters)
    assert parameters == expected, f"pynetdicom: expected {owner.__name__}.{name}({expected}), received ({parameters})"


def test_all_that_is_overridden_is_named_above() -> None:
    """A method of our subclasses that pynetdicom has too is in the list, or the next one would be forgotten."""
    named = {name for _, name, _ in SIGNATURES}
    for ours in (network.Socket, network.Steps, network.Handler, network.Server, BoundedDimseProvider):
        library = {name for base in ours.__mro__[1:] if base.__module__.startswith("pynetdicom") for name in vars(base)}
        overridden = {name for name in vars(ours) if inspect.isfunction(vars(ours)[name])} & library
        assert overridden <= named, f"add to SIGNATURES: {sorted(overridden - named)} of {ours.__name__}"


def test_an_association_has_the_parts_that_are_replaced_and_used() -> None:
    entity = ApplicationEntity("TEST")
    association = Association(entity, "acceptor")
    lacks(association, "dul", "dimse", "acse", "requestor", "ae", "is_released", "abort", "kill", "is_alive", "join")
    lacks(association, "accepted_contexts", "rejected_contexts")
    association.requestor.address_info = AddressInformation("127.0.0.1", 104)
    lacks(association.requestor, "ae_title", "address", "primitive")
    lacks(
        association.dul, "event_queue", "to_user_queue", "socket", "state_machine", "kill_dul", "ident", "_idle_timer"
    )
    lacks(association.dul._idle_timer, "restart")
    lacks(association.dimse, "message", "msg_queue", "dul", "assoc")
    lacks(association.dul.state_machine, "dul")
    lacks(entity, *ENTITY)
    association.dul.socket = SimpleNamespace()  # what a connection sets, it lets be set again
    association.dul.state_machine, association.dimse = StateMachine(association.dul), DIMSEServiceProvider(association)


def test_a_socket_tells_that_it_is_connected_by_one_event() -> None:
    """``Handler`` takes the event back that the library's own socket has put, for its socket puts it again."""
    association = Association(ApplicationEntity("TEST"), "acceptor")
    AssociationSocket(association, client_socket=SimpleNamespace())  # type: ignore[arg-type]
    assert association.dul.event_queue.get_nowait() == "Evt5", "pynetdicom: expected the event of a connection"
    assert association.dul.event_queue.empty(), "pynetdicom: expected one event of a connection, received more"
    lacks(AssociationSocket(association, client_socket=SimpleNamespace()), "socket")  # type: ignore[arg-type]


def test_a_message_collects_where_it_is_told_to() -> None:
    message = DIMSEMessage()
    lacks(message, "command_set", "encoded_command_set", "data_set", "context_id")
    assert isinstance(message.encoded_command_set, io.BytesIO), "pynetdicom: expected commands in a BytesIO"
    assert issubclass(C_STORE_RQ, DIMSEMessage), "pynetdicom: expected C_STORE_RQ to be a DIMSEMessage"
    lacks(C_STORE(), "MessageID", "MessageIDBeingRespondedTo", "Status", "ErrorComment", "DataSet", "is_valid_request")


def test_the_settings_of_the_library_have_their_names() -> None:
    lacks(_config, "UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL", "VALIDATORS")
    assert "UI" in _config.VALIDATORS, "pynetdicom: expected a validator of UIDs in _config.VALIDATORS"
    lacks(evt, "EVT_REQUESTED", "EVT_ACCEPTED", "EVT_REJECTED", "EVT_C_STORE")


def lacks(thing: object, *names: str) -> None:
    missing = [name for name in names if not hasattr(thing, name)]
    what = getattr(thing, "__name__", type(thing).__name__)
    assert not missing, f"pynetdicom: expected {what} to have {', '.join(missing)}, received none"


def test_only_known_modules_of_the_library_are_imported() -> None:
    checked = {
        name
        for node in ast.walk(ast.parse(Path(__file__).read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pynetdicom")
        for name in (alias.name for alias in node.names)
    }
    for path in RECEIVING.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:  # what runs: hints are below `if TYPE_CHECKING`
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pynetdicom"):
                assert {alias.name for alias in node.names} <= checked, f"{path.name} imports what is not checked here"


def test_every_extra_bounds_the_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    groups = {**project["project"]["optional-dependencies"], **project["dependency-groups"]}
    asked = {name: each for name, group in groups.items() for each in group if each.startswith("pynetdicom")}
    assert asked == dict.fromkeys(("pacs", "dev", "sort"), "pynetdicom>=3.0.4,<3.1")
    assert "\npynetdicom==3.0.4 " in (ROOT / "requirements.lock").read_text("utf-8")
