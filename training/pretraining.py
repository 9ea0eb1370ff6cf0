"""Pre-training of the demo's two text networks, which stand in for published ones: BERT learns what sentences mean, as
ClinicalBERT has from clinical notes; the language model learns to write reports and to follow its prompt, as
Mistral-7B-Instruct can. Both read only the reports of the train split; neither sees a picture.
"""

import re
from functools import cache
from random import Random

import torch
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import trrg
from data.phantom import label
from data.reports import PRESENT, sentences
from model.clues import cosine
from training.optimizer import optimizer_for, set_learning_rate
from training.schedule import learning_rate

DEVICES = ("endotracheal", "nasogastric", "catheter", "pacemaker", "wire", "chest tube")


@cache                                     # sentences repeat
def statements(sentence):
    """The set of findings, severities, sides, zones and devices that a sentence states; {"nothing"} if there is
    none."""
    said = set()
    for found in label(sentence)[1]:
        name = found["finding"]
        said |= {name, *((name, severity) for severity in [found["severity"]] if severity)}
        said |= {("at", word) for word in found["location"].split() if word != "zone"}
        if name == "Support Devices":
            said |= {device for device in DEVICES if device in sentence.lower()}
    return frozenset(said or {"nothing"})


@cache
def says_what_is_there(sentence):
    """Whether a sentence states that a finding is present."""
    return PRESENT in label(sentence)[0][:-1]


def can_be_seen(sentence):
    """Whether a sentence describes something visible, and not only the absence of findings."""
    return says_what_is_there(sentence) or re.search(r"\b(no|not)\b", sentence, re.I) is None


# ---------------------------------------------------------------------------------------------------------------------
# BERT: texts with the same meaning get similar vectors


def teach_meaning(bert, words, texts, seed, epochs=30, batch_size=128, lr=1e-3):
    """Trains BERT so that the cosine of two texts' cls tokens equals the cosine of their `statements`, as 0/1 vectors.

    Without this, stage 1 would have to learn what pictures show and what words mean at the same time, and each encoder
    would learn from a partner that knows nothing.
    """
    said = [statements(text) for text in texts]
    known = sorted(set().union(*said), key=str)
    says = normalize(torch.tensor([[float(statement in of_text) for statement in known] for of_text in said]), dim=1)
    optimizer = torch.optim.AdamW(bert.parameters(), lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)

    steps = epochs * -(-len(texts) // batch_size)
    for step in tqdm(range(steps), desc="meaning of sentences", unit="step"):
        batch = torch.randperm(len(texts), generator=generator)[:batch_size]
        ids, mask = trrg.encode_words(words, [texts[i] for i in batch], bert.config.max_position_embeddings)
        cls = bert(ids, mask)[:, 0]
        loss = (cosine(cls, cls) - says[batch] @ says[batch].T).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warm_up=0.05)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------------------------------------------------------------
# Mistral: reports from a prompt in the form of `TRRG.assemble`, with word pieces in place of pictures and clues


class Prompts:
    """Training examples: reports with prompts that are drawn anew each time.

    The picture's place holds single word pieces from the report's visible statements. The clues' place holds three
    sentences that describe something visible: from this report, as far as it has such sentences, but each is replaced
    by another report's with a probability that grows with its rank, as recognised clues become less certain. A report's
    sentences are shuffled each time, findings first: a model that knew the reports by heart would write them in stage 2
    without using the pictures.
    """

    PICTURE_TOKENS = 49
    BLIND = 0.4                            # share of reports whose picture's place holds random pieces only
    STRAY = 0.2                            # share of random pieces in the picture's place of the other reports
    WRONG_CLUE = (0.1, 0.2, 0.3)           # share of clues, by rank, that come from another report

    def __init__(self, reports, pieces, seed):
        self.pieces, self.random = pieces, Random(seed)
        rows = [[(sentence, pieces.encode(sentence, special=False)) for sentence in sentences(report)]
                for report in reports]
        self.visible = [[row for sentence, row in report if can_be_seen(sentence)] for report in rows]
        self.findings = [[row for sentence, row in report if says_what_is_there(sentence)] for report in rows]
        self.others = [[row for sentence, row in report if not says_what_is_there(sentence)] for report in rows]
        self.any_clue = [row for report in self.visible for row in report]
        self.any_piece = [piece for row in self.any_clue for piece in row]
        self.before, self.between, self.after = (
            [piece for text in texts for piece in pieces.encode(text, special=False)]
            for texts in (["[INST] <Img>"], ["</Img>", "<Clue>"], ["</Clue>", f"{trrg.INSTRUCTION} [/INST]"]))

    def example(self, i):
        """(ids, labels) of report i, (T,) each; the prompt is labelled -100."""
        random = self.random
        seen = [piece for row in self.visible[i] for piece in row]
        if not seen or random.random() < self.BLIND:
            seen = self.any_piece
        picture = [random.choice(self.any_piece if random.random() < self.STRAY else seen)
                   for _ in range(self.PICTURE_TOKENS)]

        right = self.shuffled(self.visible[i])
        clues = [random.choice(self.any_clue) if random.random() < wrong or not right else right.pop(0)
                 for wrong in self.WRONG_CLUE]

        prompt = [self.pieces.bos_id, *self.before, *picture, *self.between,
                  *(piece for row in clues for piece in row), *self.after]
        report = [*(piece for row in self.shuffled(self.findings[i]) + self.shuffled(self.others[i]) for piece in row),
                  self.pieces.eos_id]
        return torch.tensor(prompt + report), torch.tensor([-100] * len(prompt) + report)

    def batch(self, numbers):
        """(ids, labels), (B, T) each, of the reports with these numbers; padding is on the right, labelled -100."""
        ids, labels = zip(*map(self.example, numbers))
        return (pad_sequence(ids, batch_first=True, padding_value=self.pieces.eos_id),
                pad_sequence(labels, batch_first=True, padding_value=-100))

    def shuffled(self, items):
        return self.random.sample(items, len(items))


def teach_writing(mistral, pieces, reports, seed, epochs=8, batch_size=16, lr=2e-3):
    """Teaches the language model to write reports and to use its prompt, as the published model can.

    The loss is on the report's tokens only. Without this step the language model would have to learn to use a prompt
    by LoRA alone.
    """
    prompts, generator = Prompts(reports, pieces, seed), torch.Generator().manual_seed(seed)
    steps_per_epoch = len(reports) // batch_size
    steps = epochs * steps_per_epoch
    optimizer = optimizer_for(dict(mistral.named_parameters()), lr, weight_decay=0.01, muon=True)

    for step in range(steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(reports), generator=generator).tolist()
        batch, order = order[:batch_size], order[batch_size:]

        ids, labels = prompts.batch(batch)
        supervised = labels[:, 1:] != -100
        hidden = mistral.hidden(ids=ids[:, :-1])[supervised]
        loss = cross_entropy(mistral.logits(hidden), labels[:, 1:][supervised])
        loss.backward()

        torch.nn.utils.clip_grad_norm_(mistral.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate(step, steps, lr, warm_up=0.1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
