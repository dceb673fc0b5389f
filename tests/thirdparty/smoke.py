"""What a fresh installation must be able to do: move data over both rings. Prints ``ok``."""

import shutil
import sys
from pathlib import Path

import numpy as np

import virtring

home = Path(virtring.__file__).resolve()
assert Path(sys.prefix).resolve() in home.parents, f"{home} is not of this environment"
for tool in ("gcc", "cc", "clang"):
    assert "--no-compiler" not in sys.argv or shutil.which(tool) is None, tool

for packed in (False, True):
    vq, dq = virtring.create_pair(256, packed=packed)
    pool = virtring.BufferPool(vq.memory, 256, 64)

    question, answer = pool.get(), pool.get()
    question.view[:5] = b"hello"
    question.len = 5
    vq.add_sgs([question], [answer], "one")
    assert vq.kick()
    chain = dq.next_chain()
    assert chain is not None
    assert chain.read() == b"hello"
    chain.write(b"world!")
    chain.return_()
    assert vq.get_buf() == ("one", 6)
    assert bytes(answer.view[:6]) == b"world!"

    rows, popped = virtring.Batch(256), virtring.Batch(256)
    pool.array[:, 0] = np.arange(256)
    rows.addr[:], rows.len[:], rows.token[:], rows.count = pool.addrs, 64, range(256), 256
    assert vq.add_outbuf_batch(rows) == 256
    assert dq.pop(popped) == 256
    for i in range(256):
        assert dq.memory.read(int(popped.addr[i]), 1) == bytes([i])
    assert dq.push(popped) == 256
    assert vq.get_buf_batch(rows) == 256
    assert sorted(rows.token) == list(range(256))
print("ok")
