"""The subcommands of ``python -m snnkernels``: one module each.

A module has ``add_arguments(parser)`` and ``run(args)``, which returns the exit status; its
docstring is its help. Libraries beyond torch load inside ``run``.
"""
