"""Shared by all command lines: one-line errors, number types for argparse, robust output, and Ctrl-C."""

import argparse
import io
import math
import signal
import sys

from data.files import UserError


class Help(argparse.RawDescriptionHelpFormatter):
    """The form of `--help`: the docstring's paragraphs as they are, then the options, each with its default, unless
    there is none or the option's text names it.
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
    """An argparse parser whose errors are UserErrors, one line like all others."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": Help, **settings})

    def error(self, message):
        raise UserError(f"{message}; --help lists all options")


def described(doc):
    """A command's docstring as arguments for `Parser`: its first two paragraphs (what the command does, and examples)
    are printed before the options, the other paragraphs after them.
    """
    paragraphs = doc.strip().split("\n\n")
    return {"description": "\n\n".join(paragraphs[:2]), "epilog": "\n\n".join(paragraphs[2:])}


def at_least(kind, low):
    """An argparse type: a finite number of `kind` int or float that is not below `low`."""
    def number(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number of {low} or more")
        return value
    return number


def plain_output():
    """From now on a character that the terminal or log file cannot encode is written as "?", and raises no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):         # other streams (notebooks, tests) take all characters
            stream.reconfigure(errors="replace")


def stop_in_one_line(message="stopped"):
    """From now on Ctrl-C ends the process with one line and exit code 130, and every `finally` block still runs.

    Commands call this before they import torch, since Ctrl-C during that slow import would print a traceback.
    """
    def stop(*_):
        print(message, file=sys.stderr)
        raise SystemExit(130)

    signal.signal(signal.SIGINT, stop)
