from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from _typeshed import ReadableBuffer
from numpy.typing import NDArray

from virtring.memory.pool import Buffer
from virtring.queue.batch import Batch
from virtring.queue.driver_ring import DriverRing

# One buffer: of a pool, or anything contiguous inside the guest memory.
_Sg: TypeAlias = Buffer | ReadableBuffer | NDArray[Any]
# A list or a tuple, in fact; but a list is not covariant.
_SgOrList: TypeAlias = _Sg | Sequence[_Sg]
_Sgs: TypeAlias = Collection[_Sg]
_Pairs: TypeAlias = Collection[tuple[int, int]]

class DriverAdd(DriverRing):
    @property
    def notify_cb(self) -> Callable[[Any], bool | None] | None: ...
    def virtqueue_add(
        self,
        out_sgs: _Sgs | _Pairs,
        in_sgs: _Sgs | _Pairs,
        data: object,
        *,
        ctx: object = None,
        rpmsg: bool = False,
        premapped: bool = False,
    ) -> None: ...
    def add_sgs(self, out_sgs: _Sgs, in_sgs: _Sgs, data: object) -> None: ...
    def add_inbuf_ctx(self, sg: _SgOrList, data: object, ctx: object) -> None: ...
    def add_outbuf_premapped(self, sgs: _Pairs, data: object) -> None: ...
    def add_inbuf_premapped(self, sgs: _Pairs, data: object, ctx: object = None) -> None: ...
    def add_outbuf_batch(self, batch: Batch, start: int = 0, count: int | None = None) -> int: ...
    def add_inbuf_batch(self, batch: Batch, start: int = 0, count: int | None = None) -> int: ...
    def add_sgs_batch(
        self, batch: Batch, start: int = 0, count: int | None = None, *, indirect: bool = True
    ) -> int: ...
    def notify(self) -> bool: ...
    def kick(self) -> bool: ...
    @property
    def notification_data(self) -> int: ...
