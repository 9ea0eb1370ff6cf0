"""--explain: the computation of one report, step by step, to learn how the model works and why a report says something.

Printed by `evaluate.py --ckpt … --image … --explain`.
"""

from contextlib import contextmanager

import torch

from data.reports import LABELS
from model.clues import cosine
from model.decode import generate

WIDTH = 100                            # characters per printed line

# The output of each part, in the paper's order. Parts that a variant lacks are not listed.
STEPS = {
    "swin": "patch tokens of each view, after the last norm",
    "image_projection": "v_e, the patch tokens in R^d, the space shared with text (stage 1)",
    "mapper": "v_d = W v_e + b",
    "bank": "w, and the tokens c_s of the k heaviest clues",
    "interaction.visual_stream": "V', Eq. (2)",
    "interaction.visual_extract": "E^v, Eq. (3)",
    "interaction.clue_stream": "C', Eq. (2)",
    "interaction.clue_extract": "E^c, Eq. (3)",
    "visual_projector": "P_v, to the width of the language model",
    "clue_projector": "P_c, the same for the clues",
}


def explain(model, pictures):
    """The views of one study (paths or PIL images, frontal first) → the explanation as text. Raises UserError."""
    images = model.open(pictures)
    with torch.no_grad(), recorded(model) as steps:
        prompt = model.prompt(images)
    tokens = generate(model.language_model, embeds=prompt.embeds, eos_id=model.tokenizer.eos_id, **model.decoding)[0]
    parts = [shapes(model, images, steps, prompt)]
    if model.config.clues:
        parts.append(ranking(model, prompt))
    return "\n\n".join([*parts, assembled(model, prompt), written(model, prompt, tokens)])


@contextmanager
def recorded(model):
    """A context that records the output shapes of the parts in `STEPS`: yields a list, filled with (name, shape) as the
    parts run.
    """
    steps = []

    def note(name):
        def hook(module, inputs, output):
            first = output if torch.is_tensor(output) else output.tokens if name == "bank" else output[0]
            steps.append((name, tuple(first.shape)))
        return hook

    parts = dict(model.named_modules())
    hooks = [parts[name].register_forward_hook(note(name)) for name in STEPS if name in parts]
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


def shapes(model, images, steps, prompt):
    """The shape of every step from the pictures to the prompt, one line per step."""
    size = model.pictures["size"]
    rows = [("pictures", (images.shape[1], size, size), "gray, 8 bit, one per view"),
            ("encoder's input", tuple(images.shape), "centre crop, ImageNet's mean and deviation; (studies, views, …)")]
    rows += [(name, shape, STEPS[name]) for name, shape in steps]
    rows.append(("prompt", tuple(prompt.embeds.shape), "all parts together, the input of the language model"))
    first, second = (max(len(str(row[i])) for row in rows) for i in (0, 1))
    lines = [f"  {name:<{first}}  {str(shape):<{second}}  {what}" for name, shape, what in rows]
    return "\n".join(["Shapes, step by step", *lines])


def ranking(model, prompt):
    """All m diseases by weight, each with its best prompt; injected ones are marked."""
    m = len(LABELS)
    every = model.bank(v_cls(prompt), model.tau, m)
    injected = prompt.clues.disease[0].tolist()
    lines = [f"Clues: v_cls against {len(model.bank.cls)} prompts of {m} diseases, cosine / τ with τ = "
             f"{model.tau.item():.4f}, softmax over the diseases"]
    scores = cosine(v_cls(prompt).float(), model.bank.cls.float())[0]
    for rank, (disease, number) in enumerate(zip(every.disease[0].tolist(), every.prompt[0].tolist()), start=1):
        weight = every.weights[0, disease].item()
        masked = weight < model.config.clue_threshold
        mark = f"  ← {'under the threshold' if masked else 'injected'}" if disease in injected else ""
        lines.append(f"  {rank:>2} {weight:7.2%} {'█' * round(20 * weight):<20} {LABELS[disease]:<26} "
                     f"{scores[number].item():+.3f}  {model.bank.texts[number].removeprefix('Clue: ')}{mark}")
    return "\n".join(lines)


def v_cls(prompt):
    """The mean of all patch tokens (1, d), which recognition compares with the prompts."""
    return prompt.v_e.mean(1)


def assembled(model, prompt):
    """The prompt's parts with their positions; text in quotes, embeddings in angle quotes."""
    embeddings = {"v_d": "patch tokens through W and P_v",
                  "E^v": "output of the queries over the picture, through P_v",
                  "E^c": "output of the queries over the clues, through P_c",
                  "c_s": "the clues' own tokens, through P_c",
                  "words": "the clues in words, each after a word for its certainty, as the language model's own "
                           "tokens"}
    lines, place = [f"Prompt: {prompt.embeds.shape[1]} tokens of width {prompt.embeds.shape[2]}"], 0
    for name, length in prompt.parts:
        what = f"‹{name}› {embeddings[name]}" if name in embeddings else f'"{name}"'
        unit = "token " if length == 1 else "tokens"
        lines.append(f"  {place:>5} – {place + length - 1:<5} {length:>4} {unit} {what}")
        place += length
    return "\n".join(lines)


@torch.no_grad()
def token_probabilities(model, prompt, tokens):
    """[(token, its probability, [(alternative, probability)] * 3)], by one forward pass over the prompt and the report.

    These are the model's own probabilities, without the penalties and beams by which decoding chose the tokens.
    """
    ids = torch.tensor([tokens], device=prompt.embeds.device)
    probabilities = model.report_logits(prompt, ids, labels=ids).softmax(-1)
    best = probabilities.topk(3)
    return [(token, probabilities[i, token].item(), list(zip(best.indices[i].tolist(), best.values[i].tolist())))
            for i, token in enumerate(tokens)]


def written(model, prompt, tokens):
    """The report, the probability of every token, and the tokens of which the model was least sure."""
    # A report that was not cut ends with </s>, whose probability is printed as well.
    text = model.tokenizer.decode(tokens).strip()
    ended = len(tokens) < model.decoding["max_new_tokens"]
    known = token_probabilities(model, prompt, [*tokens, model.tokenizer.eos_id] if ended else tokens)
    settings = ", ".join(f"{name} {value}" for name, value in model.decoding.items())
    lines = [f"Report ({settings})", f"  {text or '(empty)'}", "",
             f"Probability of each token ({len(known)} tokens{'' if ended else ', cut at the maximum length'})"]
    lines += in_columns([(piece(model, token), f"{probability:.2f}".removeprefix("0"))
                         for token, probability, _ in known])

    doubtful = sorted((row for row in known if row[1] < 0.9), key=lambda row: row[1])[:5]
    if doubtful:
        lines.append("Least sure of")
        for token, probability, best in doubtful:
            likeliest = ", ".join(f"{piece(model, other)} {p:.1%}" for other, p in best)
            lines.append(f"  {piece(model, token):<14} {probability:5.1%}   likeliest: {likeliest}")
    return "\n".join(lines).rstrip()


def in_columns(pairs):
    """Lines of text with each pair of words one above the other, as many pairs per line as fit into WIDTH."""
    lines, above, below = [], " ", " "
    for upper, lower in pairs:
        width = max(len(upper), len(lower))
        if len(above) + width + 1 > WIDTH:
            lines += [above, below, ""]
            above, below = " ", " "
        above, below = f"{above} {upper:<{width}}", f"{below} {lower:<{width}}"
    return [*lines, above, below, ""]


def piece(model, token):
    """A token as SentencePiece writes it, "▁" for a blank."""
    return model.tokenizer.piece(token)
