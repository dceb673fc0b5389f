"""The command line: ``virtring ...`` and ``python -m virtring ...``."""

import sys

#: What the commands need beyond numpy; both come with the extra.
EXTRAS = ("click", "rich")


def main() -> int:
    """Run the command line; gives the exit code (0 ok, 1 failed, 2 usage, 130 interrupted)."""
    try:
        from virtring.cli.main import run

        # Each command imports its own.
        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        print(f"virtring: {error.name} is missing: pip install virtring[cli]", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
