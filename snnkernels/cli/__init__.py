"""The command line: ``python -m snnkernels COMMAND``.

A command is a module of this package, ``-`` in its name being ``_`` in the module's, with

* ``HELP``: what it does; the first line is its summary. No docstring: those are gone under
  ``python -OO``;
* ``add_arguments(parser)``, which adds its options;
* ``run(args)``, which does the work and returns the exit status;
* ``PASS_ON = True`` where it has a parser of its own: it finds its words in ``args.rest``.

What several commands share lies in modules with a leading underscore.
"""

from __future__ import annotations

import sys
from importlib import import_module

from snnkernels.cli._options import CommandError, Parser
from snnkernels.train.runs import RunError

COMMANDS = (
    *("demo", "fit", "validate", "test", "predict", "search"),
    *("associative", "japanese-vowels", "spoken-digits", "stream", "info", "tune"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; without one, print the help.

    Args:
        arguments: words after ``python -m snnkernels``. Default: those of this process.

    Returns:
        The exit status: 0; 1 for what the command says in one line, such as a file that cannot be
        read or written; 2 for a mistake in the words or the recipe; 130 after Ctrl-C.
    """
    parser = Parser(
        prog="python -m snnkernels", description="Spiking networks with fused kernels, at work."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"snnkernels.cli.{name.replace('-', '_')}")
        pass_on = getattr(module, "PASS_ON", False)  # --help too
        command = commands.add_parser(
            name, help=module.HELP.splitlines()[0], description=module.HELP, add_help=not pass_on
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, pass_on=pass_on)
    args, args.rest = parser.parse_known_args(arguments)
    if args.rest and not (args.command and args.pass_on):
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (CommandError, RunError, OSError, ModuleNotFoundError) as error:
        print(f"{args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "status", 1)
