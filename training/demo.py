"""The demo's stand-ins for what cannot be downloaded: a phantom data set and small base weights for it.

The language model is pre-trained on the *training* reports alone, with words of theirs as its prompt, and then, like
Mistral-7B-Instruct, frozen; Swin and BERT start at random. All are written in Hugging Face's layout and read back
through the same `from_pretrained` as the real ones.
"""

import os
import re
from functools import cache
from random import Random

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import trrg
from data import prepare as preparation
from data.dataset import Prepared, Visits
from data.phantom import label
from data.prompts import clue_prompts
from data.reports import clean_report, sentences
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert, BertConfig
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from training.optimizer import optimizer_for


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
    swin = Swin(SwinConfig(image_size=112, patch_size=8, window_size=7, embed_dim=64, depths=(2, 2), num_heads=(2, 4),
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
        vocab_size=len(pieces), hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=None))
    pretrain(mistral, pieces, reports, epochs=8, seed=seed)
    pieces.save_pretrained(folder / "mistral")
    mistral.save_pretrained(folder / "mistral")


@torch.no_grad()
def start(module, run):
    """Random weights that suit a narrow network: the published deviation of 0.02 is made for hundreds of channels.

    Matrices are drawn with deviation 1/√(fan-in), but for positions, which stay near 0: until training finds otherwise
    a word means the same wherever it stands, in a sentence or behind "Clue:". Then each norm's scale and shift are set,
    in the order in which they run, so that every channel has mean 0 and deviation 1 over real inputs (Krähenbühl et al.
    2016, arXiv:1511.06856).
    `run()` runs the module on such inputs. Returns the module.
    """
    for name, p in module.named_parameters():
        if p.ndim > 1 and "position" not in name:
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


@cache                                                     # sentences repeat
def says_what_is_there(sentence):
    """Whether a sentence of the phantom's reports names a finding as present."""
    return 1 in label(sentence)[0][:-1]


def can_be_seen(sentence):
    """Whether a sentence of the phantom's reports says how something looks, and not only what is absent."""
    return says_what_is_there(sentence) or re.search(r"\b(no|not)\b", sentence, re.I) is None


def pretrain(mistral, pieces, reports, epochs, seed, batch_size=16, lr=2e-3):
    """Teaches the language model to write, and to read its prompt, as the published one can: reports are all it sees.

    Where the prompt of `TRRG.assemble` has a picture's tokens, it has loose word pieces of what the report says is
    there, some from anywhere, and two times in five nothing but these; where it has clues, three such sentences, some
    of other reports, the first the likeliest to be right. The loss is that of the report. A language model that never
    looked into a prompt would have to learn that by LoRA alone. The sentences of a report stand in another order each
    time, those of findings first: learned by heart, the reports of stage 2 would be written without a look at their
    pictures.
    """
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    reports = [[(sentence, pieces.encode(sentence, special=False)) for sentence in sentences(report)]
               for report in reports]
    shown = [[row for sentence, row in report if can_be_seen(sentence)] for report in reports]
    findings = [[row for sentence, row in report if says_what_is_there(sentence)] for report in reports]
    others = [[row for sentence, row in report if not says_what_is_there(sentence)] for report in reports]
    anything = [piece for of_report in shown for sentence in of_report for piece in sentence]
    before, between, after = ([piece for text in texts for piece in pieces.encode(text, special=False)] for texts in (
        ["[INST] <Img>"], ["</Img>", "<Clue>"], ["</Clue>", f"{trrg.INSTRUCTION} [/INST]"]))

    def shuffled(items):
        return random.sample(items, len(items))

    def example(i):
        """Of report i: (ids, labels), the prompt labelled -100."""
        seen = [piece for sentence in shown[i] for piece in sentence]
        if not seen or random.random() < 0.4:
            seen = anything
        picture = [random.choice(anything if random.random() < 0.2 else seen) for _ in range(49)]
        clues = shuffled(shown[i])[:3]
        for number in range(3):
            if number >= len(clues) or random.random() < 0.1 + 0.1 * number:
                clues[number:number + 1] = [random.choice(random.choice(shown) or [anything[:10]])]
        prompt = [pieces.bos_id, *before, *picture, *between, *(piece for clue in clues for piece in clue), *after]
        report = [*(piece for row in shuffled(findings[i]) + shuffled(others[i]) for piece in row), pieces.eos_id]
        return torch.tensor(prompt + report), torch.tensor([-100] * len(prompt) + report)

    steps = epochs * (len(reports) // batch_size)
    optimizer = optimizer_for(dict(mistral.named_parameters()), lr, weight_decay=0.01, muon=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    pad = torch.nn.utils.rnn.pad_sequence
    bar = tqdm(total=steps, desc="language model", unit="step")
    for _ in range(epochs):
        order = torch.randperm(len(reports), generator=generator).tolist()
        for start in range(0, len(reports) - batch_size + 1, batch_size):
            ids, labels = zip(*(example(i) for i in order[start:start + batch_size]))
            ids = pad(ids, batch_first=True, padding_value=pieces.eos_id)
            labels = pad(labels, batch_first=True, padding_value=-100)[:, 1:]
            hidden = mistral.hidden(ids=ids[:, :-1])[labels != -100]
            loss = cross_entropy(mistral.logits(hidden), labels[labels != -100])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mistral.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
