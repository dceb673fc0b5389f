"""Runs ringloop over both layouts and checks the data and the tokens; prints ``ok``."""

import ringloop

import virtring

N = 200
TIMES = 1000

for packed in (False, True):
    vq, dq = virtring.create_pair(256, packed=packed)
    pool = virtring.BufferPool(vq.memory, N, 48)
    pool.array[:] = 0
    add, dev, got = virtring.Batch(N), virtring.Batch(N), virtring.Batch(N)
    add.addr[:] = pool.addrs
    add.len[:] = 48
    add.token[:] = range(1, N + 1)

    code, total, tokens = ringloop.rounds(vq, dq, add, dev, got, N, TIMES)
    assert code == 0, code
    assert total == N * TIMES, total
    assert tokens == TIMES * N * (N + 1) // 2, tokens
    assert (pool.array[:, :48] == TIMES % 256).all()
    # The same queue goes on from Python.
    assert vq.num_free == 256
    vq.add_inbuf(pool[0], "mine")
    chain = dq.next_chain()
    chain.write(b"python")
    chain.return_()
    assert vq.get_buf() == ("mine", 6)
    assert bytes(pool[0].view[:6]) == b"python"
print("ok")
