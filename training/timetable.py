"""The timetable that train.py prints: the parts of the work, and about how many minutes each takes."""

import statistics
import time
from dataclasses import dataclass

import torch

MEASURED = 20              # steps after which a stage's duration is estimated
REFERENCE = 0.025          # seconds of `work` on the machine on which the demo's parts were timed


def work():
    """The demo's typical work, to measure a machine by: products of some hundred tokens with narrow matrices."""
    x, weight = torch.ones(784, 128), torch.full((512, 128), 0.01)
    for _ in range(6):
        x = torch.nn.functional.gelu(x @ weight.T) @ weight
    return x


def slowness(rounds=21):
    """This machine's time for `work` over the reference machine's: measured now, in a moment, on the threads in use."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / REFERENCE


def minutes(seconds):
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class Part:
    """One part of the work. `seconds`: expected duration, None if unknown; `beside`: runs while another part runs."""

    name: str
    what: str
    seconds: float | None = None
    beside: bool = False


class Timetable:
    """The parts of the work in their order. Each measured duration corrects the expected durations of later parts."""

    def __init__(self, parts, say):
        self.parts, self.say = parts, say
        for part in parts:
            say(self.line(part) + (f": about {minutes(part.seconds)}" if part.seconds else ""))

    def line(self, part):
        return f"{self.parts.index(part) + 1} of {len(self.parts)} {part.what}"

    def begin(self, name):
        """Prints that a part begins, and how many minutes are left."""
        self.now = next(part for part in self.parts if part.name == name)
        self.started = time.perf_counter()
        left = [part.seconds for part in self.parts[self.parts.index(self.now):] if not part.beside]
        self.say(self.line(self.now) + ("" if None in left else f"; about {minutes(sum(left))} to go"))

    def end(self):
        """Ends the current part; its measured duration corrects the later parts."""
        self.correct(time.perf_counter() - self.started)

    def correct(self, seconds):
        """Sets the current part's duration, and scales the later parts by measured over expected duration."""
        if self.now.seconds:
            for part in self.parts[self.parts.index(self.now) + 1:]:
                part.seconds = part.seconds and part.seconds * seconds / self.now.seconds
        self.now.seconds = seconds

    def measured(self, done, steps):
        """After MEASURED of the current part's `steps` steps, estimates and prints the part's duration.

        The first step is not timed, since it includes the start-up.
        """
        now = time.perf_counter()
        if done == 1:
            self.first_step = now
        elif done == MEASURED < steps:
            per_step = (now - self.first_step) / (done - 1)
            self.correct(self.first_step - self.started + per_step * (steps - 1))
            self.say(f"{self.now.name}: {steps:,} steps of {per_step:.2f} s: about {minutes(per_step * steps)}")
