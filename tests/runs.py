"""Runs of train.py and evaluate.py in processes of their own, set up as torchrun does, without its start-up time.

The processes are forked from one that has already imported torch. Used by tests, never by the program.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
WRITER = ["--queries", "4", "--lora-rank", "2"]           # for a small stage 2
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "evaluate", "tests.tiny", "torch._dynamo"])   # AdamW imports the last: 3 s


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(script, argv, environment, output, hook):
    os.environ.update(environment, OMP_NUM_THREADS="1")
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    import torch
    torch.set_num_threads(1)
    if hook:
        hook()
    import evaluate
    import train
    sys.exit({"train": train.main, "evaluate": evaluate.main}[script]([str(a) for a in argv]))


class Started:
    """A run on `world` processes; `hook` is called in each before it starts."""

    def __init__(self, script, argv, folder, world=1, hook=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"rank{rank}" for rank in range(world)]
        # torchrun, too, keeps the store in a process of its own
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world > 1 else None
        port = str(self.store.port) if world > 1 else ""
        self.processes = []
        for rank, output in enumerate(self.outputs):
            one = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), 
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
            process = FORKS.Process(target=command, args=(script, list(argv), one if world > 1 else {}, output, hook))
            process.start()
            self.processes.append(process)

    def wait(self, seconds=60):
        """Exit codes, in the order of ranks; as torchrun does, ends the others where one has failed."""
        end = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes):
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.text("err"))
            if any(process.exitcode for process in self.processes):
                time.sleep(0.3)
                self.kill()
            time.sleep(0.01)
        return [process.exitcode for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def text(self, which):
        files = [Path(f"{output}.{which}") for output in self.outputs]
        return "".join(file.read_text() for file in files if file.exists())


def run(script, argv, folder, world=1, hook=None):
    """(exit code, stdout, stderr) of a whole run."""
    started = Started(script, argv, folder, world, hook)
    return max(started.wait(), key=abs), started.text("out"), started.text("err")


def prepare(folder, dropout=0.1, **data):
    """Toy data and base weights under `folder`; without dropout, a step is the same however it is shared out."""
    tiny.write_data(folder / "data", **data)
    tiny.write_weights(folder / "weights")
    rates = {"bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"), "swin": ("drop_path_rate",)}
    for part, names in rates.items():
        path = folder / "weights" / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **dict.fromkeys(names, dropout)}))
    return ["--preset", "iu_xray", "--data", folder / "data", "--weights", folder / "weights", "--workers", "0",
            "--lr", "1e-2"]


def same_weights(a, b):
    """Whether two checkpoints hold the same bits."""
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(x.dtype == b[name].dtype and x.equal(b[name]) for name, x in a.items())


def log_of(run):
    """Lines of log.jsonl without what is measured in seconds and bytes."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    measured = ("seconds", "studies_per_s", "memory_gb")
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]
