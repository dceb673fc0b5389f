"""The command group, and how every error becomes one line and an exit code."""

import signal
import sys
from importlib import import_module
from types import FrameType

import click

from virtring._version import __version__
from virtring.cli.failure import Failed, one_line
from virtring.errors import VirtioError

#: Each is the command of that name in the module of that name.
COMMANDS = ("bench", "demo", "devices", "inspect", "rpmsg", "serve", "transfer")

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


class Interrupted(Exception):
    """Ctrl-C. Click would print an empty line for it."""


class Commands(click.Group):
    """The group; gets at Ctrl-C before click does, and imports only the command that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"virtring.cli.{name}"), name)
        return command

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
        names: list[str] = []
        if context is not None and isinstance(context.command, click.Group):
            names = context.command.list_commands(context)
        return f"name a command: {' or '.join(names)} (see '{path} --help')"
    text = " ".join(error.format_message().split())
    command = path.partition(" ")[2]
    return f"{command}{': ' if command else ''}{text} (see '{path} --help')"


def _say(text: str, code: int) -> int:
    print(f"virtring: {' '.join(text.split())}", file=sys.stderr)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
