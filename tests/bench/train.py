"""A training step of each stage and the writing of a test set, next to the same of transformers' models and PEFT's.

    OMP_NUM_THREADS=1 python -m tests.bench.train                                      # CPU: 100 M parameters, fp32
    python -m tests.bench.train --device cuda --shape 7b                               # a GPU: the paper's shapes, bf16
    python -m tests.bench.train --device cuda --shape 7b --side ours --only stage-2    # the memory of one side alone
    python -m tests.bench.train --device cuda --shape 7b --side ours --only decode-set # MIMIC-CXR's 3,858 test studies

Random weights, the same on both sides: their first losses, and the tokens they write in fp32, must agree. Runs of steps
alternate, medians are printed: studies per second, FLOP utilisation of a GPU (FLOPs as training/dry_run.py counts them)
and the GPU's peak memory; a ratio above 1: ours is the faster. A set is written once: beam 3, 100 tokens per report.
"""

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import trrg
from model.bert import Bert, BertConfig
from model.clues import ClueBank
from model.decode import generate
from model.interaction import disease_consistency
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from tests import tiny
from tests.bench import record
from tests.bench.models import quiet
from training import dry_run
from training.optimizer import optimizer_for

# Swin, BERT and Mistral; "toy" is for the suite.
SHAPES = {
    "toy": (SwinConfig(image_size=28, embed_dim=8, depths=(2,), num_heads=(2,)),
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
            MistralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                          num_key_value_heads=1, head_dim=16)),
    "100m": (SwinConfig(embed_dim=64, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16)), BertConfig(num_hidden_layers=4),
             MistralConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
                           num_key_value_heads=4, head_dim=64)),
    "7b": (SwinConfig(), BertConfig(), MistralConfig())}
SENTENCE, REPORT, VIEWS = {"toy": 8, "100m": 32, "7b": 64}, {"toy": 8, "100m": 64, "7b": 160}, 2
TEST_SET, TOKENS, BEAMS = 3858, 100, 3             # studies of MIMIC-CXR's test split
TASKS = ("stage-1", "stage-2", "decode-set")
OURS, THEIRS = "ours", "transformers"


def swin_config(args):
    """The shape's Swin; at 384 pixels that is Swin-B's sibling, whose windows have a side of 12."""
    config = SHAPES[args.shape][0]
    return replace(config, image_size=384, window_size=12) if args.image_size == 384 else config


def their_encoder(kind, ours):
    """transformers' model with our weights, by way of a folder that both read."""
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(Path(folder))
        return getattr(quiet(), kind).from_pretrained(folder, dtype="auto", add_pooling_layer=False)


def their_language_model(ours):
    """transformers' Mistral on the very tensors of ours: at 7B, a second copy would not be worth its memory."""
    transformers = quiet()
    weight = ours.model["norm"].weight
    config = transformers.MistralConfig(**{name: value for name, value in ours.config.to_json().items()
                                           if name not in ("architectures", "model_type")})
    with torch.device(weight.device):
        theirs = transformers.MistralForCausalLM._from_config(config, dtype=weight.dtype)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return theirs


class Their(nn.Module):
    """transformers' Swin or BERT behind the interface of ours."""

    def __init__(self, kind, ours):
        super().__init__()
        self.config, self.model = ours.config, their_encoder(kind, ours)

    def forward(self, x, mask=None):
        out = self.model(pixel_values=x) if mask is None else self.model(input_ids=x, attention_mask=mask)
        return out.last_hidden_state


def stage_1(args):
    """{side: (step, first loss)}, batch and FLOPs of Eq. (1) on both encoders."""
    shape, B = swin_config(args), args.batch_size
    swin, bert = Swin(shape), Bert(SHAPES[args.shape][1])
    images = torch.randn(B, 3, shape.image_size, shape.image_size, device=args.device)
    ids = torch.randint(5, 1000, (B, SENTENCE[args.shape]), device=args.device)

    sides = {}
    for side in args.sides:
        pair = (copy.deepcopy(swin), copy.deepcopy(bert)) if side == OURS \
            else (Their("SwinModel", swin), Their("BertModel", bert))
        torch.manual_seed(0)
        model = trrg.Alignment(swin=pair[0], bert=pair[1], wordpiece=None, config=trrg.AlignmentConfig(d=shape.width))
        model.to(args.device).train()

        def loss(model=model):
            v, t, tau = model(images, ids, torch.ones_like(ids).bool())
            return trrg.contrastive_loss(v.float(), t.float(), tau)

        sides[side] = stepper(model, loss, args)
    flops = 3 * (dry_run.swin_flops(shape, B) + dry_run.bert_flops(bert.config, B, ids.shape[1]))
    return sides, B, flops


def writers(args):
    """{side: (model, its language model)}: TRRG with the same clue side, on each library's language model and Swin."""
    mistral_config, d = SHAPES[args.shape][2], swin_config(args).width
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    with torch.device(args.device):
        swin, language_model = Swin(swin_config(args)).to(dtype), Mistral(mistral_config).to(dtype)
        bank = ClueBank(torch.randn(60, 12, d), torch.randn(60, d), torch.ones(60, 12, dtype=torch.bool),
                        torch.arange(60) % 14, m=14)
    tokenizer, by_side = tiny.pieces(), {}
    for side in reversed(args.sides):                 # ours last, for it puts its adapters into the language model
        theirs = their_language_model(language_model) if side == THEIRS else None
        torch.manual_seed(0)
        # On their side our language model only embeds the prompt.
        model = trrg.TRRG(swin=swin, image_projection=nn.Linear(d, d, bias=False), tau=torch.tensor(0.07), bank=bank,
                          language_model=language_model, tokenizer=tokenizer,
                          config=trrg.TRRGConfig(lora_rank=16 if side == OURS else 0, lora_dropout=0.1))
        model.image_projection.to(dtype)
        model.to(args.device).train()
        if side == OURS:
            model.language_model.checkpoint = args.checkpointing
        else:
            model.swin = Their("SwinModel", swin).to(args.device).eval().requires_grad_(False)
        by_side[side] = model, theirs
    return by_side


def stage_2(args):
    """{side: (step, first loss)}, batch and FLOPs of Eq. (5)."""
    shape, config = swin_config(args), SHAPES[args.shape][2]
    B, T, sides = args.batch_size, REPORT[args.shape], {}
    images = torch.randn(B, VIEWS, 3, shape.image_size, shape.image_size, device=args.device)
    ids = torch.randint(3, 300, (B, T), device=args.device)

    for side, (model, theirs) in writers(args).items():
        if side == OURS:
            def loss(model=model):
                return model.total(model(images, ids, ids))

            sides[side] = stepper(model, loss, args)
        else:
            import peft
            adapted = peft.get_peft_model(theirs, peft.LoraConfig(
                r=16, lora_alpha=16, lora_dropout=0.1, bias="none", target_modules=["q_proj", "v_proj"],
                task_type="CAUSAL_LM"))
            if args.checkpointing:
                theirs.gradient_checkpointing_enable({"use_reentrant": False})

            def loss(model=model, adapted=adapted):
                prompt = model.prompt(images)
                embeds = torch.cat([prompt.embeds, model.language_model.embed(ids).to(prompt.embeds)], 1)
                labels = torch.cat([ids.new_full((B, prompt.embeds.shape[1]), -100), ids], 1)
                ce = adapted(inputs_embeds=embeds, labels=labels, use_cache=False).loss
                return ce + disease_consistency(prompt.e_v, prompt.e_c).mean()

            rest = {name: child for name, child in model.named_children()
                    if name not in ("language_model", "swin", "bank")}
            sides[side] = stepper(nn.ModuleDict({"rest": nn.ModuleDict(rest), "language_model": adapted}), loss, args)

    with torch.no_grad():
        args.tokens = model.prompt(images[:1]).embeds.shape[1] + T
    flops = dry_run.swin_flops(shape, B * VIEWS) + 2 * (
        dry_run.mistral_flops(config, B, args.tokens) + 2 * B * T * config.hidden_size * config.vocab_size)
    return sides, B, flops


def decode_set(args):
    """{side: (seconds, GB at the peak)} of writing `--studies` reports, every side the same tokens in fp32."""
    figures, written = {}, {}
    settings = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    size = swin_config(args).image_size
    for side, (model, theirs) in writers(args).items():
        model.eval()
        eos = model.tokenizer.eos_id

        def write(images, model=model, theirs=theirs, eos=eos):
            if theirs is None:
                prompt = model.prompt(images)
                return generate(model.language_model, embeds=prompt.embeds, eos_id=eos, beams=BEAMS, **settings)
            embeds = model.prompt(images).embeds
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            return theirs.generate(inputs_embeds=embeds, attention_mask=mask, num_beams=BEAMS, do_sample=False,
                                   eos_token_id=eos, pad_token_id=eos, **settings).tolist()

        pictures = torch.randn(args.decode_batch, VIEWS, 3, size, size, generator=torch.Generator().manual_seed(0))
        pictures = pictures.to(args.device)
        with torch.no_grad():
            write(pictures[:1])                     # warms up
            wait(args.device)
            begun, written[side] = time.perf_counter(), []
            for start in range(0, args.studies, args.decode_batch):
                written[side].append(write(pictures[:args.studies - start]))
        figures[side] = time.perf_counter() - begun, wait(args.device)
    if len(written) == 2 and args.device == "cpu":
        ours, theirs = ([row[:TOKENS - 1] for batch in written[side] for row in batch] for side in (OURS, THEIRS))
        assert ours == theirs, "the two sides write different tokens"
    return figures


def stepper(model, loss, args):
    """One optimiser step, as the loop of train.py makes it, and the first loss, without dropout."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer_for(parameters, 1e-4, 0.05)

    def value():
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
            return loss()

    def step():
        now = value()
        now.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return now.item()

    with torch.no_grad():                   # without dropout, both sides must agree
        modes = {part: part.training for part in model.modules()}
        model.eval()
        first = value().item()
        for part, training in modes.items():
            part.training = training
    return step, first


def wait(device):
    """Waits for a GPU's queue; returns the gigabytes that were in use at most since the last call, 0 on the CPU."""
    if device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def steps(make, args):
    """{side: figures} of one stage: median seconds of interleaved steps, studies per second, what they need."""
    torch.manual_seed(0)
    sides, B, flops = make(args)
    losses = [first for _, first in sides.values()]
    if max(losses) - min(losses) > (1e-3 if args.device == "cpu" else 0.02) * max(map(abs, losses)):
        raise AssertionError(f"the sides' losses differ: {losses}")

    if args.device == "cuda":
        torch.cuda.empty_cache()                    # of what making the weights took
    times, memory = {side: [] for side in sides}, dict.fromkeys(sides, 0.0)
    for step, _ in sides.values():
        step()                                      # warms up
    for _ in range(args.repeats):
        for side, (step, _) in sides.items():
            wait(args.device)
            begun = time.perf_counter()
            step()
            memory[side] = wait(args.device)
            times[side].append(time.perf_counter() - begun)

    peak_flops, figures = peak(args.device), {}
    for side, (_, first) in sides.items():
        seconds = statistics.median(times[side])
        figures[side] = {"seconds": seconds, "studies_per_s": B / seconds, "first_loss": first, "gb": memory[side],
                         "utilisation": flops / seconds / peak_flops if peak_flops else None}
    return figures


def peak(device):
    """FLOP/s of the GPU's data sheet in dense bf16; None on the CPU and for a GPU that training/dry_run.py has not."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((flops * 1e12 for gpu, flops in dry_run.GPUS.items() if gpu in name), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="100m", choices=SHAPES)
    parser.add_argument("--image-size", type=int, choices=(224, 384), default=224,
                        help="pixels per side; 384: with windows of 12 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="of the steps (default: 2 on the CPU, 8 on a GPU)")
    parser.add_argument("--decode-batch", type=int, help="of decode-set (default: 4 on the CPU, 64 on a GPU)")
    parser.add_argument("--studies", type=int, help=f"of decode-set (default: 8 on the CPU, {TEST_SET} on a GPU)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--side", choices=("ours", "theirs", "both"), default="both",
                        help="one alone, to see its memory (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=record.HELP)
    args = parser.parse_args()
    args.sides = {"ours": [OURS], "theirs": [THEIRS], "both": [OURS, THEIRS]}[args.side]
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    args.batch_size = args.batch_size or (8 if gpu else 2)
    args.decode_batch, args.studies = args.decode_batch or (64 if gpu else 4), args.studies or (TEST_SET if gpu else 8)
    print(f"{gpu or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__}, shape {args.shape}, "
          f"batch {args.batch_size}", flush=True)
    for task, make in (("stage-1", stage_1), ("stage-2", stage_2)):
        if task in args.only:
            figures = steps(make, args)
            of = "" if args.side != "both" else " with both sides' weights"
            for side, row in figures.items():
                used = f", {row['utilisation']:.0%} of the peak FLOPs" if row["utilisation"] else ""
                print(f"{task}  {side:<13} {row['seconds'] * 1e3:9.1f} ms  {row['studies_per_s']:8.2f} studies/s{used}"
                      + (f", {row['gb']:.1f} GB{of}" if gpu else "") + f"   first loss {row['first_loss']:.4f}")
            ratio(task, {side: row["seconds"] for side, row in figures.items()}, args)
    if "decode-set" in args.only:
        torch.manual_seed(0)
        figures = decode_set(args)
        for side, (seconds, memory) in figures.items():
            print(f"decode-set  {side:<13} {args.studies:,} reports of {TOKENS} tokens, beam {BEAMS}, batches of "
                  f"{args.decode_batch}: {seconds:.1f} s, {args.studies / seconds:.2f} reports/s, {TEST_SET:,} in "
                  f"{TEST_SET / args.studies * seconds / 60:.1f} min" + (f", {memory:.1f} GB" if gpu else ""))
        ratio("decode-set", {side: seconds for side, (seconds, _) in figures.items()}, args)


def ratio(task, seconds, args):
    figures = {f"{task}, {side}, s": value for side, value in seconds.items()}
    if len(seconds) == 2:
        figures[f"{task}, ratio"] = seconds[THEIRS] / seconds[OURS]
        print(f"{task}  ratio {figures[f'{task}, ratio']:.2f}", flush=True)
    record.add(args, figures)


if __name__ == "__main__":
    main()
