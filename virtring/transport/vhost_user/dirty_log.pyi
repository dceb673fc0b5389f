from typing import Self

from _typeshed import WriteableBuffer

class DirtyPages:
    def __new__(cls, bits: WriteableBuffer) -> Self: ...
    @property
    def size(self) -> int: ...

class DirtyLog:
    pages: DirtyPages | None
    buffers: bool
    def __new__(cls) -> Self: ...
    @property
    def used(self) -> int | None: ...
    @used.setter
    def used(self, value: int | None) -> None: ...
