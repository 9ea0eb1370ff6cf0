"""A training step of each stage, next to the same step made of transformers' models and PEFT's adapters, in one run.

    OMP_NUM_THREADS=1 python tests/bench_train.py                      # CPU: a language model of 100 M parameters, fp32
    python tests/bench_train.py --device cuda --shape 7b               # a GPU: the paper's shapes, batch 8, bf16

Random weights, the same on both sides; runs alternate, medians are printed. Studies a second, FLOP utilisation of a GPU
(FLOPs as estimate.py counts them) and the GPU's peak memory, ours first; a ratio above 1: ours is the faster.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import estimate  # noqa: E402
import trrg  # noqa: E402
from data.tokenizers import SentencePiece  # noqa: E402
from model.bert import Bert, BertConfig  # noqa: E402
from model.clues import ClueBank  # noqa: E402
from model.mistral import Mistral, MistralConfig  # noqa: E402
from model.swin import Swin, SwinConfig  # noqa: E402
from schedule import optimizer_for  # noqa: E402
from tests import tiny  # noqa: E402
from tests.bench_models import quiet  # noqa: E402

SHAPES = {
    "100m": (SwinConfig(embed_dim=64, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16)), BertConfig(num_hidden_layers=4),
             MistralConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12, num_key_value_heads=4, head_dim=64)),
    "7b": (SwinConfig(), BertConfig(), MistralConfig())}
SENTENCE, REPORT, VIEWS = 32, {"100m": 64, "7b": 160}, 2


def their(kind, ours):
    """transformers' model with our weights, by way of a folder that both read."""
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(Path(folder))
        pooler = {} if kind == "MistralForCausalLM" else {"add_pooling_layer": False}
        return getattr(quiet(), kind).from_pretrained(folder, dtype="auto", **pooler)


class Their(nn.Module):
    """transformers' Swin or BERT behind the interface of ours."""

    def __init__(self, kind, ours):
        super().__init__()
        self.config, self.model = ours.config, their(kind, ours)

    def forward(self, x, mask=None):
        out = self.model(pixel_values=x) if mask is None else self.model(input_ids=x, attention_mask=mask)
        return out.last_hidden_state


def stage_1(args):
    """{side: step}, batch and FLOPs of Eq. (1) on both encoders."""
    swin_config, bert_config, _ = SHAPES[args.shape]
    swin, bert = Swin(swin_config), Bert(bert_config)
    sides, B = {}, args.batch_size
    images, ids = torch.randn(B, 3, 224, 224, device=args.device), torch.randint(5, 1000, (B, SENTENCE), device=args.device)
    for side in ("ours", "transformers"):
        pair = (copy.deepcopy(swin), copy.deepcopy(bert)) if side == "ours" else (Their("SwinModel", swin), Their("BertModel", bert))
        torch.manual_seed(0)
        model = trrg.Alignment(*pair, trrg.AlignmentConfig(d=swin_config.width)).to(args.device).train()

        def loss(model=model):
            v, t = model(images, ids, torch.ones_like(ids).bool())
            return trrg.contrastive_loss(v.float(), t.float(), model.tau)

        sides[side] = stepper(model, loss, args)
    flops = 3 * (estimate.swin_flops(swin_config, B) + estimate.bert_flops(bert_config, B, SENTENCE))
    return sides, B, flops


def stage_2(args):
    """{side: step}, batch and FLOPs of Eq. (5): the same clue side, on each library's language model and Swin."""
    swin_config, _, mistral_config = SHAPES[args.shape]
    dtype, B, d, T = torch.float32 if args.device == "cpu" else torch.bfloat16, args.batch_size, swin_config.width, REPORT[args.shape]
    with torch.device(args.device):
        swin, language_model = Swin(swin_config).to(dtype), Mistral(mistral_config).to(dtype)
        bank = ClueBank(torch.randn(60, 12, d), torch.randn(60, d), torch.ones(60, 12, dtype=torch.bool), torch.arange(60) % 14)
        images = torch.randn(B, VIEWS, 3, 224, 224)
        ids = torch.randint(3, 300, (B, T))
    tokenizer: SentencePiece = tiny.pieces()
    theirs, sides = their("MistralForCausalLM", language_model).to(args.device), {}
    import peft
    for side in ("transformers", "ours"):             # ours last, for it puts its adapters into the language model
        torch.manual_seed(0)
        # On their side our language model only embeds the prompt.
        model = trrg.TRRG(swin, nn.Linear(d, d, bias=False), torch.tensor(0.07), bank, language_model,
                          tokenizer, trrg.TRRGConfig(lora_rank=16 if side == "ours" else 0, lora_dropout=0.1))
        model.image_projection.to(dtype)
        model.to(args.device).train()
        if side == "ours":
            model.language_model.checkpoint = args.checkpointing

            def loss(model=model):
                return trrg.loss_total(model(images, ids, ids), 1.0)

            sides[side] = stepper(model, loss, args)
            ours = model
        else:
            adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, bias="none",
                                                                  target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
            if args.checkpointing:
                theirs.gradient_checkpointing_enable({"use_reentrant": False})
            model.swin = Their("SwinModel", swin).to(args.device).eval().requires_grad_(False)

            def loss(model=model):
                prompt = model.prompt(images)
                embeds = torch.cat([prompt.embeds, model.language_model.embed(ids).to(prompt.embeds)], 1)
                labels = torch.cat([ids.new_full((B, prompt.embeds.shape[1]), -100), ids], 1)
                ce = adapted(inputs_embeds=embeds, labels=labels).loss
                return ce + trrg.disease_consistency(prompt.e_v, prompt.e_c).mean()

            both = nn.ModuleDict({"rest": nn.ModuleDict({name: child for name, child in model.named_children() if name not in ("language_model", "swin", "bank")}),
                                  "language_model": adapted})
            sides[side] = stepper(both, loss, args)
    prompt_tokens = ours.prompt(images[:1]).embeds.shape[1]
    flops = estimate.swin_flops(swin_config, B * VIEWS) + 2 * (
        estimate.mistral_flops(mistral_config, B, prompt_tokens + T) + 2 * B * T * mistral_config.hidden_size * mistral_config.vocab_size)
    return sides, B, flops


def stepper(model, loss, args):
    """One optimiser step, as the loop of train.py makes it."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer_for(parameters, 1e-4, 0.05)

    def step():
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="100m", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, help="default: 2 on the CPU, 8 on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--stage", type=int, choices=(1, 2))
    args = parser.parse_args()
    args.batch_size = args.batch_size or (2 if args.device == "cpu" else 8)
    gpu = SimpleNamespace(name=torch.cuda.get_device_name(), wait=torch.cuda.synchronize) if args.device == "cuda" else None
    peak_flops = next((flops for name, flops in estimate.GPUS.items() if gpu and name in gpu.name), None)
    print(f"{gpu.name if gpu else 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__}, shape {args.shape}, batch {args.batch_size}")
    for number, make in ((1, stage_1), (2, stage_2)):
        if args.stage in (None, number):
            torch.manual_seed(0)
            sides, B, flops = make(args)
            first = {side: step() for side, step in sides.items()}
            times, memory = {side: [] for side in sides}, {}
            for _ in range(args.repeats):
                for side, step in sides.items():
                    if gpu:
                        gpu.wait()
                        torch.cuda.reset_peak_memory_stats()
                    begun = time.perf_counter()
                    step()
                    if gpu:
                        gpu.wait()
                        memory[side] = torch.cuda.max_memory_allocated() / 1e9
                    times[side].append(time.perf_counter() - begun)
            median = {side: statistics.median(values) for side, values in times.items()}
            for side in sides:
                used = f", {flops / median[side] / peak_flops / 1e12:.0%} of the peak FLOPs" if peak_flops else ""
                print(f"stage {number}  {side:<13} {median[side] * 1e3:9.1f} ms  {B / median[side]:8.2f} studies/s{used}"
                      + (f", {memory[side]:.1f} GB with both sides' weights" if gpu else "") + f"   first loss {first[side]:.4f}")
            print(f"stage {number}  ratio {median['transformers'] / median['ours']:.2f}", flush=True)


if __name__ == "__main__":
    main()
