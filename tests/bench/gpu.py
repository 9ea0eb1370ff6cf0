"""Everything that only a GPU can tell, in one command: correctness, speed, memory. Installs nothing, needs no network.

    python -m tests.bench.gpu --out DIR                     all parts, within 8 minutes
    python -m tests.bench.gpu --only decode stage-2         some of them
    python -m tests.bench.gpu --device cpu --shape toy      a rehearsal without a GPU

Each part is a process of its own with a time limit, so that one that hangs or fails takes no other along; each result
is a JSON line, printed at once and added to DIR/gpu.jsonl, so that a run that is cut off leaves its figures behind.
What the parts say besides is in DIR/gpu.log. Weights are random: nothing here says how good a 7B model's reports are.
"""

import argparse
import copy
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import trrg
from data.dataset import Prepared
from model.bert import Bert
from model.clues import ClueBank
from model.decode import generate
from model.interaction import Interaction
from model.lora import add_lora
from model.mistral import Mistral
from model.swin import Swin
from tests import tiny
from tests.bench import record, train
from training import dry_run
from training.demo import encoders as demo_encoders
from training.demo import language_model as demo_language_model
from training.options import arguments, of_stage

ROOT = Path(__file__).resolve().parents[2]
EOS, REPEATS = 2, 3


def emit(args, **figures):
    """One result: a line on stdout, and the same line in DIR/gpu.jsonl."""
    line = json.dumps({"part": args.part, **{name: rounded(value) for name, value in figures.items()}})
    print(line, flush=True)
    with open(args.out / "gpu.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def numbers(row):
    """{name: number} of one result; what it is of stands in the name."""
    of = ", ".join([row["part"], *(row[name] for name in ("what", "side", "precision") if name in row)])
    flat = {f"{name} {key}": value for name, group in row.items() if isinstance(group, dict)
            for key, value in group.items()} | row
    return {f"{of}: {name}": value for name, value in flat.items() if isinstance(value, (int, float))}


@contextmanager
def spared(args, **what):
    """An error within becomes a result, so that what comes after it is still measured."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        emit(args, **what, error=f"{type(error).__name__}: {error}"[:400])


def seconds(work, args, repeats=REPEATS):
    """The median time of some runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        train.wait(args.device)
        begun = time.perf_counter()
        work()
        train.wait(args.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


# ---------------------------------------------------------------------------------------------------------------------
# The machine

def device(args):
    """What it is, and what it can do at most: a copy within its memory, a matrix product in bf16."""
    gpu = args.device == "cuda"
    facts = {"name": torch.cuda.get_device_name() if gpu else "CPU", "torch": torch.__version__,
             "cuda": torch.version.cuda, "cores": len(os.sched_getaffinity(0))}
    if gpu:
        facts["gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
    emit(args, **facts, **limits(args))


def limits(args):
    """{"copy_tb_per_s", "bf16_tflop_per_s"} as measured here."""
    size, side = (2**32, 8192) if args.device == "cuda" else (2**24, 256)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, device=args.device, dtype=torch.bfloat16)
    return {"copy_tb_per_s": 2 * size / seconds(lambda: target.copy_(source), args, 10) / 1e12,
            "bf16_tflop_per_s": 2 * side**3 / seconds(lambda: matrix @ matrix, args, 10) / 1e12}


# ---------------------------------------------------------------------------------------------------------------------
# Correctness

def tests(args):
    """The suite's tests that are marked `cuda`."""
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text()]
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files],
                         cwd=ROOT, capture_output=True, text=True)
    print(run.stdout, run.stderr, file=sys.stderr)
    lines = run.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    emit(args, what="pytest -m cuda", code=run.returncode, summary=lines[-1] if lines else "", failed=failed[:10])


def parity(args):
    """Every network on the device against itself on the CPU in fp32: relative error of outputs and of gradients."""
    torch.backends.cudnn.allow_tf32 = False                 # on by default, unlike for products
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 2))
    torch.manual_seed(0)
    for name, make in networks(args).items():
        module, inputs, run = make()
        module.eval()
        reference = passes(module, inputs, run, "cpu", "fp32")
        module = module.to(args.device)
        # bf16 rounds by 2^-9: cosines of such embeddings are off by some 0.005, and stage 1 divides them by τ = 0.07
        loose = (0.1, 0.3) if name == "stage 1's loss" else (0.03, 0.15)
        for precision, most in (("fp32", (1e-4, 1e-3)), ("bf16", loose)):
            with spared(args, what=name, precision=precision):
                figures = passes(module, inputs, run, args.device, precision)
                output, gradient = (float((a - b).norm() / b.norm()) for a, b in zip(figures, reference))
                emit(args, what=name, precision=precision, output_error=output, gradient_error=gradient,
                     ok=output <= most[0] and gradient <= most[1])
        del module


def passes(module, inputs, run, device, precision):
    """(outputs, gradients of all parameters that train) of one forward and backward pass, each as one fp32 vector."""
    module.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        outputs = run(module, *(x.to(device) for x in inputs))
    outputs = [y.float() for y in outputs]
    # a weighted sum, for that of a normalised vector would have no gradient
    sum((y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum() if y.ndim else y for y in outputs).backward()
    gradients = [p.grad.float().flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat([y.detach().flatten() for y in outputs]).cpu(), torch.cat(gradients).cpu()


def networks(args):
    """{name: () → (module, inputs, how to run it)}; at 7B's widths, with few layers of the language model."""
    swin, bert, mistral = train.SHAPES[args.shape]
    mistral = replace(mistral, num_hidden_layers=2)
    large = args.shape == "7b"
    pictures, ids = torch.randn(2, 3, swin.image_size, swin.image_size), torch.randint(5, 300, (2, 24))
    mask = torch.arange(24)[None] < torch.tensor([[24], [17]])

    def adapted():
        model = add_lora(Mistral(mistral), rank=16, alpha=16).requires_grad_(False)
        for name, p in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(p.requires_grad_(True), std=0.02)
        return model, (ids,), lambda model, ids: [model(ids=ids)]

    def alignment():
        model = trrg.Alignment(swin=Swin(swin), bert=Bert(bert), wordpiece=None,
                               config=trrg.AlignmentConfig(d=swin.width))

        def loss(model, images, ids, mask):
            v, t, tau = model(images, ids, mask)
            return [trrg.contrastive_loss(v.float(), t.float(), tau)]

        return model, (pictures, ids, mask), loss

    def writer():
        d = swin.width
        bank = ClueBank(torch.randn(60, 12, d), torch.randn(60, d), torch.ones(60, 12) > 0, torch.arange(60) % 14,
                        m=14)
        model = trrg.TRRG(swin=Swin(swin), image_projection=torch.nn.Linear(d, d, bias=False), tau=torch.tensor(0.07),
                          bank=bank, language_model=Mistral(mistral), tokenizer=tiny.pieces(),
                          config=trrg.TRRGConfig(lora_dropout=0.0, queries=32 if large else 4))
        return model, (pictures[:, None], ids, ids), lambda model, *batch: [model.total(model(*batch))]

    at_384 = replace(swin, image_size=384, window_size=12)
    d = swin.width
    return {
        "swin": lambda: (Swin(swin), (pictures,), lambda model, x: [model(x)]),
        **({"swin at 384": lambda: (Swin(at_384), (torch.randn(1, 3, 384, 384),), lambda model, x: [model(x)])}
           if large else {}),
        "bert": lambda: (Bert(bert), (ids, mask), lambda model, ids, mask: [model(ids, mask)[mask]]),
        "mistral": lambda: (Mistral(mistral), (ids,), lambda model, ids: [model(ids=ids)]),
        "mistral with lora": adapted,
        "interaction": lambda: (Interaction(d, 8, 32), (torch.randn(2, 98, d), torch.randn(2, 24, d), mask),
                                lambda model, *streams: list(model(*streams))),
        "stage 1's loss": alignment, "stage 2's loss": writer}


def resume(args):
    """Whole runs of both stages under --deterministic, one of them killed and begun again: the same bits?"""
    from tests import runs
    with tempfile.TemporaryDirectory() as folder:
        argv = small_run(Path(folder), args)
        whole = runs.Started("train", [*argv, "--run", f"{folder}/whole"], Path(folder) / "whole.out")
        killed = runs.Started("train", [*argv, "--run", f"{folder}/killed"], Path(folder) / "killed.out")
        log = Path(folder) / "killed" / "log.jsonl"
        begun = time.perf_counter()
        while killed.processes[0].is_alive() and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
            time.sleep(0.02)
        killed.kill()
        again = runs.Started("train", [*argv, "--run", f"{folder}/killed"], Path(folder) / "again.out")
        codes = [whole.wait(600)[0], killed.processes[0].exitcode, again.wait(600)[0]]
        print(*(run.text("err") for run in (whole, killed, again)), file=sys.stderr)
        same = {name: (Path(folder) / "whole" / name).exists() and (Path(folder) / "killed" / name).exists()
                and runs.same_weights(*(Path(folder) / run / name for run in ("whole", "killed")))
                for name in ("stage1.safetensors", "ckpt.safetensors")}
        logs = [runs.log_of(Path(folder) / run) for run in ("whole", "killed")]
    emit(args, what="killed and begun again", exit_codes=codes, seconds=time.perf_counter() - begun,
         same_weights=same, same_log=logs[0] == logs[1],
         ok=codes == [0, -signal.SIGKILL, 0] and all(same.values()) and logs[0] == logs[1])


def small_run(folder, args):
    """Data, weights and options of a short run whose networks are as wide as the paper's, but have few layers."""
    from tests import runs
    if args.shape == "toy":
        return [*map(str, runs.prepare(folder)), "--batch-size", "6", "--max-steps", "4", "--save-every", "1"]
    swin, bert, mistral = train.SHAPES[args.shape]
    words, pieces = tiny.words(), tiny.pieces()
    torch.manual_seed(0)
    with torch.device(args.device):
        Swin(replace(swin, depths=(2, 2, 2, 2))).save_pretrained(folder / "weights" / "swin")
        Bert(replace(bert, num_hidden_layers=2)).save_pretrained(folder / "weights" / "bert")
        language_model = Mistral(replace(mistral, num_hidden_layers=2)).to(torch.bfloat16)
        language_model.save_pretrained(folder / "weights" / "mistral")
    words.save_pretrained(folder / "weights" / "bert")
    pieces.save_pretrained(folder / "weights" / "mistral")
    tiny.write_data(folder / "data", train=24, val=8, test=4)
    rng = np.random.default_rng(0)
    np.save(folder / "data" / "images.npy", rng.integers(0, 256, (36 * 2, 256, 256), dtype=np.uint8))
    return ["--preset", "mimic_cxr", "--data", str(folder / "data"), "--weights", str(folder / "weights"),
            "--workers", "2", "--max-steps", "5", "--save-every", "2"]


# ---------------------------------------------------------------------------------------------------------------------
# The language model: decoding, loading

def language_model(args):
    """Random weights, made where they are used: bf16 on a GPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with torch.device(args.device):
        return Mistral(train.SHAPES[args.shape][2]).to(dtype).eval()


def decode(args):
    """Prefill and decoding, plain, captured and by transformers, against the time that reading the weights takes."""
    copy_speed, begun = limits(args), time.perf_counter()
    model = language_model(args)
    train.wait(args.device)
    size = sum(p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name)
    emit(args, what="random weights", seconds=time.perf_counter() - begun, gb_per_token=size / 1e9, **copy_speed)
    prompt, few, many = (256, 16, 80) if args.shape == "7b" else (16, 2, 4)
    theirs = train.their_language_model(model).eval()

    for batch in (1, 8):
        ids = torch.randint(3, 300, (batch, prompt), device=args.device)
        with torch.inference_mode():
            took = seconds(lambda: model.logits(model.hidden(ids=ids, cache=model.new_cache(*ids.shape))[:, -1]),
                           args)
        flops = dry_run.mistral_flops(model.config, batch, prompt)
        emit(args, what="prefill", batch=batch, tokens=prompt, ms=took * 1e3, tflop_per_s=flops / took / 1e12)

    for batch, beams in ((1, 1), (8, 1), (1, 3), (8, 3), (16, 1)):
        ids = torch.randint(3, 300, (batch, prompt), generator=torch.Generator().manual_seed(1)).to(args.device)
        written = {}
        for side in ("plain", "captured", "transformers"):
            def write(new, side=side):
                if side == "transformers":
                    rows = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                                           min_new_tokens=new, do_sample=False, num_beams=beams, eos_token_id=EOS,
                                           pad_token_id=0)[:, prompt:].tolist()
                else:
                    rows = generate(model, ids=ids, max_new_tokens=new, min_new_tokens=new, eos_id=EOS, beams=beams,
                                    capture=side == "captured")
                written[side] = [row[:new - 1] for row in rows]     # a beam may end with the last token

            with spared(args, what="decode", side=side, batch=batch, beams=beams):
                short, whole = (seconds(lambda new=new: write(new), args, 2) for new in (few, many))
                token = (whole - short) / (many - few)
                agree = [a == b for plain, row in zip(written["plain"], written[side]) for a, b in zip(plain, row)]
                emit(args, what="decode", side=side, batch=batch, beams=beams, ms_per_token=token * 1e3,
                     tokens_per_s=batch / token, whole_call_tokens_per_s=batch * many / whole,
                     of_bandwidth=size / (copy_speed["copy_tb_per_s"] * 1e12) / token,
                     same_tokens_as_plain=sum(agree) / len(agree))


def load(args):
    """From a file to the device, by ours and by transformers; the whole model where the disk is quick enough."""
    transformers = train.quiet()
    model = language_model(args)
    whole = sum(p.nbytes for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        few = copy.copy(model)
        few.config = replace(model.config, num_hidden_layers=2)
        few._modules = {**model._modules, "model": torch.nn.ModuleDict(
            {**model.model, "layers": torch.nn.ModuleList(list(model.model["layers"])[:2])})}
        written, begun = few, time.perf_counter()
        few.save_pretrained(Path(folder))
        speed = sum(p.nbytes for p in few.parameters()) / (time.perf_counter() - begun)
        if whole / speed < 25:
            written = model
            model.save_pretrained(Path(folder))
        size = sum(p.nbytes for p in written.parameters())
        emit(args, what="written to disk", gb=size / 1e9, gb_of_the_model=whole / 1e9, gb_per_s=speed / 1e9)
        del model, few, written
        if args.device == "cuda":
            torch.cuda.empty_cache()
        theirs = transformers.MistralForCausalLM
        sides = {"ours": lambda: Mistral.from_pretrained(Path(folder)).to(args.device),
                 "transformers": lambda: theirs.from_pretrained(folder, dtype="auto").to(args.device)}
        for side, work in sides.items():
            took = seconds(work, args, 1)
            emit(args, what="load, from the page cache", side=side, seconds=took, gb_per_s=size / took / 1e9,
                 seconds_for_the_model=took * whole / size)


# ---------------------------------------------------------------------------------------------------------------------
# Training

def stage_1(args):
    """Steps of Eq. (1) at 224 and 384 pixels: ours, ours with the same bits every time, transformers."""
    for image_size, batch in ((224, 32), (384, 8)) if args.shape == "7b" else ((224, 2),):
        for side, deterministic in ((train.OURS, False), (train.OURS, True), (train.THEIRS, False)):
            measure(args, train.stage_1, side, deterministic, image_size=image_size, batch_size=batch)


def stage_2(args):
    """Steps of Eq. (5) at batch 8, with LoRA: ours and transformers with PEFT, with and without recomputing."""
    for checkpointing in (False, True):
        for side, deterministic in ((train.OURS, False), (train.OURS, True), (train.THEIRS, False)):
            if not (checkpointing and deterministic):
                measure(args, train.stage_2, side, deterministic, batch_size=8 if args.shape == "7b" else 2,
                        checkpointing=checkpointing)


def measure(args, make, side, deterministic, image_size=224, **options):
    """One kind of step on one side alone, so that its memory is its own, next to the dry run's estimate."""
    settings = SimpleNamespace(device=args.device, shape=args.shape, sides=[side], repeats=5, image_size=image_size,
                               checkpointing=False)
    settings.__dict__.update(options)
    what = {"what": "step", "side": side, **({"image_size": image_size} if make is train.stage_1 else {}), **options,
            "deterministic": deterministic}
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    with spared(args, **what):
        figures = train.steps(make, settings)[side]
        if args.device == "cuda":
            figures["gb_reserved"] = torch.cuda.max_memory_reserved() / 1e9
        if side == train.OURS:
            figures["gb_estimated"] = estimate(make, settings)
        emit(args, **what, **figures)
    torch.use_deterministic_algorithms(False)


def estimate(make, settings):
    """What `train.py --dry-run` says of such a step, in GB, its margin included."""
    with tempfile.TemporaryDirectory() as folder:
        swin, bert, mistral = train.SHAPES[settings.shape]
        for name, config in (("swin", train.swin_config(settings)), ("bert", bert), ("mistral", mistral)):
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config.to_json()))
        args = arguments(["--preset", "mimic_cxr", "--weights", folder, "--batch-size", str(settings.batch_size),
                          "--report-tokens", str(train.REPORT[settings.shape]), "--precision",
                          "bf16" if settings.device == "cuda" else "fp32",
                          *(["--checkpointing"] if settings.checkpointing else [])])
        if make is train.stage_1:
            needs = dry_run.Stage1Needs(of_stage(args, 1))
        else:
            needs = dry_run.Stage2Needs(of_stage(args, 2), train.VIEWS)
            needs.tokens = settings.tokens              # the toy tokenizer's prompt is longer than the real one's
        return dry_run.memory(needs, 1)[-1][1] / 1e9


# ---------------------------------------------------------------------------------------------------------------------
# The demo

def demo_data(args):
    """The phantom and the base weights, both made by the CPU, beside other parts."""
    begun, studies = time.perf_counter(), [] if args.shape == "7b" else ["--studies", "32", "8", "8"]
    cores = len(os.sched_getaffinity(0))
    command(["data.prepare", "phantom", "--out", args.work / "data", "--workers", cores, *studies])
    emit(args, what="phantom drawn", seconds=time.perf_counter() - begun, cores=cores)
    torch.set_num_threads(min(4, cores))
    for what, work in (("base encoders", demo_encoders), ("base language model", demo_language_model)):
        begun = time.perf_counter()
        work(args.work / "weights", Prepared(args.work / "data"), seed=0)
        emit(args, what=what, seconds=time.perf_counter() - begun, threads=torch.get_num_threads())


def demo(args):
    """Both stages and their scores; where time runs out, how far they came."""
    options = ["--data", args.work / "data", "--weights", args.work / "weights", "--run", args.work / "run"]
    log, begun = args.work / "run" / "log.jsonl", time.perf_counter()
    try:
        for stage in (1, 2):
            since = time.perf_counter()
            command(["train", *options, "--stage", stage, *([] if args.shape == "7b" else ["--max-steps", "2"])],
                    args.seconds - 5 - (since - begun))
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            steps = [row for row in rows if row["stage"] == f"stage{stage}" and "loss" in row]
            laps = {name: statistics.median(row["seconds"][name] for row in steps) * 1e3
                    for name in steps[-1]["seconds"]}
            emit(args, what=f"stage {stage}", seconds=time.perf_counter() - since, steps=len(steps), ms=laps,
                 studies_per_s=statistics.median(row["studies_per_s"] for row in steps), loss=steps[-1]["loss"])
        for name in ("ckpt", "stage1"):
            since = time.perf_counter()
            command(["evaluate", "--ckpt", args.work / "run" / f"{name}.safetensors", "--out", args.work / name],
                    args.seconds - 5 - (since - begun))
            metrics = json.loads((args.work / name / "metrics.json").read_text())
            emit(args, what=f"evaluate.py on {name}.safetensors", seconds=time.perf_counter() - since,
                 **main_scores(metrics))
            shutil.copy(args.work / name / "metrics.json", args.out / f"demo-{name}-metrics.json")
    except subprocess.TimeoutExpired:
        rows = log.read_text().splitlines() if log.exists() else ["{}"]
        emit(args, what="out of time", last=json.loads(rows[-1]))


def main_scores(metrics):
    """The figures that the README names, out of a metrics.json."""
    if "zero_shot" in metrics:
        return {"auroc": metrics["zero_shot"]["auroc"]["macro"]["value"],
                "image_to_text_R@10": metrics["retrieval"]["image_to_text"]["R@10"]["value"]}
    coco = metrics["language"]["coco"]
    return {**{name: coco[name]["value"] for name in ("BLEU-4", "ROUGE-L", "CIDEr")},
            **{name: score["value"] for name, score in metrics["truth"].items()}}


def command(argv, timeout=None):
    """Runs one of the program's commands; what it says goes to this part's log."""
    begun = [sys.executable, "-m", *map(str, argv)]
    subprocess.run(begun, cwd=ROOT, check=True, stdout=sys.stderr, timeout=timeout)


# ---------------------------------------------------------------------------------------------------------------------
# One process per part

# {name: (its function, its seconds at most)}. Those of one row run side by side; nothing that is timed has a neighbour
# on the GPU, and the demo's data are made on half of the cores meanwhile.
PARTS = {"device": (device, 45), "demo-data": (demo_data, 330), "tests": (tests, 90), "parity": (parity, 75),
         "resume": (resume, 110), "decode": (decode, 120), "stage-2": (stage_2, 100), "stage-1": (stage_1, 70),
         "demo": (demo, 240), "load": (load, 70)}
ROWS = [["device"], ["demo-data", "tests", "parity", "resume"], ["decode"], ["stage-2"], ["stage-1"], ["demo"],
        ["load"]]
BEHIND = {"demo-data"}                                              # the rows after it do not wait, but for "demo"


class Part:
    """A part in a process of its own."""

    def __init__(self, name, args, left):
        self.name, self.args = name, args
        self.seconds = min(PARTS[name][1], left)
        self.file = tempfile.TemporaryFile("w+")
        argv = [sys.executable, "-X", "faulthandler", "-m", "tests.bench.gpu", "--part", name,
                "--seconds", str(self.seconds), "--device", args.device, "--shape", args.shape,
                "--out", str(args.out), "--work", str(args.work)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                       "HF_HUB_OFFLINE": "1"}
        self.begun = time.monotonic()
        self.process = subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=self.file, start_new_session=True)

    def wait(self):
        """Waits for its end or its limit; what it said goes to the log, and why it failed to the results."""
        try:
            code = self.process.wait(max(0.1, self.begun + self.seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
            self.process.send_signal(signal.SIGABRT)                # it writes down where it hangs
            time.sleep(0.5)
        self.end()
        self.file.seek(0)
        said = self.file.read()
        took = time.monotonic() - self.begun
        with open(self.args.out / "gpu.log", "a", encoding="utf-8") as log:
            log.write(f"===== {self.name}: exit code {code} after {took:.1f} s\n{said}\n")
        result = SimpleNamespace(part=self.name, out=self.args.out)
        if code is None:
            emit(result, error=f"stopped after {self.seconds:.0f} s")
        elif code:
            emit(result, error=" | ".join(line for line in said.strip().splitlines()[-4:])[-600:], exit_code=code)
        else:
            emit(result, done_after_s=took)

    def end(self):
        """Ends it and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def run(args):
    """All parts that were asked for, in order, until the time is up."""
    end = time.monotonic() + 60 * args.minutes
    behind = []
    try:
        for row in ROWS:
            if "demo" in row and "demo" in args.only:
                while behind:
                    behind.pop().wait()
            left = end - time.monotonic()
            started = [Part(name, args, left) for name in row if name in args.only and left > 1]
            behind += [part for part in started if part.name in BEHIND]
            for part in started:
                if part not in behind:
                    part.wait()
        for part in behind:
            part.wait()
    finally:
        for part in behind:
            part.end()


def cores(part):
    """Binds this process to its half of the cores: what runs in the background must not disturb what is timed."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) >= 4:
        half = len(every) // 2
        os.sched_setaffinity(0, every[half:] if part in BEHIND else every if part == "demo" else every[:half])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="for results (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--shape", choices=("7b", "toy"), default="7b", help="(default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=record.HELP)
    for name, kind in (("--part", str), ("--seconds", float), ("--work", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        cores(args.part)
        return PARTS[args.part][0](args)
    if "demo" in args.only and "demo-data" not in args.only:
        args.only = ["demo-data", *args.only]
    results = args.out / "gpu.jsonl"
    before = results.read_bytes().count(b"\n") if results.exists() else 0
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        run(args)
    for line in results.read_text(encoding="utf-8").splitlines()[before:]:
        record.add(args, numbers(json.loads(line)))


if __name__ == "__main__":
    main()
