"""The demo's substitutes for downloads: a phantom data set, and small base weights for it.

Swin gets random weights. BERT and the language model are pre-trained on the *training* reports alone
(training/pretraining.py); like Mistral-7B-Instruct, the language model is then frozen. The weights are written in
Hugging Face's layout and read by the same `from_pretrained` as the published ones.
"""

import json
import multiprocessing
import os
import sys

import torch

import trrg
from data import prepare as preparation
from data.dataset import Prepared, Visits
from data.files import UserError, whole_file
from data.prompts import clue_prompts, flattened
from data.reports import clean_report, sentences
from data.tokenizers import SentencePiece, WordPiece
from data.workers import ctrl_c_later, start_worker
from model.bert import Bert, BertConfig
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from training.pretraining import teach_meaning, teach_writing
from training.timetable import Part

STUDIES = (2000, 300, 500)                 # train, val, test
MARK = "demo.json"                         # marks a folder of weights as the demo's; written before the weights

# Seconds on the machine of timetable.REFERENCE: to draw a picture; to pre-train BERT; to pre-train the language model;
# to train on one study in stage 1, in stage 2
DRAWING, MEANING, WRITING, VISIT = 0.005, 15, 165, (0.009, 0.022)


def lacking(data, weights, slowness):
    """The `Part`s of the work that `prepare` will have to do."""
    parts = []
    if not drawn(data):
        seconds = 1.4 * sum(STUDIES) * DRAWING * slowness / os.cpu_count()
        parts += [Part("drawing", f"drawing {sum(STUDIES):,} phantoms into {data}", seconds)]
    if not written(weights):
        parts += [Part("meaning", f"base weights in {weights}: BERT learns what sentences mean", MEANING * slowness),
                  Part("writing", "the base language model, at the same time as stage 1", WRITING * slowness,
                       beside=True)]
    return parts


def drawn(data):
    return (data / "manifest.json").exists()


def written(weights):
    """Whether all base weights are there; of those that the demo makes, either side may be missing."""
    ours = (weights / MARK).exists()
    return (weights / "mistral" / "model.safetensors").exists() and (not ours or (weights / "bert/vocab.txt").exists())


def prepare(data, weights, seed, timetable):
    """Makes the phantom data set in `data` and the base weights in `weights`, if they are missing.

    Returns the process that still pre-trains the language model, which stage 1 does not need; None if there is none.
    """
    if not drawn(data):
        timetable.begin("drawing")
        preparation.phantom(data, STUDIES, seed, 128, os.cpu_count())
        timetable.end()
    if written(weights):
        return None

    weights.mkdir(parents=True, exist_ok=True)
    with whole_file(weights / MARK) as file:
        file.write(json.dumps({"seed": seed}) + "\n")

    # In a process of its own, until stage 2 needs it: such small networks gain little from a second thread.
    prepared = Prepared(data)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=language_model, args=(weights, prepared, seed), daemon=True)
    with ctrl_c_later():
        process.start()

    timetable.begin("meaning")
    encoders(weights, prepared, seed)
    timetable.end()
    return process


def wait_for(process, weights):
    """Waits until the language model is pre-trained. Raises UserError if the process failed."""
    if process is not None:
        process.join()
        if process.exitcode:
            how = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            raise UserError(f"{weights}: the language model's pre-training failed ({how}); stage 1 is saved: run the "
                            "command again")


def encoders(folder, prepared, seed):
    """Writes swin/ and bert/, and the language model's tokenizer, under `folder`, from the train split alone."""
    torch.manual_seed(seed)
    studies = prepared.split("train")
    reports = [clean_report(study["report"]) for study in studies]

    sample = Visits(prepared, studies[::16], stage=1, crop=112)
    pictures = torch.cat([sample[0, number]["images"] for number in range(len(sample))])
    swin = Swin(SwinConfig(image_size=112, patch_size=8, window_size=7, embed_dim=64, depths=(2, 2), num_heads=(2, 4),
                           drop_path_rate=0.0))
    start(swin, lambda: swin(pictures)).save_pretrained(folder / "swin")

    prompts = flattened(clue_prompts())[0]
    words = WordPiece.train(reports + prompts, size=1500, lower_case=True)
    bert = Bert(BertConfig(vocab_size=len(words), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=256, max_position_embeddings=64, hidden_dropout_prob=0.0,
                           attention_probs_dropout_prob=0.0))
    ids, mask = trrg.encode_words(words, [sample[0, number]["text"][0] for number in range(len(sample))], 64)
    start(bert, lambda: bert(ids, mask))
    read = torch.tensor(sorted({piece for report in reports for piece in words.encode(report)}))
    with torch.no_grad():       # a piece that occurs in no report ("clue") never trains: zeros, not random noise
        table = bert.embeddings.word_embeddings.weight
        table.copy_(torch.zeros_like(table).index_copy(0, read, table[read]))
    teach_meaning(bert, words, sorted({text for report in reports for text in sentences(report)}) + prompts, seed)
    bert.save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")


def language_model(folder, prepared, seed):
    """Pre-trains the language model and writes mistral/ under `folder`; runs in a process of its own."""
    start_worker()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    reports = [clean_report(study["report"]) for study in prepared.split("train")]
    # The tokenizer also learns the prompt's fixed words, which would else be two fifths of all tokens, letter by
    # letter.
    frame = ["[INST] <Img>", "</Img> <Clue>", f"</Clue> {trrg.INSTRUCTION} [/INST]"]
    pieces = SentencePiece.train(reports + 100 * frame, size=700)
    mistral = Mistral(MistralConfig(
        vocab_size=len(pieces), hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=None))
    teach_writing(mistral, pieces, reports, seed)
    try:
        pieces.save_pretrained(folder / "mistral")
        mistral.save_pretrained(folder / "mistral")
    except OSError as error:
        sys.exit(f"{folder / 'mistral'}: {error.strerror}")        # one line; `wait_for` gives the remedy


@torch.no_grad()
def start(module, run):
    """Random weights that suit a narrow network; the published standard deviation of 0.02 suits hundreds of channels.

    Matrices are drawn with standard deviation 1/√(fan-in). Position embeddings are not: they stay near 0, so that at
    first a word means the same at every position, in a sentence or after "Clue:". Then each norm's scale and shift are
    set, in the order in which the norms run, so that every channel has mean 0 and standard deviation 1 over real inputs
    (Krähenbühl et al. 2016, arXiv:1511.06856).

    `run()` runs the module on such inputs. Returns the module.
    """
    for name, p in module.named_parameters():
        if p.ndim > 1 and "position" not in name:
            torch.nn.init.trunc_normal_(p, std=p[0].numel() ** -0.5)
    norms = []
    hooks = [norm.register_forward_hook(lambda norm, _, out: norms.append(norm))
             for norm in module.modules() if isinstance(norm, torch.nn.LayerNorm)]
    run()
    for hook in hooks:
        hook.remove()
    for norm in norms:
        outputs = []
        hook = norm.register_forward_hook(lambda norm, _, out: outputs.append(out.flatten(0, -2)))
        run()
        hook.remove()
        mean, deviation = outputs[0].mean(0), outputs[0].std(0) + 1e-3
        norm.bias.sub_(mean).div_(deviation)
        norm.weight.div_(deviation)
    return module
