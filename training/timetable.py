"""The plan that train.py prints at its start: what it will do, part by part, and how many minutes each takes."""

import statistics
import time
from dataclasses import dataclass

import torch

MEASURED = 20              # steps after which a stage knows how long it will be
REFERENCE = 0.025          # seconds of `work` on the machine on which the demo's parts were timed


def work():
    """What the demo's networks do most: products of some hundred tokens with narrow matrices."""
    x, weight = torch.ones(784, 128), torch.full((512, 128), 0.01)
    for _ in range(6):
        x = torch.nn.functional.gelu(x @ weight.T) @ weight
    return x


def slowness(rounds=21):
    """How many times slower than the reference this machine is now: a quick measurement, on the threads in use."""
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
    """One part of a command. `seconds` None: nothing tells before it runs; `beside`: at the same time as another."""

    name: str
    what: str
    seconds: float | None = None
    beside: bool = False


class Timetable:
    """The parts of a command in their order; what is measured as they run corrects what is expected of the rest."""

    def __init__(self, parts, say):
        self.parts, self.say = parts, say
        for part in parts:
            say(self.line(part) + (f": about {minutes(part.seconds)}" if part.seconds else ""))

    def line(self, part):
        return f"{self.parts.index(part) + 1} of {len(self.parts)} {part.what}"

    def begin(self, name):
        """Says that a part begins, and how much is left."""
        self.now = next(part for part in self.parts if part.name == name)
        self.started = time.perf_counter()
        left = [part.seconds for part in self.parts[self.parts.index(self.now):] if not part.beside]
        self.say(self.line(self.now) + ("" if None in left else f"; about {minutes(sum(left))} to go"))

    def end(self):
        """Corrects the parts to come by how long this one took."""
        self.correct(time.perf_counter() - self.started)

    def correct(self, seconds):
        """This part takes so many seconds in all: the parts to come, as much longer or shorter than expected."""
        if self.now.seconds:
            for part in self.parts[self.parts.index(self.now) + 1:]:
                part.seconds = part.seconds and part.seconds * seconds / self.now.seconds
        self.now.seconds = seconds

    def measured(self, done, steps):
        """After MEASURED steps of this part, of `steps` that it has in this command: how long it will be.

        The first step is not timed: it waits for everything that comes before it.
        """
        now = time.perf_counter()
        if done == 1:
            self.first_step = now
        elif done == MEASURED < steps:
            per_step = (now - self.first_step) / (done - 1)
            self.correct(self.first_step - self.started + per_step * (steps - 1))
            self.say(f"{self.now.name}: {steps:,} steps of {per_step:.2f} s: about {minutes(per_step * steps)}")
