from typing import Self

from _typeshed import WriteableBuffer

class DirtyPages:
    def __new__(cls, bits: WriteableBuffer) -> Self: ...
    @property
    def size(self) -> int: ...

class DirtyLog:
    pages: DirtyPages | None
    buffers: bool
    used: int | None
    def __new__(cls) -> Self: ...
