"""The demo's stand-ins for what cannot be downloaded: a phantom data set and small base weights for it.

The language model is pre-trained on the *training* reports alone and then, like Mistral-7B, frozen; Swin and BERT start
at random. All are written in Hugging Face's layout and read back through the same `from_pretrained` as the real ones.
"""

import os

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import trrg
from data import prepare as preparation
from data.dataset import Prepared, Visits
from data.prompts import clue_prompts
from data.reports import clean_report
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert, BertConfig
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig


def prepare(data, weights, seed):
    """Makes the phantom under `data` and the base weights under `weights`, where they are missing."""
    if not (data / "manifest.json").exists():
        print(f"drawing the phantom data set into {data}")
        preparation.phantom(data, (2000, 300, 500), seed, 128, os.cpu_count())
    if not (weights / "mistral" / "model.safetensors").exists():
        print(f"making the demo's base weights in {weights}")
        base_weights(weights, Prepared(data), seed)


def base_weights(folder, prepared, seed):
    """Writes swin/, bert/ and, last, mistral/ under `folder`; the pictures and texts are those of the train split."""
    torch.manual_seed(seed)
    studies = prepared.split("train")
    reports = [clean_report(study["report"]) for study in studies]

    some = Visits(prepared, studies[::16], stage=1, crop=112)
    pictures = torch.cat([some[0, number]["images"] for number in range(len(some))])
    swin = Swin(SwinConfig(image_size=112, patch_size=8, window_size=7, embed_dim=64, depths=(2, 2), num_heads=(8, 16),
                           drop_path_rate=0.0))
    start(swin, lambda: swin(pictures)).save_pretrained(folder / "swin")

    prompts = [text for texts in clue_prompts() for text in texts]
    words = WordPiece.train(reports + prompts, size=1500, lower_case=True)
    bert = Bert(BertConfig(vocab_size=len(words), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=256, max_position_embeddings=64, hidden_dropout_prob=0.0,
                           attention_probs_dropout_prob=0.0))
    ids, mask = trrg.encode_words(words, [visit["text"][0] for visit in (some[0, n] for n in range(len(some)))], 64)
    start(bert, lambda: bert(ids, mask))
    read = torch.tensor(sorted({piece for report in reports for piece in words.encode(report)}))
    with torch.no_grad():       # a piece that no report holds ("clue") would stay noise for ever: it starts as nothing
        table = bert.embeddings.word_embeddings.weight
        table.copy_(torch.zeros_like(table).index_copy(0, read, table[read]))
    bert.save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")

    # The prompt's own words become pieces too: spelled out letter by letter they would be two fifths of all tokens.
    frame = ["[INST] <Img>", "</Img> <Clue>", f"</Clue> {trrg.INSTRUCTION} [/INST]"]
    pieces = SentencePiece.train(reports + 100 * frame, size=700)
    mistral = Mistral(MistralConfig(
        vocab_size=len(pieces), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, sliding_window=None))
    pretrain(mistral, pieces, reports, epochs=2, seed=seed)
    pieces.save_pretrained(folder / "mistral")
    mistral.save_pretrained(folder / "mistral")


@torch.no_grad()
def start(module, run):
    """Random weights that suit a narrow network: the published deviation of 0.02 is made for hundreds of channels.

    Matrices are drawn with deviation 1/√(fan-in); then each norm's scale and shift are set, in the order in which they
    run, so that every channel has mean 0 and deviation 1 over real inputs (Krähenbühl et al. 2016, arXiv:1511.06856).
    `run()` runs the module on such inputs. Returns the module.
    """
    for name, p in module.named_parameters():
        if p.ndim > 1 and "relative_position" not in name:
            torch.nn.init.trunc_normal_(p, std=p[0].numel() ** -0.5)
    norms = []
    notes = [norm.register_forward_hook(lambda norm, _, out: norms.append(norm))
             for norm in module.modules() if isinstance(norm, torch.nn.LayerNorm)]
    run()
    for note in notes:
        note.remove()
    for norm in norms:
        outputs = []
        note = norm.register_forward_hook(lambda norm, _, out: outputs.append(out.flatten(0, -2)))
        run()
        note.remove()
        mean, deviation = outputs[0].mean(0), outputs[0].std(0) + 1e-3
        norm.bias.sub_(mean).div_(deviation)
        norm.weight.div_(deviation)
    return module


def pretrain(mistral, pieces, reports, epochs, seed, batch_size=32, lr=3e-3):
    """Plain next-token language modelling of the reports: <s> report </s>."""
    rows = [torch.tensor([pieces.bos_id, *pieces.encode(text, special=False), pieces.eos_id]) for text in reports]
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(rows) // batch_size)
    optimizer = torch.optim.AdamW(mistral.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    bar = tqdm(total=steps, desc="language model", unit="step")
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            batch = [rows[i] for i in order[start:start + batch_size]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pieces.eos_id)
            labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)[:, 1:]
            loss = cross_entropy(mistral(ids=ids[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=-100)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mistral.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
