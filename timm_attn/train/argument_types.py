"""Types of arguments on the command line, with errors that say what is allowed.

They are used before torch and timm are imported, so that ``--help`` answers at once.
"""

import argparse
import math
from collections.abc import Callable


def positive_int(text: str) -> int:
    """Type of an argument that must be a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


class ParseKwargs(argparse.Action):
    """timm's ``ParseKwargs``, imported when the option is given."""

    def __call__(self, parser, namespace, values, option_string=None):
        from timm.utils import ParseKwargs

        if any(value and '=' not in value for value in values):
            parser.error(
                f'argument {option_string}: expected KEY=VALUE, got {" ".join(values)!r}; DIR comes before the options'
            )
        ParseKwargs(self.option_strings, self.dest)(parser, namespace, values, option_string)


def text(value: str) -> str:
    """Type of an argument that must not be empty, as an unset shell variable is."""
    if not value.strip():
        raise argparse.ArgumentTypeError('is empty; leave the option out for its default')
    return value


def image_size(text: str) -> int:
    """Type of a side of the network's input."""
    from ..image_files import MAX_IMAGE_SIZE

    if positive_int(text) > MAX_IMAGE_SIZE:
        raise argparse.ArgumentTypeError(f'{text} is more than {MAX_IMAGE_SIZE} pixels a side')
    return int(text)


def number(allowed: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """Type of an argument that must be a number in a range; not-a-number is in none."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not allowed(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not {what}')
        return value

    return convert


def integer(high: int) -> Callable[[str], int]:
    """Type of an argument that must be an integer from 0 to a limit."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) > high:
            raise argparse.ArgumentTypeError(f'{text!r} is not an integer from 0 to {high}')
        return int(text)

    return convert


positive = number(lambda x: 0 < x < math.inf, 'a positive number')
not_negative = number(lambda x: 0 <= x < math.inf, 'zero or a positive number')
share = number(lambda x: 0 <= x <= 1, 'a number from 0 to 1')
positive_share = number(lambda x: 0 < x <= 1, 'a number above 0, at most 1')
