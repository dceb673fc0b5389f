"""The asyncio forms: tasks wait for messages and for buffers while others run."""

import asyncio
import threading

import pytest

from tests.rpmsg._links import KINDS, both
from virtring import WaitTimeout
from virtring.rpmsg import Endpoint, Messages

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_echo_between_tasks(kind: str) -> None:
    ends = both(kind, 4)

    async def main() -> None:
        for bus, other in (ends, ends[::-1]):
            server = other.create_ept(addr=2000)
            clients = [bus.create_ept(dst=2000) for _ in range(5)]

            async def serve(server: Endpoint = server) -> None:
                for _ in range(200):
                    data, src = await server.arecv(10)
                    await server.asendto(data[::-1], src)

            async def ask(ept: Endpoint, k: int) -> None:
                for i in range(40):
                    text = f"client {k} asks {i}".encode()
                    await ept.asend(text)
                    assert await ept.arecv(10) == (text[::-1], 2000)

            tasks = [asyncio.create_task(serve())]
            tasks += [asyncio.create_task(ask(ept, k)) for k, ept in enumerate(clients)]
            await asyncio.gather(*tasks)
            assert (bus.rx.count, bus.tx.count, other.rx.count) == (0, 0, 0)
            server.destroy()

    asyncio.run(main())


def test_a_sender_waits_while_others_run(kind: str) -> None:
    ends = both(kind, 4)

    async def main() -> None:
        for bus, other in (ends, ends[::-1]):
            target = other.create_ept(addr=2000)
            ept = bus.create_ept(dst=2000)
            rows = Messages(30)
            rows.count = 30
            rows.len[:] = 1
            rows.data[:, 0] = range(30)
            sending = asyncio.create_task(ept.asend_many(rows))
            await asyncio.sleep(0.01)
            assert bus.sleepers == 1
            assert not sending.done()
            got = Messages(3)
            seen: list[int] = []
            while len(seen) < 30:
                count = await target.arecv_batch(got, 10)
                assert count
                seen += got.data[:count, 0].tolist()
            assert seen == list(range(30))
            assert await sending == 30
            assert bus.sleepers == 0
            other.destroy_ept(target)

    asyncio.run(main())


def test_time_outs_and_cancelled_waits(kind: str) -> None:
    bus, other = both(kind, 2, timeout=0.02)

    async def main() -> None:
        ept = bus.create_ept(addr=1, dst=2)
        with pytest.raises(WaitTimeout):
            await ept.arecv(0.01)
        assert await ept.arecv_batch(Messages(1), 0.01) == 0
        await ept.asend(b"1")
        await ept.asend(b"2")
        with pytest.raises(WaitTimeout):
            await ept.asend(b"3")
        # The one that leads the waiting is cancelled: the other one still gets its message.
        first = asyncio.create_task(ept.arecv())
        second = asyncio.create_task(ept.arecv())
        await asyncio.sleep(0.01)
        assert bus.rx.count == 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        other.send_offchannel(9, 1, b"x")
        assert await asyncio.wait_for(second, 5) == (b"x", 9)
        assert (bus.rx.count, bus.sleepers) == (0, 0)

    asyncio.run(main())


def test_threads_and_tasks_share_a_bus(kind: str) -> None:
    bus, other = both(kind, 8)
    one, two = bus.create_ept(addr=1), bus.create_ept(addr=2)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(one.recv(10)[0]))
    thread.start()

    async def main() -> None:
        waiting = asyncio.create_task(two.arecv(10))
        await asyncio.sleep(0.02)
        assert bus.rx.count == 2
        other.send_offchannel(9, 2, b"task")
        assert await waiting == (b"task", 9)
        other.send_offchannel(9, 1, b"thread")
        await asyncio.to_thread(thread.join, 10)

    asyncio.run(main())
    assert got == [b"thread"]
