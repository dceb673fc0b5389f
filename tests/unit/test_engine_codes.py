"""The engine's result codes and the exceptions they become are one list, told twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import virtring
from virtring.errors import ENGINE_CODES, BadRing, VirtioError, engine_error

PXD = Path(virtring.__file__).parent / "ring" / "common.pxd"
#: Codes that no caller sees.
SILENT = {"VR_OK", "VR_NEED_TABLE"}


def engine_codes() -> dict[str, int]:
    found = re.findall(r"^    (VR_\w+) = (\d+)", PXD.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_every_code_has_an_exception() -> None:
    codes = engine_codes()
    assert len(codes) >= 30
    assert len(set(codes.values())) == len(codes)
    told = {number for name, number in codes.items() if name not in SILENT}
    assert told == set(ENGINE_CODES)


@pytest.mark.parametrize("code", ENGINE_CODES)
def test_every_message_formats(code: int) -> None:
    error = engine_error(code, "rx 0", pos=7, val=2**64 - 1, aux=2**32 - 1)
    assert type(error) is ENGINE_CODES[code][0]
    text = str(error)
    assert text.startswith("rx 0: ")
    assert "{" not in text
    assert "}" not in text
    assert len(text) > 20
    if isinstance(error, BadRing):
        assert (error.position, error.value) == (7, 2**64 - 1)
        assert "7" in text or "{pos}" not in ENGINE_CODES[code][1]
    with pytest.raises(VirtioError, match=re.escape(text)):
        raise error


@pytest.mark.parametrize("code", ENGINE_CODES)
def test_messages_say_where(code: int) -> None:
    """Whatever the peer or a row got wrong is told with its place."""
    if code >= 10:
        assert "{pos}" in ENGINE_CODES[code][1]
