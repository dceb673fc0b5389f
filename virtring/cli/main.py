"""The command group, and how every error becomes one line and an exit code."""

import signal
import sys
from types import FrameType

import click

from virtring._version import __version__
from virtring.cli.bench import bench
from virtring.cli.demo import demo
from virtring.cli.devices import devices
from virtring.cli.failure import Failed, one_line
from virtring.cli.inspect import inspect
from virtring.cli.rpmsg import rpmsg
from virtring.cli.serve import serve
from virtring.cli.transfer import transfer
from virtring.errors import VirtioError

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


class Interrupted(Exception):
    """Ctrl-C. Click would print an empty line for it."""


class Commands(click.Group):
    """The group; gets at Ctrl-C before click does."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, "-V", "--version", prog_name="virtring")
def cli() -> None:
    """Virtqueues (virtio split and packed rings) from the shell.

    \b
    Examples:
      virtring bench                        how fast are the rings here?
      virtring devices                      which devices are there?
      virtring demo balloon                 one of them at work, with its driver
      virtring inspect --help               what is in a ring right now?
      virtring rpmsg                        messages to another process and back
      virtring serve blk disk.img --vhost-user blk.sock
                                            a disk for a virtual machine
      virtring transfer big.img copy.img    a file through a ring, between two processes
    """


cli.add_command(bench)
cli.add_command(demo)
cli.add_command(devices)
cli.add_command(inspect)
cli.add_command(rpmsg)
cli.add_command(serve)
cli.add_command(transfer)


def run() -> int:
    """Run the command line in ``sys.argv``; the exit code. Errors are one line on stderr."""
    # A plain kill must not leave children or half-written files behind either.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(prog_name="virtring", standalone_mode=False)
    except (Interrupted, click.Abort):
        return _say("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return _say(_usage_text(error), USAGE)
    except (Failed, VirtioError, OSError) as error:
        return _say(str(error) if isinstance(error, Failed) else one_line(error), FAILED)
    return code if isinstance(code, int) else 0


def _usage_text(error: click.ClickException) -> str:
    """The message, with the command it is about and where its help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "virtring"
    if type(error).__name__ == "NoArgsIsHelpError":
        group = context.command if context is not None else cli
        names = group.commands if isinstance(group, click.Group) else {}
        return f"name a command: {' or '.join(names)} (see '{path} --help')"
    text = " ".join(error.format_message().split())
    command = path.partition(" ")[2]
    return f"{command}{': ' if command else ''}{text} (see '{path} --help')"


def _say(text: str, code: int) -> int:
    print(f"virtring: {' '.join(text.split())}", file=sys.stderr)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
