"""Channels and the name service, announced by either side."""

import struct
from typing import Any

import pytest

from tests.rpmsg._links import KINDS, both, driver_and_raw, message
from virtring import InvalidArgument, NoSpace
from virtring.rpmsg import (
    ADDR_ANY,
    NS_ADDR,
    Channel,
    NsFlag,
    NsMessage,
    RpmsgBus,
    RpmsgDriver,
)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def announcement(name: bytes, addr: int, flags: int = 0) -> bytes:
    return struct.pack("<32sII", name, addr, flags)


def watch(names: Any, **options: Any) -> tuple[RpmsgDriver, list[tuple[str, Channel]]]:
    """A driver that writes down what happens to it."""
    seen: list[tuple[str, Channel]] = []
    return RpmsgDriver(
        names,
        probe=lambda channel: seen.append(("probe", channel)),
        remove=lambda channel: seen.append(("remove", channel)),
        **options,
    ), seen


def test_the_bytes_of_an_announcement(kind: str) -> None:
    bus, raw = driver_and_raw(kind)
    channel = bus.create_channel("rpmsg-demo", 30, driver=RpmsgDriver("rpmsg-demo"))
    assert channel.announce
    channel.destroy()
    create, destroy = [chain.read() for chain in raw.sent()]
    assert create == message(30, 53, b"rpmsg-demo".ljust(32, b"\0") + bytes([30] + [0] * 7))
    assert destroy == message(
        30, 53, b"rpmsg-demo".ljust(32, b"\0") + bytes([30, 0, 0, 0, 1, 0, 0, 0])
    )


@pytest.mark.parametrize("by_device", [False, True])
def test_an_announced_service_is_found_used_and_taken_away(kind: str, by_device: bool) -> None:
    ends: tuple[RpmsgBus, ...] = both(kind, 16)
    server, client = ends[::-1] if by_device else ends
    driver, seen = watch(("other", "upper"))
    client.register_driver(driver)
    channel = server.create_channel(
        "upper", announce=True,
        driver=RpmsgDriver("upper", lambda ept, data, src: ept.send(data.upper())),
    )
    assert channel.ept is not None
    assert (channel.src, channel.dst) == (1024, ADDR_ANY)
    client.process()
    ((what, found),) = seen
    assert (what, found.name, found.src, found.dst) == ("probe", "upper", 1024, 1024)
    assert not found.announce
    assert found.ept is not None
    found.ept.send(b"hello")
    server.process()
    # The server answers whoever talked to it first.
    assert channel.dst == channel.ept.dst == 1024
    assert found.ept.recv(1) == (b"HELLO", 1024)
    channel.destroy()
    with pytest.raises(InvalidArgument, match="not a channel"):
        channel.destroy()
    client.process()
    assert [entry[0] for entry in seen] == ["probe", "remove"]
    assert client.channels == server.channels == []
    assert set(client.endpoints) == set(server.endpoints) == {NS_ADDR}
    assert not any(client.counters.dropped.values())


def test_a_channel_waits_for_its_driver(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 16)
    raw.write(message(9, NS_ADDR, announcement(b"late", 77)))
    bus.process()
    (channel,) = bus.channels
    assert (channel.ept, channel.driver) == (None, None)
    driver, seen = watch("late")
    unrelated, nothing = watch("early")
    bus.register_driver(unrelated)
    bus.register_driver(driver)
    assert seen == [("probe", channel)]
    assert channel.ept is not None
    channel.ept.send(b"x")
    bus.unregister_driver(driver)
    assert seen == [("probe", channel), ("remove", channel)]
    assert bus.channels == [channel]
    assert channel.driver is None
    bus.register_driver(driver)
    assert len(seen) == 3
    raw.write(message(9, NS_ADDR, announcement(b"late", 77, NsFlag.DESTROY)))
    bus.process()
    assert bus.channels == []
    assert nothing == []
    # None of this is announced: the service is the other side's.
    assert [chain.read() for chain in raw.sent()] == [message(1024, 77, b"x")]


def test_without_the_feature_nothing_is_said_or_heard(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 16, features=0)
    bus.create_channel("quiet", 30, driver=RpmsgDriver("quiet")).destroy()
    assert raw.sent() == []
    raw.write(message(9, NS_ADDR, announcement(b"late", 77)))
    bus.process()
    assert bus.channels == []
    assert bus.counters.dropped["no_endpoint"] == 1


def test_bad_announcements_are_counted(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 64)
    bad = [
        b"", b"x", announcement(b"svc", 7)[:-1], announcement(b"svc", 7) + b"x",
        announcement(b"", 7), announcement(b"svc", ADDR_ANY), announcement(b"svc", 7, 1),
    ]
    for data in bad:
        raw.write(message(9, NS_ADDR, data))
    raw.write(message(9, NS_ADDR, announcement(b"svc", 7)))
    raw.write(message(9, NS_ADDR, announcement(b"svc", 7)))     # a duplicate
    raw.write(message(9, NS_ADDR, announcement(b"svc", 8)))     # another one
    bus.process()
    assert bus.counters.dropped["name_service"] == len(bad) + 1
    assert [(c.name, c.dst) for c in bus.channels] == [("svc", 7), ("svc", 8)]


def test_names_need_no_terminator_and_are_cut(kind: str) -> None:
    bus, raw = driver_and_raw(kind)
    raw.write(message(9, NS_ADDR, announcement(b"n" * 32, 7)))
    raw.write(message(9, NS_ADDR, announcement(b"\xff\xfe\0junk", 8)))
    bus.process()
    assert [c.name for c in bus.channels] == ["n" * 31, "\udcff\udcfe"]
    assert NsMessage("\udcff\udcfe", 8).pack(False) == announcement(b"\xff\xfe", 8)
    for name in ("", "n" * 32, "a\0b", b"bytes"):
        with pytest.raises(InvalidArgument, match="name"):
            bus.create_channel(name)


def test_a_peer_that_announces_for_ever_is_bounded(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 8)
    bus.max_channels = 10
    for i in range(50):
        raw.write(message(9, NS_ADDR, announcement(b"svc%d" % i, i)))
        bus.process()
    assert len(bus.channels) == 10
    assert bus.counters.dropped["name_service"] == 40


def test_similar_channels(kind: str) -> None:
    bus, _ = driver_and_raw(kind)
    bus.create_channel("svc", 5, 6)
    for src, dst in ((5, 6), (ADDR_ANY, 6), (5, ADDR_ANY), (ADDR_ANY, ADDR_ANY)):
        with pytest.raises(InvalidArgument, match="exists already"):
            bus.create_channel("svc", src, dst)
        assert bus.find_channel("svc", src, dst) is bus.channels[0]
    bus.create_channel("svc", 5, 7)
    bus.create_channel("other", 5, 6)
    assert bus.find_channel("svc", 6) is None
    assert len(bus.channels) == 3


def test_a_probe_that_fails(kind: str) -> None:
    bus, _ = driver_and_raw(kind)

    def probe(channel: Channel) -> None:
        raise OSError("no such hardware")

    bad = RpmsgDriver("svc", probe=probe)
    with pytest.raises(OSError, match="hardware"):
        bus.create_channel("svc", driver=bad)
    (channel,) = bus.channels
    assert (channel.driver, channel.ept) == (None, None)
    assert set(bus.endpoints) == {NS_ADDR}
    driver, seen = watch("svc")
    bus.register_driver(driver)
    assert seen == [("probe", channel)]


def test_an_announcement_that_cannot_be_sent_takes_the_driver_back(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 2, timeout=0.02)
    for _ in range(2):
        bus.trysend_offchannel(1, 2, b"full")
    driver, seen = watch("svc")
    with pytest.raises(TimeoutError):
        bus.create_channel("svc", announce=True, driver=driver)
    assert [what for what, _ in seen] == ["probe", "remove"]
    assert set(bus.endpoints) == {NS_ADDR}
    for chain in raw.sent():
        chain.return_(0)
    bus.register_driver(driver)
    assert len(seen) == 3
    assert raw.sent()[0].read()[:8] == message(1024, NS_ADDR, b"")[:8]
    bus.trysend_offchannel(1, 2, b"full")
    with pytest.raises(NoSpace):
        bus.trysend_offchannel(1, 2, b"full")
    # The channel goes even if that cannot be announced.
    with pytest.raises(TimeoutError):
        bus.channels[0].destroy()
    assert [what for what, _ in seen] == ["probe", "remove", "probe", "remove"]
    assert (bus.channels, set(bus.endpoints)) == ([], {NS_ADDR})


def test_a_client_that_goes_frees_the_server(kind: str) -> None:
    """Both sides announce; the one whose peer goes waits for the next."""
    driver, device = both(kind, 16)
    server = driver.create_channel("svc", announce=True, driver=RpmsgDriver("svc"))
    assert server.ept is not None
    device.send_offchannel(200, server.src, b"hi")
    assert server.ept.recv(1) == (b"hi", 200)
    assert server.dst == 200
    device.send_offchannel(200, NS_ADDR, announcement(b"svc", 200, NsFlag.DESTROY))
    driver.process()
    assert server.dst == server.ept.dst == ADDR_ANY
    device.send_offchannel(300, server.src, b"hi")
    assert server.ept.recv(1) == (b"hi", 300)
    server.ept.send(b"answer")


def test_closing_removes_quietly(kind: str) -> None:
    bus, raw = driver_and_raw(kind)
    driver, seen = watch("svc")
    bus.create_channel("svc", announce=True, driver=driver)
    bus.close()
    assert [what for what, _ in seen] == ["probe", "remove"]
    assert len(raw.sent()) == 1


def test_wrong_drivers(kind: str) -> None:
    for names in ((), "", "n" * 32, ("ok", "")):
        with pytest.raises(InvalidArgument):
            RpmsgDriver(names)
    with pytest.raises(InvalidArgument, match="not both"):
        RpmsgDriver("svc", lambda *_: None, lambda *_: None)
