"""``virtring demo``: a device and its driver in one process, at visible work."""

import click

from virtring.cli.demo_run import DEMOS, plug
from virtring.transport.connect import KINDS


@click.command()
@click.argument("device", type=click.Choice(sorted(DEMOS)), metavar="DEVICE")
@click.option(
    "--transport", type=click.Choice(KINDS), default="pci", show_default=True,
    help="What is between driver and device.",
)
@click.option(
    "--ring", type=click.Choice(["split", "packed"]), default="packed", show_default=True,
    help="Ring layout on offer.",
)
@click.option(
    "--text", default="hello, console", show_default=True, metavar="TEXT",
    help="What the console is told, a packet or message says, or the disk is to keep.",
)
def demo(device: str, transport: str, ring: str, text: str) -> None:
    """Run DEVICE and its driver in one process and show what they do.

    DEVICE is balloon, block, console, net, rng or rpmsg. What is shown is checked: pages really go,
    bytes really come back. 'virtring devices' lists all that there are.

    \b
    Examples:
      virtring demo balloon
      virtring demo console --transport mmio --text "is anybody there?"
    """
    with plug(device, transport, ring == "packed") as bench:
        click.echo(bench.title)
        for line in DEMOS[device].run(bench, text):
            click.echo(f"  {line}")
