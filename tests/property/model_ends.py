"""The model's driver and device as ends of the ring machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.model import (
    Chain,
    Full,
    ModelMemory,
    PackedDevice,
    PackedDriver,
    Request,
    SplitDevice,
    SplitDriver,
)
from virtring.spec.features import Feature

from .ends import AddArgs, Element, LayoutKind, RingAddrs, RingFull


class ModelDriverEnd:
    """Uses direct chains, indirect tables and mixtures of both, as features and layout allow."""

    def __init__(
        self,
        buffer: bytearray,
        base: int,
        kind: LayoutKind,
        num: int,
        addrs: RingAddrs,
        features: Feature,
    ) -> None:
        self._kind = kind
        self._indirect = Feature.INDIRECT_DESC in features
        self._args = (ModelMemory(buffer, base), num, addrs.desc, addrs.driver, addrs.device)
        self._options = {
            "event_idx": Feature.EVENT_IDX in features,
            "indirect": self._indirect,
            "in_order": Feature.IN_ORDER in features,
        }
        self._first_table = addrs.tables
        self._begin(addrs.start)

    def _begin(self, start: int) -> None:
        """A driver that knows nothing of what was before."""
        self._driver: SplitDriver | PackedDriver
        if self._kind == "split":
            self._driver = SplitDriver(*self._args, **self._options, start=start)
        else:
            self._driver = PackedDriver(*self._args, **self._options)
        num = self._driver.num
        self._free_tables = [self._first_table + 16 * num * k for k in range(num)]
        self._tables: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return self._driver.num_free

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: int) -> None:
        self.add_many([(out, in_, token)])

    def add_many(self, requests: Sequence[AddArgs]) -> None:
        tables: dict[int, int] = {}
        some: list[Request] = []
        for out, in_, token in requests:
            # Every third buffer stays direct; of the others, some have direct elements in front.
            if not self._indirect or token % 3 == 0 or len(tables) == len(self._free_tables):
                some.append(Request(out, in_, token))
                continue
            tables[token] = table = self._free_tables[len(tables)]
            direct_first = token % (len(out) + len(in_)) if self._kind == "split" else 0
            some.append(Request(out, in_, token, table, direct_first))
        try:
            self._driver.add_many(some)
        except Full as full:
            raise RingFull from full
        del self._free_tables[: len(tables)]
        self._tables |= tables

    def kick(self) -> bool:
        return self._driver.kick_prepare()

    def get(self) -> tuple[int, int] | None:
        got = self._driver.get()
        if got is None:
            return None
        token, written = got
        assert isinstance(token, int)
        assert self._driver.excess == 0
        if token in self._tables:
            self._free_tables.append(self._tables.pop(token))
        return token, written

    def enable_cb(self) -> bool:
        return self._driver.enable_cb()

    def disable_cb(self) -> None:
        self._driver.disable_cb()

    def detach(self) -> list[int]:
        return [token for token in self._driver.detach_unused() if isinstance(token, int)]

    def reset(
        self, how: int, stop: Callable[[], None], start: Callable[[], None]
    ) -> list[int]:
        stop()
        tokens = self.detach()
        self._begin(0)
        start()
        return tokens


class ModelDeviceEnd:
    """Pushes batches with as few used entries as IN_ORDER allows."""

    def __init__(
        self,
        buffer: bytearray,
        base: int,
        kind: LayoutKind,
        num: int,
        addrs: RingAddrs,
        features: Feature,
    ) -> None:
        self._kind = kind
        self._args = (ModelMemory(buffer, base), num, addrs.desc, addrs.driver, addrs.device)
        self._options = {
            "event_idx": Feature.EVENT_IDX in features,
            "indirect": Feature.INDIRECT_DESC in features,
            "in_order": Feature.IN_ORDER in features,
        }
        self._device: SplitDevice | PackedDevice | None = None
        self._begin(addrs.start)

    def _begin(self, start: int) -> None:
        """A device that knows nothing of what was before."""
        if self._kind == "split":
            self._device = SplitDevice(*self._args, **self._options, start=start)
        else:
            self._device = PackedDevice(*self._args, **self._options)

    def stop(self) -> None:
        self._device = None

    def start(self) -> None:
        self._begin(0)

    def pop(self) -> Chain | None:
        return self._device.pop()

    def push(self, ident: int, written: int) -> None:
        self._device.push(ident, written)

    def push_many(self, done: Sequence[tuple[int, int]]) -> None:
        self._device.push_batch_in_order(done)

    def need_notify(self) -> bool:
        return self._device.need_notify()

    def enable_notify(self) -> bool:
        return self._device.enable_notify()

    def disable_notify(self) -> None:
        self._device.disable_notify()
