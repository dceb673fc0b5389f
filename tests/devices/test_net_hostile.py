"""What a driver can do wrong to the network device, and a device to its driver."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from tests.devices.binding import RINGS, Raw, bound, raw_driver
from tests.devices.test_net import MAC, Wire, frames
from virtring.device import Device
from virtring.device.packets import Packets
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.drivers.net import NetDriver
from virtring.queue import DeviceQueue
from virtring.spec.ids import DeviceID
from virtring.spec.net import NET_CONFIG, NET_HDR_V1, NetFeature

CONTROL = 2
FEATURES = (
    NetFeature.MRG_RXBUF,
    NetFeature.CTRL_VQ,
    NetFeature.CTRL_RX,
    NetFeature.CTRL_VLAN,
    NetFeature.CTRL_MAC_ADDR,
)
PLAIN = tuple(f for f in FEATURES if f != NetFeature.MRG_RXBUF)
HEADER = bytes(12)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def net(wire: Wire) -> Net:
    return Net(wire, mac=MAC)


@pytest.fixture(params=["loopback", "pci"])
def raw(net: Net, request: pytest.FixtureRequest) -> Iterator[Raw]:
    with bound(net, raw_driver(DeviceID.NET, *FEATURES, queues=3), request.param) as driver:
        yield driver


def test_transmit_chains(raw: Raw, net: Net, wire: Wire) -> None:
    frame = bytes(range(60))
    for good in (
        [HEADER + frame],
        [HEADER, frame],
        [HEADER[:5], HEADER[5:] + frame[:1], frame[1:30], frame[30:]],
        [bytes([i]) for i in HEADER + frame[:40]] + [frame[40:]],
    ):
        assert raw.send(good, [], 1)[0] == 0
        assert wire.frames.pop() == (0, frame)
    assert (net.pairs[0].malformed, net.pairs[0].transmitted) == (0, 4)
    bad = [
        ([bytes(1)], []),
        ([bytes(11)], []),
        ([HEADER], []),
        ([HEADER + frame[:13]], []),
        ([], [100]),
        ([bytes(5)], [100]),
        ([HEADER + bytes(65590)], []),
        ([HEADER] + [bytes(60)] * 65, []),
    ]
    for out, into in bad:
        written, buffers = raw.send(out, into, 1)
        assert written == 0
        assert all(bytes(view) == b"\xee" * len(view) for view in buffers)
    assert wire.frames == []
    assert net.pairs[0].malformed == len(bad)
    # Others are not affected; the longest one goes.
    longest = random.Random(0).randbytes(65589)
    raw.send([HEADER + longest], [], 1)
    assert wire.frames == [(0, longest)]
    assert not raw.needs_reset


def receive_buffers(raw: Raw, *chains: tuple[list[bytes], list[int]]) -> list[list[memoryview]]:
    made: list[list[memoryview]] = []
    for out, into in chains:
        buffers = [raw.buffer(n) for n in into]
        raw.vqs[0].add_sgs([raw.buffer(data) for data in out], buffers, len(made) + 1)
        made.append(buffers)
    return made


def used(raw: Raw) -> list[tuple[int, int]]:
    out = []
    while (got := raw.vqs[0].get_buf()) is not None:
        out.append(got)
    return out


def test_receive_chains(raw: Raw, net: Net) -> None:
    """Buffers of any shape are filled in order; those too short for a header come back empty."""
    made = receive_buffers(
        raw,
        ([], [5]),
        ([b"readable"], []),
        ([b"readable"], [3, 9]),
        ([], [12]),
        ([], [1, 7]),
        ([b"x"], [40]),
    )
    frame = bytes(range(1, 47))
    assert net.receive(Packets.of([frame])) == 1
    assert used(raw) == [(1, 0), (2, 0), (3, 12), (4, 12), (5, 8), (6, 26)]
    assert net.pairs[0].malformed == 2
    whole = b"".join(bytes(view) for view in [*made[2], *made[3], *made[4], *made[5]])
    header = np.frombuffer(whole[:12], NET_HDR_V1)[0]
    assert header["num_buffers"] == 4
    assert whole[:10] == bytes(10)
    assert whole[12 : 12 + len(frame)] == frame
    assert whole[12 + len(frame) :] == b"\xee" * (len(whole) - 12 - len(frame))


def test_too_few_buffers_for_a_merged_packet(raw: Raw, net: Net) -> None:
    """A packet takes all of its buffers at once or none; they wait for the next one."""
    receive_buffers(raw, ([], [40]), ([], [40]))
    assert net.receive(Packets.of([bytes(100), b"s" * 20])) == 1
    assert net.pairs[0].dropped == 1
    assert used(raw) == [(1, 32)]
    receive_buffers(raw, ([], [100]))
    # 28 bytes behind the header of the buffer in hand, the others in the next.
    assert net.receive(Packets.of([b"t" * 100])) == 1
    assert used(raw) == [(2, 40), (1, 72)]


def test_no_merging(net: Net) -> None:
    with bound(net, raw_driver(DeviceID.NET, *PLAIN, queues=3)) as raw:
        made = receive_buffers(raw, ([], [11]), ([], [50]), ([], [100]))
        # Too long for the first buffer that is one: dropped, the buffer stays.
        assert net.receive(Packets.of([bytes(60), b"u" * 38, b"v" * 60])) == 2
        assert net.pairs[0].dropped == net.pairs[0].malformed == 1
        assert used(raw) == [(1, 0), (2, 50), (3, 72)]
        assert bytes(made[1][0]) == bytes(10) + b"\1\0" + b"u" * 38


def test_chains_in_hand_come_back(raw: Raw, net: Net) -> None:
    """A queue that is taken away gives back what was kept for a packet that never came."""
    receive_buffers(raw, ([], [40]), ([], [40]))
    assert net.receive(Packets.of([bytes(100)])) == 0
    queue = net.queues[0]
    assert queue is not None
    assert queue.in_flight == 2
    net.stop_queue(0)
    assert used(raw) == [(1, 0), (2, 0)]
    assert net.receive(Packets.of([bytes(60)])) == 0


def test_echo_without_receive_buffers(wire: Wire) -> None:
    """The packet waits; and it is given back when its queue is taken away."""
    net = Net(Echo(), mac=MAC)
    with bound(net, raw_driver(DeviceID.NET, *FEATURES, queues=3)) as raw:
        vq = raw.vqs[1]
        for _ in range(3):
            vq.add_outbuf(raw.buffer(HEADER + b"w" * 60), object())
        vq.kick()
        assert vq.get_buf() is None
        receive_buffers(raw, ([], [100]))
        raw.vqs[0].kick()
        assert used(raw) == [(1, 72)]
        assert vq.get_buf() is not None
        assert vq.get_buf() is None
        assert net.pairs[0].transmitted == 1
        net.stop_queue(1)
        assert vq.get_buf() is not None
        assert vq.get_buf() is not None


COMMANDS = [
    b"",
    b"\0",
    b"\0\0",
    b"\0\0\0\0",
    b"\0\0\2",
    b"\0\2\1",
    b"\0\xff\1",
    b"\1\0",
    b"\1\0" + bytes(7),
    b"\1\0" + bytes(9),
    b"\1\0" + struct.pack("<I", 2) + bytes(6) + bytes(4),
    b"\1\0" + struct.pack("<II", 0, 1),
    b"\1\0" + struct.pack("<I", 0xFFFFFFFF) + bytes(100),
    b"\1\0" + struct.pack("<I", 0x2AAAAAAB) + bytes(10),
    b"\1\1" + bytes(5),
    b"\1\1" + bytes(7),
    b"\1\1" + b"\xff" * 6,
    b"\1\2" + bytes(6),
    b"\2\0",
    b"\2\0\0",
    b"\2\0\0\x10",
    b"\2\1\xff\xff",
    b"\2\2\0\0",
    # Not negotiated.
    b"\3\0",
    b"\4\0\1\0",
    b"\4\1",
    b"\5\0" + bytes(8),
    b"\xff\xff",
    b"\1\0" + bytes(1 << 15),
]


def test_garbage_commands(raw: Raw, net: Net) -> None:
    for command in COMMANDS:
        written, buffers = raw.send([command] if command else [], [3], CONTROL)
        assert written == 1
        assert bytes(buffers[0]) == b"\1\xee\xee", command
    assert net.filter.promisc
    assert bytes(raw.vdev.cread(NET_CONFIG, "mac")) == MAC
    # In pieces, and then a good one.
    written, buffers = raw.send([b"\0", b"\0", b"\0"], [1, 1], CONTROL)
    assert (written, bytes(buffers[0])) == (1, b"\0")
    assert not net.filter.promisc
    rnd = random.Random(8)
    for _ in range(300):
        command = bytes([rnd.randrange(6), rnd.randrange(4)]) + rnd.randbytes(rnd.randrange(20))
        written, buffers = raw.send([command], [1], CONTROL)
        assert written == 1
        assert buffers[0][0] in (0, 1)
    assert not raw.needs_reset


def test_command_without_room_for_the_answer(raw: Raw) -> None:
    vq = raw.vqs[CONTROL]
    vq.add_outbuf(raw.buffer(b"\0\0\0"), object())
    vq.kick()
    assert raw.needs_reset


@pytest.mark.parametrize("ring", RINGS)
def test_random_chains(ring: str) -> None:
    """Whatever lengths, ways and numbers: all comes back once, nothing beyond it is written."""
    rnd = random.Random(ring)
    net = Net(Echo(), ring_features=RINGS[ring], queue_size=64)
    with bound(net, raw_driver(DeviceID.NET, *FEATURES, queues=3), size=64 << 20) as raw:
        tx, rx = raw.vqs[1], raw.vqs[0]
        for _ in range(150):
            for _ in range(rnd.randrange(4)):
                sizes = [rnd.choice([1, 5, 12, 20, 60, 200]) for _ in range(rnd.randrange(1, 4))]
                out = [b"r"] if rnd.random() < 0.2 else []
                if rx.num_free >= 4:
                    into = [raw.buffer(n) for n in sizes]
                    rx.add_sgs([raw.buffer(d) for d in out], into, [sum(sizes)])
            rx.kick()
            sizes = [rnd.choice([1, 2, 11, 12, 14, 50, 400]) for _ in range(rnd.randrange(1, 4))]
            into = [raw.buffer(9)] if rnd.random() < 0.2 else []
            if tx.num_free >= 4:
                tx.add_sgs([raw.buffer(rnd.randbytes(n)) for n in sizes], into, object())
                tx.kick()
            while tx.get_buf() is not None:
                pass
            while (got := rx.get_buf()) is not None:
                assert got[1] <= got[0][0]
        assert not raw.needs_reset
        pair = net.pairs[0]
        assert pair.received
        assert pair.transmitted == pair.received + pair.dropped + pair.filtered


class Liar(Device):
    """A network device that says of each received packet what a test tells it to say."""

    device_id = DeviceID.NET
    queue_names = ("receiveq1", "transmitq1")

    def __init__(self) -> None:
        super().__init__(features=NetFeature.MRG_RXBUF, config=bytes(12), queue_size=16)

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        pass

    def say(self, num_buffers: int, *contents: bytes) -> None:
        queue = self.queues[0]
        assert queue is not None
        for i, data in enumerate(contents):
            chain = queue.next_chain()
            if chain is None:
                # The driver keeps the rest for a packet that says it has more to come.
                return
            head = HEADER[:10] + struct.pack("<H", num_buffers) if i == 0 else b""
            chain.write((head + data)[: chain.writable_bytes])
            chain.return_()


def test_lying_device() -> None:
    device = Liar()
    with bound(device, NetDriver) as driver:
        got = Packets(16)
        frame = bytes(range(60))
        # No buffers, more than there are, less than a header or a frame.
        for number, data in ((0, frame), (17, frame), (0xFFFF, frame), (1, bytes(13)), (1, b"")):
            device.say(number, data)
        assert driver.receive_batch(got) == 0
        assert driver.rx[0].malformed == 5
        # A packet whose rest comes later is put together all the same.
        device.say(3, frame)
        assert driver.receive_batch(got) == 0
        device.say(1, b"x" * 20, b"y" * 2000)
        assert driver.receive_batch(got) == 1
        assert got[0][:60].tobytes() == frame
        assert len(got[0]) == 60 + 32 + 2000
        device.say(1, b"z" * 60)
        assert driver.receive(1) == b"z" * 60
        # All buffers are with the device again.
        assert driver.rx[0].in_flight == 16


def test_random_lies() -> None:
    rnd = random.Random(4)
    device = Liar()
    with bound(device, NetDriver) as driver:
        got = Packets(64)
        for _ in range(300):
            got.clear()
            contents = [rnd.randbytes(rnd.choice([0, 1, 60, 2036])) for _ in range(3)]
            device.say(rnd.choice([0, 1, 2, 3, 5, 16, 17, 999]), *contents)
            driver.receive_batch(got)
            assert all(len(packet) <= 16 * 2048 for packet in got)


def test_legacy_header() -> None:
    """A transitional driver without MRG_RXBUF has 10 bytes of header."""
    from virtring.devices.net_filter import NetFilter
    from virtring.devices.net_io import NetPair
    from virtring.memory import BufferPool
    from virtring.queue import create_pair

    vq, dq = create_pair(16)
    pool = BufferPool(vq.memory, 4, 128)
    pair = NetPair(16, NetFilter(MAC))
    pair.header = 10
    some = frames(1, 9, 60, 60)
    buffers = [pool.get() for _ in range(2)]
    vq.add_inbuf(buffers[0])
    assert pair.put(vq.memory, dq, Packets.of(some)) == 1
    assert vq.get_buf() == (buffers[0], 70)
    assert bytes(buffers[0].view[:70]) == bytes(10) + some[0]
    buffers[1].view[:70] = bytes(10) + some[0]
    buffers[1].len = 70
    vq.add_outbuf(buffers[1])
    taken = Packets()
    assert pair.take(vq.memory, dq, taken) == 1
    assert taken[0].tobytes() == some[0]
