"""vfio-user messages in words, for whoever follows a session in the log."""

from virtring.spec.pci import CommonReg, PciReg
from virtring.transport.pci_common import COMMON_SIZE
from virtring.transport.vfio_user.irqs import ACTIONS, DATA, IrqIndex, IrqSet
from virtring.transport.vfio_user.message import (
    DMA_IO,
    DMA_MAP,
    DMA_UNMAP,
    IRQ_INFO,
    IRQ_SET,
    REGION_INFO,
    REGION_IO,
    WRITE_MULTI,
    Command,
    Message,
)
from virtring.transport.virtio_pci import (
    DEVICE_OFFSET,
    ISR_OFFSET,
    MSIX_BAR,
    NOTIFY_BAR,
    REGISTERS_BAR,
    VirtioPci,
)

#: The region that is configuration space.
CONFIG_REGION = 7


def place_in_words(pci: VirtioPci, region: int, offset: int) -> str:
    """What is there: a register by name, or the region and the offset."""
    if region == CONFIG_REGION:
        name = f" ({PciReg(offset).name})" if offset in list(PciReg) else ""
        return f"configuration space {offset:#x}{name}"
    if region == REGISTERS_BAR and offset < COMMON_SIZE:
        reg = max(reg for reg in CommonReg if reg <= offset)
        more = f"+{offset - reg}" if offset > reg else ""
        return f"{CommonReg(reg).name.lower()}{more}"
    if region == REGISTERS_BAR and offset == ISR_OFFSET:
        return "ISR status"
    if region == REGISTERS_BAR and offset >= DEVICE_OFFSET:
        return f"device configuration {offset - DEVICE_OFFSET}"
    if region == NOTIFY_BAR and pci.notify_multiplier:
        return f"notification of queue {offset // pci.notify_multiplier}"
    kind = " (MSI-X)" if region == MSIX_BAR else ""
    return f"BAR {region} at {offset:#x}{kind}"


def number_in_words(data: bytes) -> str:
    """Little-endian bytes as a number; how many there are, if it would be too long."""
    return f"{int.from_bytes(data, 'little'):#x}" if len(data) <= 8 else f"{len(data)} bytes"


def _irqs(data: bytes) -> str:
    _, bits, index, start, count = IRQ_SET.unpack_from(data)
    flags = IrqSet(bits & int(DATA | ACTIONS))
    kind = IrqIndex(index).name if index < len(IrqIndex) else f"index {index}"
    words = " ".join(flag.name.lower() for flag in IrqSet if flag in flags and flag.name)
    return f"{kind} {start} to {start + count - 1}: {words}" if count else f"{kind}: {words}"


def payload_in_words(message: Message, pci: VirtioPci) -> str:
    """What stands in a message; nothing for one that is cut off, which is refused later."""
    data = message.payload
    size = len(data)
    match message.command:
        case Command.DMA_MAP if size >= DMA_MAP.size:
            _, flags, offset, addr, length = DMA_MAP.unpack_from(data)
            rights = ("r" if flags & 1 else "") + ("w" if flags & 2 else "")
            return f"{length:#x} bytes at {addr:#x}, {rights or 'no access'}, {offset:#x} of a file"
        case Command.DMA_UNMAP if size >= DMA_UNMAP.size:
            _, _, addr, length = DMA_UNMAP.unpack_from(data)
            return f"{length:#x} bytes at {addr:#x}"
        case Command.DMA_READ | Command.DMA_WRITE if size >= DMA_IO.size:
            addr, length = DMA_IO.unpack_from(data)
            return f"{length} bytes at {addr:#x}"
        case Command.DEVICE_GET_REGION_INFO if size >= REGION_INFO.size:
            return f"region {REGION_INFO.unpack_from(data)[2]}"
        case Command.DEVICE_GET_IRQ_INFO if size >= IRQ_INFO.size:
            index = IRQ_INFO.unpack_from(data)[2]
            return IrqIndex(index).name if index < len(IrqIndex) else f"index {index}"
        case Command.DEVICE_SET_IRQS if size >= IRQ_SET.size:
            return _irqs(data)
        case Command.REGION_READ | Command.REGION_WRITE if size >= REGION_IO.size:
            offset, region, count = REGION_IO.unpack_from(data)
            value = data[REGION_IO.size :]
            rest = f" = {number_in_words(value)}" if value else f", {count} bytes"
            return place_in_words(pci, region, offset) + rest
        case Command.REGION_WRITE_MULTI if size >= WRITE_MULTI.size:
            return f"{WRITE_MULTI.unpack_from(data)[0]} writes"
    return ""


def in_words(message: Message, pci: VirtioPci) -> str:
    """One line."""
    text = payload_in_words(message, pci)
    fds = f" ({len(message.fds)} fd)" if message.fds else ""
    try:
        name = Command(message.command).name
    except ValueError:
        name = f"command {message.command}"
    return f"{name}{': ' if text else ''}{text}{fds}"
