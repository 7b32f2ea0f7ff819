"""The command line: ``python -m snnkernels COMMAND``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = ("demo", "fit", "associative", "japanese-vowels", "spoken-digits", "info", "tune")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``python -m snnkernels``. Default: those of this process.

    Returns:
        The exit status; 130 after Ctrl-C, 2 for a mistake in the words.
    """
    parser = argparse.ArgumentParser(prog="python -m snnkernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"snnkernels.cli.{name.replace('-', '_')}")
        summary = module.__doc__.splitlines()[0]
        pass_on = getattr(module, "PASS_ON", False)  # --help too
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, add_help=not pass_on
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, pass_on=pass_on)
    args, args.rest = parser.parse_known_args(arguments)
    if args.rest and not args.pass_on:
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
