"""A state machine that drives any driver end against any device end over shared bytes.

It plays both programs, keeps its own notes of what was sent, and checks after each step that
- buffers reach the device in order, with the same elements and the payload the driver wrote;
- each comes back exactly once, with the length and the payload the device wrote;
- ``num_free`` adds up;
- a side sleeps only if the other has nothing for it, and is woken when that changes;
- a reset gives back everything that is out, once, and the ring goes on as a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from virtring.spec.features import Feature

from .ends import (
    AddArgs,
    AheadDriverEnd,
    BatchDeviceEnd,
    BatchDriverEnd,
    DeviceEnd,
    DeviceFactory,
    DriverEnd,
    DriverFactory,
    Element,
    LayoutKind,
    RingAddrs,
    RingFull,
    VoidDeviceEnd,
)
from .sent import BLOCK, Sent, pattern, shapes

#: Guest address of the memory's first byte: not 0, and beyond 32 bits.
BASE = 0x1_0000_0000
#: What blocks hold when nobody wrote to them.
BLANK = 0xEE
SIZES: dict[LayoutKind, tuple[int, ...]] = {
    "split": (1, 2, 4, 8, 16),
    "packed": (1, 2, 3, 4, 5, 7, 8, 13),
}


class RingMachine(RuleBasedStateMachine):
    """The machine itself; :func:`run_ring_machine` makes and runs one for a pair of ends."""

    def __init__(
        self,
        make_driver: DriverFactory,
        make_device: DeviceFactory,
        kind: LayoutKind,
        features: Feature,
        sizes: Sequence[int] = (),
        starts: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        self.make_driver = make_driver
        self.make_device = make_device
        self.kind: LayoutKind = kind
        self.features = features
        self.sizes = sizes or SIZES[kind]
        self.starts = starts
        self.in_order = Feature.IN_ORDER in features
        self.indirect = Feature.INDIRECT_DESC in features
        self.ready = False

    @initialize(data=st.data())
    def create(self, data: st.DataObject) -> None:
        self.num = num = data.draw(st.sampled_from(list(self.sizes)), "num")
        start = data.draw(st.sampled_from(list(self.starts)), "start")
        self.finish_by_detach = data.draw(st.booleans(), "finish by detach")
        # Few: between two of them a ring must have time to get into some state.
        self.resets_left = data.draw(st.integers(0, 2), "resets")
        driver = BASE + 16 * num
        device = driver + -(-(6 + 2 * num) // 4) * 4
        self.ring_end = device + 6 + 8 * num
        tables = -(-self.ring_end // 16) * 16
        self.first_block = tables + 16 * num * num
        # Elements in flight: up to 8 a buffer with indirect tables, and one more batch.
        blocks = 8 * num + 3 * 16 if self.indirect else num + 3 * 16
        self.memory = bytearray(self.first_block - BASE + BLOCK * blocks)
        addrs = RingAddrs(BASE, driver, device, tables, start)
        args = (self.memory, BASE, self.kind, num, addrs, self.features)
        self.driver: DriverEnd = self.make_driver(*args)
        self.device: DeviceEnd = self.make_device(*args)
        self.free_blocks = list(range(blocks))
        self.blank_block = bytes([BLANK]) * BLOCK
        self.next_token = 1
        self.available: list[Sent] = []  # added, not popped
        self.held: list[Sent] = []  # popped, not pushed
        self.used: list[Sent] = []  # pushed, not got back
        self.driver_asleep = False
        self.device_asleep = False
        self.ready = True

    # ---- the driver's program

    @precondition(lambda self: self.ready)
    @rule(shape=shapes)
    def add(self, shape: tuple[list[int], list[int]]) -> None:
        sent = self._prepare(shape)
        if sent is None:
            return
        try:
            self.driver.add(sent.out, sent.in_, sent.token)
        except RingFull:
            assert self.driver.num_free < len(sent.segments), "full, though there is room"
            self._free_blocks_of(sent)
        else:
            self.available.append(sent)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def add_whole_ring(self, data: st.DataObject) -> None:
        """One buffer with as many elements as the ring has descriptors."""
        readable = data.draw(st.integers(0, self.num), "readable")
        self.add(([3] * readable, [5] * (self.num - readable)))

    @precondition(lambda self: self.ready and isinstance(self.driver, BatchDriverEnd))
    @rule(some=st.lists(shapes, min_size=2, max_size=4))
    def add_many(self, some: list[tuple[list[int], list[int]]]) -> None:
        assert isinstance(self.driver, BatchDriverEnd)
        batch = [sent for sent in map(self._prepare, some) if sent is not None]
        requests: list[AddArgs] = [(sent.out, sent.in_, sent.token) for sent in batch]
        before = self.driver.num_free
        try:
            self.driver.add_many(requests)
        except RingFull:
            assert self.driver.num_free == before < sum(len(sent.segments) for sent in batch)
            for sent in batch:
                self._free_blocks_of(sent)
        else:
            self.available += batch

    @precondition(lambda self: self.ready)
    @rule()
    def kick(self) -> None:
        if self.driver.kick():
            self.device_asleep = False
        assert not (self.device_asleep and self.available), "a notification to the device is lost"

    @precondition(lambda self: self.ready and not self.driver_asleep)
    @rule(most=st.integers(1, 8))
    def get(self, most: int) -> None:
        for _ in range(most):
            got = self.driver.get()
            if got is None:
                assert not self.used, "a used buffer is not seen"
                return
            self._check_got(got)

    @precondition(lambda self: self.ready and not self.driver_asleep)
    @rule()
    def disable_cb(self) -> None:
        self.driver.disable_cb()

    @precondition(lambda self: self.ready and not self.driver_asleep)
    @rule()
    def driver_sleeps(self) -> None:
        nothing = self.driver.enable_cb()
        assert nothing == (not self.used), "enable_cb is wrong about used buffers"
        self.driver_asleep = nothing

    # ---- the device's program

    @precondition(lambda self: self.ready and not self.device_asleep)
    @rule(most=st.integers(1, 8))
    def pop(self, most: int) -> None:
        for _ in range(most):
            if not self._pop():
                return

    @precondition(lambda self: self.ready and self.held)
    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        which = 0 if self.in_order else data.draw(st.integers(0, len(self.held) - 1), "which")
        sent = self.held.pop(which)
        sent.written = data.draw(st.integers(0, sent.writable), "written")
        self._write_reply(sent)
        self.device.push(sent.ident, sent.written)
        self.used.append(sent)

    @precondition(lambda self: self.ready and self.held and isinstance(self.device, BatchDeviceEnd))
    @rule(data=st.data())
    def push_many(self, data: st.DataObject) -> None:
        assert isinstance(self.device, BatchDeviceEnd)
        held = self.held if self.in_order else data.draw(st.permutations(self.held), "order")
        batch = held[: data.draw(st.integers(1, len(held)), "batch")]
        for sent in batch:
            # Only completely written buffers can be skipped, so have many of them.
            full = data.draw(st.booleans(), "full")
            sent.written = (
                sent.writable if full else data.draw(st.integers(0, sent.writable), "written")
            )
            self._write_reply(sent)
        self.device.push_many([(sent.ident, sent.written) for sent in batch])
        self.held = [sent for sent in self.held if sent not in batch]
        self.used += batch

    @precondition(lambda self: self.ready)
    @rule()
    def signal(self) -> None:
        if self.device.need_notify():
            self.driver_asleep = False
        assert not (self.driver_asleep and self.used), "a notification to the driver is lost"

    @precondition(lambda self: self.ready and not self.device_asleep)
    @rule()
    def disable_notify(self) -> None:
        self.device.disable_notify()

    @precondition(lambda self: self.ready and not self.device_asleep)
    @rule()
    def device_sleeps(self) -> None:
        nothing = self.device.enable_notify()
        assert nothing == (not self.available), "enable_notify is wrong about available buffers"
        self.device_asleep = nothing

    # ---- both programs

    @precondition(lambda self: self.ready and self.resets_left > 0)
    @rule(how=st.integers(0, 2))
    def reset(self, how: int) -> None:
        """Whatever is under way; ``how`` is for the ends to choose among the ways they have."""
        self.resets_left -= 1
        out = [*self.available, *self.held, *self.used]
        before = [self._load_all(sent) for sent in out]
        tokens = self.driver.reset(how, self.device.stop, self._start_device)
        assert sorted(tokens) == sorted(sent.token for sent in out)
        assert self.driver.num_free == self.num
        assert [self._load_all(sent) for sent in out] == before
        for sent in out:
            self._free_blocks_of(sent)
        self.available, self.held, self.used = [], [], []
        self.driver_asleep = self.device_asleep = False

    def _start_device(self) -> None:
        """The driver has made the ring anew: all zeros (2.7.1, 2.8.1), for both to begin with."""
        assert not any(self.memory[: self.ring_end - BASE])
        self.device.start()

    @precondition(
        lambda self: self.ready and isinstance(self.device, VoidDeviceEnd) and self.device.void > 0
    )
    @rule()
    def return_what_a_reset_made_void(self) -> None:
        assert isinstance(self.device, VoidDeviceEnd)
        assert not self.device.return_void(), "a chain from before the reset was taken"

    # ---- what always holds

    @precondition(lambda self: self.ready)
    @invariant()
    def descriptors_are_conserved(self) -> None:
        ahead = self.driver.ahead if isinstance(self.driver, AheadDriverEnd) else 0
        out = [*self.available, *self.held, *self.used[ahead:]]
        taken = self.num - self.driver.num_free
        most = sum(len(sent.segments) for sent in out)
        least = len(out) if self.indirect else most
        assert least <= taken <= most, f"{taken} descriptors are taken by {len(out)} buffers"

    def teardown(self) -> None:
        """Everything comes back in the end: used by the device, or detached."""
        if not self.ready:
            return
        if not self.finish_by_detach:
            while self._pop():
                pass
            while self.held:
                sent = self.held.pop(0)
                sent.written = sent.writable
                self._write_reply(sent)
                self.device.push(sent.ident, sent.written)
                self.used.append(sent)
            while self.used:
                got = self.driver.get()
                assert got is not None, "a used buffer is not seen"
                self._check_got(got)
            assert self.driver.get() is None
        left = sorted(sent.token for sent in [*self.available, *self.held, *self.used])
        assert sorted(self.driver.detach()) == left
        assert self.driver.num_free == self.num

    # ---- helpers

    def _prepare(self, shape: tuple[list[int], list[int]]) -> Sent | None:
        """Give a buffer its blocks and payload; None if it has more elements than is legal."""
        out, in_ = shape
        if len(out) + len(in_) > min(self.num, len(self.free_blocks)):
            return None
        token, self.next_token = self.next_token, self.next_token + 1
        sent = Sent(token, [self._block(n) for n in out], [self._block(n) for n in in_])
        for k, (addr, length) in enumerate(sent.out):
            self._store(addr, pattern(token, length, k))
        return sent

    def _block(self, length: int) -> Element:
        addr = self.first_block + BLOCK * self.free_blocks.pop(0)
        self._store(addr, self.blank_block)
        return addr, length

    def _free_blocks_of(self, sent: Sent) -> None:
        for addr, _, _ in sent.segments:
            self.free_blocks.append((addr - self.first_block) // BLOCK)

    def _load(self, addr: int, n: int) -> bytes:
        return bytes(self.memory[addr - BASE : addr - BASE + n])

    def _load_all(self, sent: Sent) -> list[bytes]:
        return [self._load(addr, BLOCK) for addr, _, _ in sent.segments]

    def _store(self, addr: int, data: bytes) -> None:
        self.memory[addr - BASE : addr - BASE + len(data)] = data

    def _pop(self) -> bool:
        chain = self.device.pop()
        if chain is None:
            assert not self.available, "an available buffer is not seen"
            return False
        assert self.available, f"buffer {chain.id} was never made available"
        sent = self.available.pop(0)
        assert [tuple(segment) for segment in chain.segments] == sent.segments
        for k, (addr, length) in enumerate(sent.out):
            assert self._load(addr, length) == pattern(sent.token, length, k)
        assert chain.id not in [other.ident for other in self.held], "two buffers have one id"
        sent.ident = chain.id
        self.held.append(sent)
        return True

    def _write_reply(self, sent: Sent) -> None:
        data = pattern(sent.token, sent.written, 11)
        for addr, length in sent.in_:
            self._store(addr, data[:length])
            data = data[length:]

    def _check_got(self, got: tuple[int, int]) -> None:
        token, written = got
        assert self.used, f"buffer {token} came back, but none was used"
        sent = self.used.pop(0)
        assert (token, written) == (sent.token, sent.written)
        data = b"".join(self._load(addr, length) for addr, length in sent.in_)
        assert data[:written] == pattern(token, written, 11)
        assert data[written:] == bytes([BLANK]) * (sent.writable - written)
        for addr, length, _ in sent.segments:
            assert self._load(addr + length, BLOCK - length) == self.blank_block[length:]
        self._free_blocks_of(sent)


def run_ring_machine(
    make_driver: DriverFactory,
    make_device: DeviceFactory,
    kind: LayoutKind,
    features: Feature,
    *,
    sizes: Sequence[int] = (),
    starts: Sequence[int] = (0,),
    max_examples: int = 30,
    steps: int = 60,
) -> None:
    """Run the machine for one pair of ends, one layout and one set of features.

    ``features`` counts for EVENT_IDX, INDIRECT_DESC and IN_ORDER; the layout is ``kind``.
    ``starts``: only for a pair of split ends that heed ``RingAddrs.start``.
    """

    class Machine(RingMachine):
        def __init__(self) -> None:
            super().__init__(make_driver, make_device, kind, features, sizes, starts)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
