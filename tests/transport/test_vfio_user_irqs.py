"""Interrupts of the vfio-user server: SET_IRQS in all its forms."""

from __future__ import annotations

import errno
import os

import pytest

from tests.transport.vfio_client import (
    BOOL,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    TRIGGER,
    UNMASK,
    Client,
    UserFunction,
    greeted,
    refused,
    serving,
)
from virtring.queue import EventFd
from virtring.spec.pci import CommonReg, IsrStatus, MsixControl
from virtring.transport.vfio_user import VfioUserServer

server = pytest.fixture(serving)
client = pytest.fixture(greeted)


def test_vectors(client: Client) -> None:
    function = UserFunction(client)
    function.enable()
    events = [EventFd() for _ in range(4)]
    fds = [event.fileno() for event in events]
    client.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 4, fds=fds)

    def signalled() -> list[int]:
        return [event.clear() for event in events]

    client.set_irqs(NONE | TRIGGER, MSIX, 1, 2)
    assert signalled() == [0, 1, 1, 0]
    client.set_irqs(BOOL | TRIGGER, MSIX, 0, 4, b"\1\0\0\1")
    assert signalled() == [1, 0, 0, 1]
    # One of them taken back.
    client.set_irqs(EVENTFD | TRIGGER, MSIX, 3, 1)
    client.set_irqs(NONE | TRIGGER, MSIX, 0, 4)
    assert signalled() == [1, 1, 1, 0]
    # And all.
    client.set_irqs(NONE | TRIGGER, MSIX)
    client.set_irqs(NONE | TRIGGER, MSIX, 0, 4)
    assert signalled() == [0, 0, 0, 0]
    client.set_irqs(EVENTFD | TRIGGER, ERR, 0, 1, fds=fds[:1])
    function.close()
    for event in events:
        event.close()


def test_a_configuration_change_reaches_its_vector(server: VfioUserServer, client: Client) -> None:
    function = UserFunction(client)
    function.enable()
    with EventFd() as event:
        client.set_irqs(EVENTFD | TRIGGER, MSIX, 2, 1, fds=[event.fileno()])
        function.write_config(function._msix_control(), 2, int(MsixControl.ENABLE))
        function.write_bar(0, CommonReg.CONFIG_MSIX_VECTOR, 2, 2)
        for status in (1, 3):
            function.write_bar(0, CommonReg.DEVICE_STATUS, 1, status)
        for word, bits in ((0, 0), (1, 1)):
            function.write_bar(0, CommonReg.DRIVER_FEATURE_SELECT, 4, word)
            function.write_bar(0, CommonReg.DRIVER_FEATURE, 4, bits)
        for status in (11, 15):
            function.write_bar(0, CommonReg.DEVICE_STATUS, 1, status)
        assert function.read_bar(0, CommonReg.DEVICE_STATUS, 1) == 15
        # In this thread: the server's own hears of it and does it.
        server.device.update_config(0, b"\x99")
        assert event.wait(10)
        assert function.read_bar(0, 0x100, 1) == 0x99
    function.close()


def test_the_pin_is_masked_until_it_is_unmasked(server: VfioUserServer, client: Client) -> None:
    function = UserFunction(client)
    function.enable()
    with EventFd() as event:
        client.set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, fds=[event.fileno()])
        pci = server.device.core
        for status in (1, 3):
            function.write_bar(0, CommonReg.DEVICE_STATUS, 1, status)
        function.write_bar(0, CommonReg.DRIVER_FEATURE_SELECT, 4, 1)
        function.write_bar(0, CommonReg.DRIVER_FEATURE, 4, 1)
        for status in (11, 15):
            function.write_bar(0, CommonReg.DEVICE_STATUS, 1, status)
        assert function.read_bar(0, CommonReg.DEVICE_STATUS, 1) == 15
        for _ in range(3):
            pci.update_config(0, b"\x01")
        assert event.wait(10)
        client.region_size(0)
        assert event.clear() == 0
        # Still up: unmasking signals it again.
        client.set_irqs(NONE | UNMASK, INTX, 0, 1)
        assert event.clear() == 1
        client.set_irqs(NONE | MASK, INTX, 0, 1)
        client.set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\0")
        assert event.clear() == 0
        assert function.read_bar(0, 0x40, 1) == IsrStatus.CONFIG
        client.set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\1")
        assert event.clear() == 0
    function.close()


@pytest.mark.parametrize(
    ("flags", "index", "start", "count", "data"),
    [
        (EVENTFD | TRIGGER, MSIX, 0, 5, b""),
        (EVENTFD | TRIGGER, MSIX, 4, 1, b""),
        (EVENTFD | TRIGGER, MSIX, 0xFFFFFFFF, 0xFFFFFFFF, b""),
        (EVENTFD | TRIGGER, MSI, 0, 1, b""),
        (EVENTFD | TRIGGER, 5, 0, 1, b""),
        (EVENTFD | MASK, INTX, 0, 1, b""),
        (EVENTFD | UNMASK, INTX, 0, 1, b""),
        (NONE, MSIX, 0, 1, b""),
        (TRIGGER, MSIX, 0, 1, b""),
        (NONE | BOOL | TRIGGER, MSIX, 0, 1, b"\1"),
        (NONE | MASK | TRIGGER, MSIX, 0, 1, b""),
        (NONE | TRIGGER | 64, MSIX, 0, 1, b""),
        (BOOL | TRIGGER, MSIX, 0, 4, b"\1\1\1"),
        (BOOL | TRIGGER, MSIX, 0, 4, b""),
    ],
)
def test_interrupts_that_cannot_be(
    client: Client, flags: int, index: int, start: int, count: int, data: bytes
) -> None:
    with refused(errno.EINVAL):
        client.set_irqs(flags, index, start, count, data)


def test_descriptors_that_are_no_eventfds(client: Client) -> None:
    ends = os.pipe()
    with EventFd() as event:
        for fds in ([ends[1]], [event.fileno(), ends[1]], [event.fileno()] * 3):
            with refused(errno.EINVAL):
                client.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2, fds=fds)
        client.set_irqs(NONE | TRIGGER, MSIX, 0, 4)
        assert event.clear() == 0
    for end in ends:
        os.close(end)
