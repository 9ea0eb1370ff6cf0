"""What the demo's text networks know before the stages begin, as published ones do: ClinicalBERT has read what notes
mean, Mistral-7B-Instruct writes and heeds its prompt. Both learn from the reports of the train split alone; neither
sees a picture.
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
    """What a sentence says is there, as a set of findings, severities, sides, zones and devices; else {"nothing"}."""
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
    """Whether a sentence names a finding as present."""
    return PRESENT in label(sentence)[0][:-1]


def can_be_seen(sentence):
    """Whether a sentence says how something looks, and not only what is absent."""
    return says_what_is_there(sentence) or re.search(r"\b(no|not)\b", sentence, re.I) is None


# ---------------------------------------------------------------------------------------------------------------------
# BERT: texts that say the same lie close together


def teach_meaning(bert, words, texts, seed, epochs=30, batch_size=128, lr=1e-3):
    """Trains BERT until the cosine of two texts' cls tokens is that of the sets of what they say.

    Without it stage 1 has to find out at the same time what pictures show and what words mean, and each encoder learns
    from a partner that knows nothing.
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
# Mistral: reports from a prompt as `TRRG.assemble` puts it together, with words in the place of pictures and clues


class Prompts:
    """Reports with prompts for them, drawn anew each time; what they are like decides what the language model heeds.

    In the picture's place stand loose word pieces of what the report says is there. In the clues' place stand three
    sentences that say how something looks, from this report as far as it has any; the first is the likeliest to be
    right, as with recognised clues. The sentences of a report stand in another order each time, those of findings
    first: learned by heart, the reports of stage 2 would be written without a look at their pictures.
    """

    PICTURE_TOKENS = 49
    BLIND = 0.4                            # share of reports whose picture's place tells nothing
    STRAY = 0.2                            # share of pieces in the picture's place that are from anywhere
    WRONG_CLUE = (0.1, 0.2, 0.3)           # share of clues, by their rank, that are another report's

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
        """Of report i: (ids, labels), the prompt labelled -100."""
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
        """(ids, labels), (B, T) both, of these reports; pads stand on the right, labelled -100."""
        ids, labels = zip(*map(self.example, numbers))
        return (pad_sequence(ids, batch_first=True, padding_value=self.pieces.eos_id),
                pad_sequence(labels, batch_first=True, padding_value=-100))

    def shuffled(self, items):
        return self.random.sample(items, len(items))


def teach_writing(mistral, pieces, reports, seed, epochs=8, batch_size=16, lr=2e-3):
    """Teaches the language model to write reports, and to read its prompt, as the published one can.

    The loss is that of the report. A language model that never looked into a prompt would have to learn that by LoRA
    alone.
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
