"""Messages between two Python processes, over virtqueues in shared memory.

:func:`create` makes both ends of a :class:`Channel`; :func:`listen` and :func:`connect` are for
processes that have nothing in common but a path.
"""

from virtring.channel.channel import Channel
from virtring.channel.connect import (
    Listener,
    connect,
    create,
    listen,
    receive_end,
    send_end,
)
from virtring.channel.layout import Layout
from virtring.channel.receive import Borrow
from virtring.channel.send import Loan

__all__ = [
    "Borrow",
    "Channel",
    "Layout",
    "Listener",
    "Loan",
    "connect",
    "create",
    "listen",
    "receive_end",
    "send_end",
]
