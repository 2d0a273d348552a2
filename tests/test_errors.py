"""The error tree is as its drawing says, and each error says whose fault it is."""

import inspect
import re

import pytest

from kode_lab import errors


def drawn_parents():
    """Each class name in the drawing with the name of the class above it."""
    parents, above = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"^ {4}([│├└─ ]*)([A-Z][A-Za-z]+)\b", line):
            depth = len(match[1]) // 4
            del above[depth:]
            parents[match[2]] = above[-1] if above else None
            above.append(match[2])
    return parents


def test_the_tree_drawn_in_the_docstring_is_the_tree_there_is():
    defined = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and cls.__module__ == errors.__name__
    }
    actual = {name: cls.__bases__[0].__name__ for name, cls in defined.items()}
    actual["KodeLabError"] = None  # its parent, Exception, is not drawn
    assert drawn_parents() == actual
    assert sorted(defined) == sorted(errors.__all__)


def test_an_error_of_a_line_begins_with_its_number():
    error = errors.InvalidRecord("not JSON", line=3)
    assert str(error) == "line 3: not JSON"
    assert error.line == 3
    assert str(errors.InvalidRecord("not JSON")) == "not JSON"


def test_what_the_service_asked_us_to_wait_is_kept():
    assert errors.ModelUnavailable("429", retry_after_s=7.5).retry_after_s == 7.5
    assert errors.ModelUnavailable("no connection").retry_after_s is None


@pytest.mark.parametrize(
    ("error", "wider"),
    [
        (errors.InvalidKey, ValueError),
        (errors.UnknownAgent, LookupError),
        (errors.PortOccupied, OSError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.DeadlineExceeded, errors.TurnFailed),
        (errors.WaitingRoomFull, errors.Refused),
        (errors.StaleLease, errors.StoreError),
    ],
)
def test_who_catches_the_wider_error_catches_the_narrower(error, wider):
    assert issubclass(error, wider)
