"""What users say is made safe to send."""

from __future__ import annotations

import traceback
from typing import Any

import msgpack
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.text import (
    LEAST_CHARS,
    MOST_CHARS,
    MOST_TOGETHER,
    bounded,
    brief,
    check_name,
    error_text,
    plain,
    shown,
)


class Mute(Exception):
    """Cannot be written, nor shown."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise KeyError("no name")


class Nameless(Mute, metaclass=Meta):
    pass


class Odd(Exception):
    """Its attributes raise, those that Python looks at when it writes a traceback among them."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class NotAText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_lone_surrogate_and_controls_are_written_as_escapes() -> None:
    assert plain("x \udce9 \x1b[31m\x00\r\ttab\nline \x85") == "x \\udce9 \\x1b[31m\\x00\\x0d\ttab\nline \\x85"
    assert plain("é ✓ 𝄞") == "é ✓ 𝄞"


def test_a_long_text_loses_its_middle_and_says_so() -> None:
    text = plain("a" * 5_000_000 + "end")
    assert len(text) == MOST_CHARS
    assert text.startswith("aaa")
    assert " ... 5000003 characters in all ... " in text
    assert text.endswith("aend")
    assert len(plain("\udce9" * 5_000_000)) == MOST_CHARS


@pytest.mark.parametrize("kind", ["Mute", "Nameless", "Odd", "NotAText"])
def test_what_cannot_be_written_is_named_all_the_same(kind: str) -> None:
    error = globals()[kind]("x")
    for text in (plain(error), shown(error), brief(error), error_text(error)):
        assert 0 < len(text) < 2_000
        msgpack.packb(text)


def test_a_traceback_is_that_of_python() -> None:
    found = []
    try:
        int("x")
    except ValueError as error:
        found = [error_text(error), traceback.format_exc()]
    assert found[0] == found[1]


def test_a_huge_message_is_cut_wherever_it_is_in_the_chain() -> None:
    try:
        try:
            raise ValueError("first " + "x" * 10_000_000)
        except ValueError as error:
            raise ExceptionGroup("group", [KeyError("y" * 1000), RuntimeError("z" * 10_000_000)]) from error
    except ExceptionGroup as error:
        text = error_text(error)
    assert len(text) <= MOST_CHARS
    assert "first xxx" in text
    assert error_text(raised(ValueError("\udce9"))).endswith("ValueError: \\udce9\n")


def test_errors_of_a_large_batch_fit_a_frame_together() -> None:
    long = "head " + "x" * 100_000 + " tail"
    few, many = bounded(dict.fromkeys(range(3), long)), bounded(dict.fromkeys(range(100_000), long))
    assert [len(text) for text in few.values()] == [MOST_CHARS] * 3
    assert {len(text) for text in many.values()} == {LEAST_CHARS}
    mid = bounded({i: f"{i} {long}" for i in range(1024)})
    assert sum(map(len, mid.values())) <= MOST_TOGETHER
    assert mid[7].startswith("7 head")
    assert mid[7].endswith(" tail")


def test_names_are_printable_and_of_bounded_length() -> None:
    assert check_name("model name", "résumé/v2 ✓") == "résumé/v2 ✓"
    with pytest.raises(BadInput, match="model name 3: give a non-empty string"):
        check_name("model name", 3)
    with pytest.raises(BadInput, match="model name '': give a non-empty string"):
        check_name("model name", "")
    with pytest.raises(BadInput, match=r"model name '\\ud800': it has characters that cannot be printed"):
        check_name("model name", "\ud800")
    with pytest.raises(BadInput, match="has 257 characters: the most is 256"):
        check_name("model name", "x" * 257)
