"""Speed and memory of the models here, side by side with transformers, PEFT, timm and torchvision on the same weights.

    OMP_NUM_THREADS=1 python -m tests.bench.models                     # CPU: a language model of 125 M parameters, fp32
    python -m tests.bench.models --device cuda --shape 7b --only decode-1 decode-8 beam-3 train    # a GPU: bf16

Prints a table: the median time of interleaved runs and the peak of the memory that each side needs on top of what it
had at its start (each in a process of its own), ours first; a ratio above 1: ours is the faster or the smaller.
Everyone gets the same weights, tokens and threads. Decoding never meets the end of text, so that all produce as many
tokens. On a GPU it adds tokens per second against the bandwidth limit and the training step's FLOP utilisation.
"""

import argparse
import gc
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

from model.bert import Bert, BertConfig
from model.decode import generate
from model.lora import add_lora
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from tests.bench import record

# The small shape is SmolLM-135M's, a published model of Mistral's kind, with Mistral's vocabulary: 125 M parameters.
SHAPES = {"100m": MistralConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                                num_key_value_heads=3, head_dim=64, tie_word_embeddings=True),
          "7b": MistralConfig()}
PROMPT, NEW, REPORT, EOS = 128, 64, 64, 2
TASKS = ("decode-1", "decode-8", "beam-3", "train", "swin", "bert", "load", "load-bf16")


def references(task, args):
    """Whom a task is compared with; decoding also with itself: without oneDNN's products, or recorded by the GPU."""
    if task in ("decode-1", "decode-8", "beam-3"):
        return ("transformers", "ours, F.linear" if args.device == "cpu" else "ours, captured")
    several = {"swin": ("transformers", "timm", "torchvision"), "train": ("transformers+peft",)}
    return several.get(task, ("transformers",))


def quiet():
    warnings.filterwarnings("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    return transformers


def write_weights(folder, args):
    """Random weights in Hugging Face's layout, which every library then reads."""
    torch.manual_seed(0)
    tasks = set(args.only)
    if tasks - {"swin", "bert"}:
        with torch.device(args.device):
            model = Mistral(SHAPES[args.shape]).to(torch.bfloat16 if args.shape == "7b" else torch.float32)
        model.save_pretrained(folder / "mistral")
    if "swin" in tasks:
        Swin(SwinConfig()).save_pretrained(folder / "swin")
    if "bert" in tasks:
        Bert(BertConfig()).save_pretrained(folder / "bert")


def language_model(side, folder, args, dtype=None):
    if side.startswith("ours"):
        return Mistral.from_pretrained(folder / "mistral", dtype=dtype).to(args.device).eval()
    transformers = quiet()
    model = transformers.MistralForCausalLM.from_pretrained(folder / "mistral", dtype=dtype or "auto")
    return model.to(args.device).eval()


def prompts(batch, args):
    return torch.randint(3, 32000, (batch, PROMPT), generator=torch.Generator().manual_seed(1)).to(args.device)


def decode_task(side, folder, args, batch, beams):
    model, ids = language_model(side, folder, args), prompts(batch, args)
    if side.startswith("ours"):
        plain = mock.patch("model.decode.few_rows", nullcontext) if side == "ours, F.linear" else nullcontext()

        def decode():
            with plain:
                return generate(model, ids=ids, max_new_tokens=NEW, min_new_tokens=NEW, eos_id=EOS, beams=beams,
                                capture=side == "ours, captured")
        return decode
    mask = torch.ones_like(ids)
    return lambda: model.generate(ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
                                  num_beams=beams, eos_token_id=EOS, pad_token_id=0)[:, PROMPT:].tolist()


def train_task(side, folder, args, batch=4):
    """One step as stage 2 makes it: LoRA on q and v, the cross-entropy of the report's tokens, AdamW."""
    model = language_model(side, folder, args).train()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 32000, (batch, PROMPT + REPORT), generator=generator).to(args.device)
    if side == "ours":
        add_lora(model, rank=16, alpha=16, dropout=0.1).requires_grad_(False)
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name)
    else:
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, bias="none",
                                                           target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        labels = ids.clone()
        labels[:, :PROMPT] = -100
    model.checkpoint = side == "ours" and args.shape == "7b"
    if side != "ours" and args.shape == "7b":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)

    def step():
        if side == "ours":
            hidden = model.hidden(ids=ids)
            logits = model.logits(hidden[:, PROMPT - 1:-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, PROMPT:].flatten())
        else:
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()
    return step


def swin_task(side, folder, args, batch=2):
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(3)).to(args.device)
    if side == "ours":
        model = Swin.from_pretrained(folder / "swin")
    elif side == "transformers":
        model = quiet().SwinModel.from_pretrained(folder / "swin", add_pooling_layer=False)
    elif side == "timm":
        import timm
        model = timm.create_model("swin_base_patch4_window7_224", num_classes=0)
        model.forward = model.forward_features
    else:
        import torchvision
        model = torchvision.models.swin_b()
    model = model.to(args.device).eval()
    return torch.inference_mode()(lambda: model(images))


def bert_task(side, folder, args, batch=8, tokens=64):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 28996, (batch, tokens), generator=generator).to(args.device)
    mask = torch.arange(tokens)[None] < torch.randint(20, tokens + 1, (batch, 1), generator=generator)
    mask = mask.long().to(args.device)
    if side == "ours":
        model = Bert.from_pretrained(folder / "bert").to(args.device).eval()
        return torch.inference_mode()(lambda: model(ids, mask))
    model = quiet().BertModel.from_pretrained(folder / "bert", add_pooling_layer=False).to(args.device).eval()
    return torch.inference_mode()(lambda: model(input_ids=ids, attention_mask=mask))


def load_task(side, folder, args, dtype):
    def load():
        model = language_model(side, folder, args, dtype)
        return sum(float(weight.view(-1)[::512].float().sum()) for weight in model.parameters())   # touch every page
    return load


def make(task, side, folder, args):
    """The function that does a task once."""
    return {"decode-1": lambda: decode_task(side, folder, args, 1, 1),
            "decode-8": lambda: decode_task(side, folder, args, 8, 1),
            "beam-3": lambda: decode_task(side, folder, args, 1, 3),
            "train": lambda: train_task(side, folder, args),
            "swin": lambda: swin_task(side, folder, args),
            "bert": lambda: bert_task(side, folder, args),
            "load": lambda: load_task(side, folder, args, None),
            "load-bf16": lambda: load_task(side, folder, args, torch.bfloat16)}[task]()


def timed(function, args):
    """Seconds; on one CPU thread the process's own: the wall's on an idle machine, and unshaken by neighbours."""
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    start = clock()
    function()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def interleaved(task, folder, args):
    """{side: median seconds}: every round runs each side once, so that a slow minute of the machine hits all."""
    sides = ("ours", *references(task, args))
    functions = {side: make(task, side, folder, args) for side in sides}
    times = {side: [] for side in sides}
    for round in range(args.rounds + 1):
        for side in sides if round % 2 else reversed(sides):
            seconds = timed(functions[side], args)
            if round:                                      # the first round warms up
                times[side].append(seconds)
    return {side: statistics.median(values) for side, values in times.items()}


def resident(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024


def peak(task, side, folder, args):
    """Megabytes that a task needs at its peak on top of the interpreter and its imports, from a process of its own.

    There glibc gives freed blocks back at once; those that it keeps make one run differ from the next by 20 %.
    """
    command = [sys.executable, "-m", "tests.bench.models", "--measure", task, side, str(folder),
               "--device", args.device, "--shape", args.shape]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    return float(out.splitlines()[-1])


def measure(task, side, folder, args):
    import torch._dynamo  # noqa: F401                     # 280 MB that AdamW would import in its first step
    if side != "ours":
        quiet()
        import peft  # noqa: E401, F401
        from transformers import BertModel, MistralForCausalLM, SwinModel  # noqa: F401
    if args.device == "cuda":
        make(task, side, folder, args)()
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    torch.randn(64, 64) @ torch.randn(64, 64)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")          # the peak starts anew here
    before = resident("VmRSS")
    make(task, side, folder, args)()
    print(resident("VmHWM") - before)


def gpu_limits(task, seconds, args):
    """What the hardware would allow at most, where its figures are given."""
    config = SHAPES[args.shape]
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    per_layer = config.hidden_size * (config.head_dim * heads + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * per_layer + config.vocab_size * config.hidden_size
    if task.startswith("decode"):
        batch = int(task.split("-")[1])
        share = NEW * 2 * weights / (args.bandwidth * 1e12) / seconds
        return f"{batch * NEW / seconds:.0f} tokens/s, {share:.0%} of the bandwidth limit"
    if task == "train":                                    # forward, recomputed forward not counted, backward to inputs
        flop = 4 * (PROMPT + REPORT) * (weights - config.vocab_size * config.hidden_size) * 4 \
            + 4 * REPORT * config.vocab_size * config.hidden_size * 4
        return f"{flop / seconds / (args.flops * 1e12):.0%} model FLOP utilisation"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="of the GPU, TB/s (an H100 SXM has 3.35)")
    parser.add_argument("--flops", type=float, default=989, help="of the GPU in dense bf16, TFLOP/s (an H100 has 989)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory columns out")
    parser.add_argument("--record", action="store_true", help=record.HELP)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        task, side, folder = args.measure
        return measure(task, side, Path(folder), args)
    quiet()
    print(f"{args.shape}, {args.device}, {args.threads} threads, median of {args.rounds} interleaved rounds")
    print(f"{'task':10} {'against':18} {'ours':>9} {'theirs':>9} {'ratio':>6} {'ours':>8} {'theirs':>8} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), args)
        for task in args.only:
            seconds = interleaved(task, Path(folder), args)
            megabytes = {} if args.no_memory else {side: peak(task, side, folder, args) for side in seconds}
            for side in references(task, args):
                figures = {"seconds": (seconds["ours"], seconds[side], seconds[side] / seconds["ours"])}
                line = f"{task:10} {side:18} {seconds['ours']:8.3f}s {seconds[side]:8.3f}s " \
                       f"{seconds[side] / seconds['ours']:6.2f}"
                if megabytes:
                    figures["MB"] = megabytes["ours"], megabytes[side], megabytes[side] / megabytes["ours"]
                    line += f" {megabytes['ours']:6.0f}MB {megabytes[side]:6.0f}MB " \
                            f"{megabytes[side] / megabytes['ours']:6.2f}"
                shown = seconds[side if side.startswith("ours") else "ours"]
                print(line, gpu_limits(task, shown, args) if args.device == "cuda" else "", flush=True)
                record.add(args, {f"{task}, {unit}, {who}": value for unit, values in figures.items()
                                  for who, value in zip(("ours", side, f"ratio to {side}"), values)})
            gc.collect()


if __name__ == "__main__":
    main()
