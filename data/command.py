"""What all command lines share: how a mistake is said, the types of numbers, and what a terminal can't upset."""

import argparse
import io
import math
import signal
import sys

from data.files import UserError


class Help(argparse.RawDescriptionHelpFormatter):
    """What `--help` prints: paragraphs as they stand in a docstring, then an option per line where there is room, with
    its default, unless that is none or the text names it.
    """

    def __init__(self, prog):
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text, width, indent):
        fill = super()._fill_text if "\n" in text else argparse.HelpFormatter._fill_text.__get__(self)
        return fill(text, width, indent)

    def _get_help_string(self, action):
        none = action.default is False or action.default in (None, [], argparse.SUPPRESS)
        return action.help if none or "default" in action.help else f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A mistake on the command line is a mistake of the user: one line, as all others."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": Help, **settings})

    def error(self, message):
        raise UserError(f"{message}; --help lists all options")


def described(doc):
    """A command's docstring for `Parser`: its first two paragraphs, what it does and how it is called, stand before the
    options, and the rest after them.
    """
    paragraphs = doc.strip().split("\n\n")
    return {"description": "\n\n".join(paragraphs[:2]), "epilog": "\n\n".join(paragraphs[2:])}


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


def plain_output():
    """From now on a character that the terminal's or log file's encoding lacks is written as "?", and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):         # a notebook's or a test's own stream takes everything
            stream.reconfigure(errors="replace")


def stop_in_one_line(message="stopped"):
    """From now on Ctrl-C ends the process with one line and exit code 130, cleanly: every `finally` still runs.

    A command says it before it imports torch, whose seconds would else end in a traceback.
    """
    def stop(*_):
        print(message, file=sys.stderr)
        raise SystemExit(130)

    signal.signal(signal.SIGINT, stop)
