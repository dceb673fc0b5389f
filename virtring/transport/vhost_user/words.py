"""vhost-user messages in words, for whoever follows a session in the log."""

from virtring.spec.status import Status
from virtring.transport.vhost_user.message import (
    CONFIG,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    INFLIGHT,
    LOG,
    MEM_REG,
    MEM_TABLE,
    NO_FD,
    REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    Message,
    Protocol,
    Request,
)
from virtring.transport.words import bits_in_words, features_in_words


def all_features_in_words(bits: int, device_id: int) -> str:
    """Virtio feature bits, and the two of the protocol among them."""
    words = []
    for bit, name in ((F_LOG_ALL, "LOG_ALL"), (F_PROTOCOL_FEATURES, "PROTOCOL_FEATURES")):
        if bits & bit:
            words.append(name)
            bits &= ~bit
    return " ".join([features_in_words(bits, device_id), *words])


def _region(data: bytes) -> str:
    guest, size, user, offset = REGION.unpack_from(data)
    return f"{size:#x} bytes at {guest:#x} ({user:#x} there, {offset:#x} in the file)"


def payload_in_words(message: Message, device_id: int) -> str:
    """What stands in a message whose size was checked already (or an answer's that we send)."""
    data = message.payload
    match message.request:
        case Request.GET_FEATURES | Request.SET_FEATURES if data:
            return all_features_in_words(U64.unpack(data)[0], device_id)
        case Request.GET_PROTOCOL_FEATURES | Request.SET_PROTOCOL_FEATURES if data:
            return bits_in_words(U64.unpack(data)[0], Protocol)
        case Request.GET_STATUS | Request.SET_STATUS if data:
            return bits_in_words(U64.unpack(data)[0], Status)
        case Request.SET_MEM_TABLE:
            count, _ = MEM_TABLE.unpack_from(data)
            parts = data[MEM_TABLE.size :]
            regions = [
                _region(parts[at : at + REGION.size])
                for at in range(0, len(parts) - REGION.size + 1, REGION.size)
            ]
            return f"{count} regions: " + "; ".join(regions)
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            return _region(data[MEM_REG.size :])
        case Request.SET_VRING_ADDR:
            index, flags, desc, used, avail, log = VRING_ADDR.unpack(data)
            logged = f", logged at {log:#x}" if flags & 1 else ""
            return f"ring {index}: desc {desc:#x}, avail {avail:#x}, used {used:#x}{logged}"
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            (value,) = U64.unpack(data)
            return f"ring {value & 0xFF}" + (", none: polled" if value & NO_FD else "")
        case (
            Request.SET_VRING_NUM
            | Request.SET_VRING_BASE
            | Request.GET_VRING_BASE
            | Request.SET_VRING_ENABLE
        ):
            index, value = VRING_STATE.unpack(data)
            return f"ring {index}: {value:#x}"
        case Request.GET_CONFIG | Request.SET_CONFIG:
            offset, size, _ = CONFIG.unpack_from(data)
            return f"{size} bytes at {offset}"
        case Request.GET_INFLIGHT_FD | Request.SET_INFLIGHT_FD:
            length, offset, queues, entries = INFLIGHT.unpack(data)
            return f"{length} bytes at {offset} for {queues} rings of {entries}"
        case Request.SET_LOG_BASE if len(data) == LOG.size:
            size, offset = LOG.unpack(data)
            return f"{size} bytes at {offset}"
    return str(U64.unpack(data)[0]) if len(data) == U64.size else ""


def in_words(message: Message, device_id: int) -> str:
    """One line."""
    text = payload_in_words(message, device_id)
    fds = f" ({len(message.fds)} fd)" if message.fds else ""
    try:
        name = Request(message.request).name
    except ValueError:
        name = f"request {message.request}"
    return f"{name}{': ' if text else ''}{text}{fds}"
