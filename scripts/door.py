"""What several doors share: options of solving, and one sentence where the user can put something right."""

import argparse
import functools
import sys
from collections.abc import Callable

Main = Callable[[list[str] | None], int]


def in_sentences(name: str, extra: str = "eval") -> Callable[[Main], Main]:
    """A main function whose ValueError or OSError is said in one sentence, with exit status 1; Ctrl-C in one word.

    So is a package that is missing: `extra` is the one that brings it.
    """

    def around(main: Main) -> Main:
        @functools.wraps(main)
        def door(argv: list[str] | None = None) -> int:
            try:
                return main(argv)
            except (ValueError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            except ModuleNotFoundError as error:
                print(f"{name}: {error}. Install what it needs: pip install 'air-model[{extra}]'.", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"\n{name}: stopped.", file=sys.stderr)
                return 130

        return door

    return around


def add_solving_options(parser: argparse.ArgumentParser) -> None:
    """The options of `solve_puzzles` that mean the same wherever puzzles are solved."""
    add = parser.add_argument
    add("--retry", choices=["pins", "views"], help="further attempts: a search by pins (default), or symmetric views")
    add("--max-act-steps", type=int, help="default: the model's halt_max_steps; more is allowed")
    add("--noise", type=float, default=0.0, help="noise on the states from the second attempt on (their RMS is 1)")
    add("--seed", type=int, default=0, help="of views and noise")
    add("--batch-size", type=int, help="puzzles at a time; default: what suits the device")
    add("--device", help="default: the GPU if there is one")
    text = "default: bfloat16 on a GPU, and for a search where the CPU multiplies it, else float32"
    add("--dtype", choices=["float32", "bfloat16", "float16", "float64"], help=text)
    add_values_option(parser)


def add_values_option(parser: argparse.ArgumentParser) -> None:
    text = "what numbers in JSON or parquet files are: digits (0 for a blank) or tokens (blank 1, digit d is d + 1)"
    parser.add_argument("--values", choices=["digits", "tokens"], help=text)


def need_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError where one of these numbers was given and is below 1."""
    for name in names:
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}.")
