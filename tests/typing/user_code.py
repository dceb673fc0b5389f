"""Typical code of a user; must pass ``mypy --strict``. Where an ignore stands, an error must be."""

import numpy as np
from numpy.typing import NDArray

import virtring
from virtring import Batch, BufferPool, Feature, QueueConfig, Virtqueue


def both_sides() -> bytes:
    vq, dq = virtring.create_pair(256, packed=True)
    pool = BufferPool(vq.memory, 16, 4096)
    out, answer = pool.get(), pool.get()
    out.view[:4] = b"ping"
    out.len = 4
    vq.add_sgs([out], [answer], data="token")
    vq.add_outbuf(out)
    buffers = [out, answer]
    vq.add_inbuf(buffers)
    vq.add_inbuf([answer, memoryview(answer)], data=("any", "object"))
    vq.add_outbuf_premapped([(out.addr, 4)], data=1)
    if vq.kick_prepare():
        vq.notify()
    chain = dq.next_chain()
    if chain is None:
        return b""
    for descriptor in chain:
        addr: int = descriptor.addr
        data: memoryview = descriptor.data
        print(addr, data.nbytes, descriptor.writable)
    written: int = chain.write(chain.read(4).upper())
    dq.return_(chain, written)
    dq.signal()
    used = vq.get_buf()
    if used is None:
        raise RuntimeError("nothing came back")
    token, length = used
    print(token, length + 1)
    return bytes(answer.view[:length])


def batches(vq: Virtqueue, memory: virtring.GuestMemory) -> int:
    rows = Batch(256, descriptors=512)
    addresses: NDArray[np.uint64] = rows.addr
    lengths: NDArray[np.uint32] = rows.len
    flags: NDArray[np.uint16] = rows.flags
    addresses[:] = 0x10000
    lengths[:] = 64
    flags[256:] = 2
    rows.count = 256
    added: int = vq.add_outbuf_batch(rows, start=0, count=128)
    return added + vq.get_buf_batch(rows, room=10)


def kicked(vq: Virtqueue) -> bool | None:
    print(vq.index, vq.name)
    return None


def created(memory: virtring.GuestMemory) -> Virtqueue:
    vdev = virtring.RingDevice(memory, Feature.VERSION_1 | Feature.EVENT_IDX)
    vq = virtring.vring_create_virtqueue(0, 64, 64, vdev, notify=kicked, callback=kicked)
    config: QueueConfig = vq.config
    virtring.DeviceQueue(memory, config, call=lambda dq: dq.need_notify())
    virtring.virtqueue_resize(vq, 32, recycle=lambda queue, token: print(queue.name, token))
    try:
        vq.add_outbuf(b"not shared")
    except virtring.AddressError as error:
        print(error)
    except virtring.BadRing as error:
        position: int = error.position
        print(position)
    directories: list[str] = virtring.get_include()
    print(directories)
    return vq


def mistakes(vq: Virtqueue, rows: Batch) -> None:
    vq.add_outbuf(3)  # type: ignore[arg-type]
    vq.get_buf_batch(room=3)  # type: ignore[call-arg]
    rows.addr = rows.addr  # type: ignore[misc]
    wrong: NDArray[np.uint8] = rows.len  # type: ignore[assignment]
    token, length = vq.get_buf()  # type: ignore[misc]
    vq.num_free = 3  # type: ignore[misc]
    vq.no_such_call()  # type: ignore[attr-defined]
    virtring.create_pair(256, packd=True)  # type: ignore[call-arg]
    print(wrong, token, length)
