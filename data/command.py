"""What all command lines share: how a mistake is said, and the types of numbers."""

import argparse
import math

from data.files import UserError


class Parser(argparse.ArgumentParser):
    """A mistake on the command line is a mistake of the user: one line, as all others."""

    def error(self, message):
        raise UserError(f"{message}; --help lists all options")


def at_least(kind, low):
    """An argument's type: a finite number, int or float as `kind` says, that is not below `low`."""
    def number(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' * (kind is int)}number from {low} on")
        return value
    return number
