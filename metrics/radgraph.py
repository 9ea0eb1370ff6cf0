"""RadGraph-F1: do two reports name the same entities, with the same relations between them?

Jain et al. 2021, arXiv:2106.14463 (RadGraph), Delbrouck et al. 2022 and 2024 (the reward and RadGraph-XL), as the
package radgraph 0.1.18 computes it. The network (model/dygie.py) marks entities ("Observation::definitely absent") and
relations ("modify", "located_at"). F1 = 2 |A ∩ B| / (|A| + |B|) of the two reports' sets, 0 if either set is empty:

    simple     {(words, label)}
    partial    {(words, label, whether it has a relation)}
    complete   {(words, label, relation, words of the other entity)}, and {(words, label)} of entities without relation
    combined   RadCliQ's own: mean of the F1 of entities {(words, label)} and of relations {(entity, entity, relation)}

The folder holds radgraph.tar.gz or radgraph-xl.tar.gz as published, and vocab.txt of the underlying BERT
(BiomedNLP-PubMedBERT-base-uncased-abstract); config.json is needed only for a BERT of another size than base.

Traps
- The two models give different numbers and split words differently; RadCliQ was fitted to radgraph.tar.gz.
- "complete" lower-cases the words of entities with a relation only, as the package does.
- The package splits words with nltk. From nltk 3.10 on, "cm²" is two words; here it is one, as in earlier versions.
- Two texts without any entity score 0, not 1.
"""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.files import UserError
from data.tokenizers import WordPiece
from metrics.batches import check_vocabulary, padded_batches
from model import checkpoint
from model.bert import BertConfig
from model.config import read_config
from model.dygie import Dygie, config_of, renames

ARCHIVES = {"radgraph": "radgraph.tar.gz", "radgraph-xl": "radgraph-xl.tar.gz"}
LEVELS = ("simple", "partial", "complete", "combined")
LARGEST = {"weights.th": 2**33}  # largest size in bytes of a member of an archive; 2**20 for all others
TEXTS = 64  # texts at a time


class Entity(NamedTuple):
    """An entity of a text: its words, label, place, and relations to other entities."""

    words: str
    label: str
    first: int        # index of its first word
    last: int         # index of its last word, included
    relations: tuple  # ((label, number of the other entity), …)


def words_of(text, model_name):
    """A report split into words as in the training of the model `model_name`."""
    if model_name == "radgraph":
        return re.findall(r"[/,:.!?()]|[^\s/,:.!?()]+", text)
    # The package's replacements: undecoded JSON escapes, and marks that were separate words in the training texts.
    for escape, instead in (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``")):
        text = text.replace(escape, instead)
    text = " ".join(re.findall(r"\w+|[^\w\s]+", text))
    for mark, instead in ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )")):
        text = text.replace(mark, instead)
    return text.split()


class RadGraph:
    """Reads the entities of reports. Results are cached, so a text that is asked for again takes no time."""

    def __init__(self, network, tokenizer, model_name, device="cpu"):
        self.network, self.tokenizer, self.device = network.to(device).eval(), tokenizer, device
        self.model_name, self.graphs = model_name, {}

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        """Reads a folder as described above. Raises UserError."""
        folder = Path(folder)
        present = [name for name, file in ARCHIVES.items() if (folder / file).is_file()]
        if len(present) != 1:
            raise UserError(f"{folder}: holds {'both' if present else 'neither'} of {' and '.join(ARCHIVES.values())}; "
                            "give a folder with one of them")
        path = folder / ARCHIVES[present[0]]
        tokenizer = WordPiece.from_pretrained(folder)
        bert_config = (read_config(BertConfig, folder) if (folder / "config.json").is_file()
                       else BertConfig(vocab_size=len(tokenizer)))
        check_vocabulary(tokenizer, bert_config.vocab_size, folder)

        config, vocabulary, weights = read_archive(path)
        prefix = dataset_prefix(vocabulary, present[0], path)
        try:
            config = config_of(config, vocabulary[f"{prefix}__ner_labels"], vocabulary[f"{prefix}__relation_labels"],
                               bert_config.max_position_embeddings)
        except UserError as error:
            raise UserError(f"{path}: {error}; take the archive as published") from None
        network = checkpoint.load_state(lambda: Dygie(config, bert_config), weights, path,
                                        renames(lambda kind: re.escape(f"{prefix}__{kind}")), torch.float32)
        return cls(network, tokenizer, present[0], device)

    @torch.inference_mode()
    def __call__(self, texts, progress=True):
        """One list of Entity per text. Equal texts are read once."""
        new = list(dict.fromkeys(text for text in texts if text not in self.graphs))
        new.sort(key=len)  # so that a batch holds little padding
        for start in tqdm(range(0, len(new), TEXTS), "RadGraph", unit="block", disable=None if progress else True):
            block = {text: words_of(text, self.model_name) for text in new[start : start + TEXTS]}
            for text, vectors in self.word_vectors(block).items():
                self.graphs[text] = entities_of(block[text], *self.network(vectors))
        return [self.graphs[text] for text in texts]

    def word_vectors(self, words):
        """{text: its W words} → {text: (W, D)}: the mean vector of each word's pieces, zeros for a word without any."""
        pieces = {text: [self.tokenizer.encode("." if word == "/." else "?" if word == "/?" else word, special=False)
                         for word in of_text] for text, of_text in words.items()}

        # Long texts are cut at BERT's limit, even inside a word, as in training.
        longest = self.network.config.max_length - 2
        segments, of_texts = {}, {}
        for text, of_text in pieces.items():
            ids = [i for of_word in of_text for i in of_word]
            of_texts[text] = [(text, start) for start in range(0, len(ids), longest)]
            for _, start in of_texts[text]:
                segments[text, start] = [self.tokenizer.cls_id, *ids[start : start + longest], self.tokenizer.sep_id]
        hidden = {}
        for batch, ids, mask in padded_batches(segments, self.tokenizer.pad_id, self.device, "", progress=False):
            hidden.update({segment: states[1 : len(segments[segment]) - 1]
                           for segment, states in zip(batch, self.network.bert(ids, mask))})

        vectors = {}
        for text, of_text in pieces.items():
            nothing = torch.zeros(0, self.network.bert.config.hidden_size, device=self.device)
            states = torch.cat([nothing, *(hidden[segment] for segment in of_texts[text])])
            means = [part.sum(0) / max(1, len(part)) for part in states.split([len(of_word) for of_word in of_text])]
            vectors[text] = torch.stack(means) if means else nothing
        return vectors

    def scores(self, hypotheses, references, progress=True):
        """N pairs of texts → {"simple", "partial", "complete", "combined": F1 (N,)}."""
        graphs = self([*hypotheses, *references], progress)
        pairs = list(zip(graphs[: len(hypotheses)], graphs[len(hypotheses) :]))
        return {level: np.array([compare(level, *pair) for pair in pairs]) for level in LEVELS}


def entities_of(words, labels, relations):
    """The network's spans and relations as a list of Entity; a relation is kept only between two entities."""
    numbers = {span: number for number, span in enumerate(labels)}
    entities = []
    for span, label in labels.items():
        related = tuple((relation, numbers[target]) for (source, target), relation in relations.items()
                        if source == span and target in numbers)
        entities.append(Entity(" ".join(words[span[0] : span[1] + 1]), label, *span, related))
    return entities


def simple(entities):
    return {(entity.words, entity.label) for entity in entities}


def partial(entities):
    return {(entity.words, entity.label, bool(entity.relations)) for entity in entities}


def complete(entities):
    related = {(entity.words.lower(), entity.label, relation, entities[other].words.lower())
               for entity in entities for relation, other in entity.relations}
    return related | {(entity.words, entity.label) for entity in entities if not entity.relations}


def relations(entities):
    return {((entity.words, entity.label), (entities[other].words, entities[other].label), relation)
            for entity in entities for relation, other in entity.relations}


def f1(a, b):
    """F1 of two sets; 0 if either is empty."""
    return 2 * len(a & b) / (len(a) + len(b)) if a and b else 0.0


def compare(level, hypothesis, reference):
    """F1 between two lists of Entity, at one of LEVELS."""
    if level == "combined":
        return (f1(simple(hypothesis), simple(reference)) + f1(relations(hypothesis), relations(reference))) / 2
    sets = {"simple": simple, "partial": partial, "complete": complete}[level]
    return f1(sets(hypothesis), sets(reference))


def read_archive(path):
    """An archive's (config.json as an object, {namespace: labels}, {name: tensor}), read without extracting files.

    Only the members needed are read, and only tensors are unpickled. Raises UserError.
    """
    try:
        members = read_members(path)
        config = json.loads(members["config.json"])
        vocabulary = {Path(name).stem: data.decode().removesuffix("\n").split("\n")
                      for name, data in members.items() if name.startswith("vocabulary/")}
        weights = torch.load(io.BytesIO(members.pop("weights.th")), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: holds no {error.args[0]}; use the archive as published") from None
    except Exception as error:  # the readers of a damaged archive or pickle may raise almost any class
        raise UserError(f"{path}: refused, for it is damaged or holds more than tensors "
                        f"({checkpoint.one_line(error)}); download it again") from None

    # weights_only also accepts plain containers
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor)
                                                for name, tensor in weights.items()):
        raise UserError(f"{path}: weights.th holds more than named tensors; download it again")
    return config, vocabulary, weights


def read_members(path):
    """{name: bytes} of the members needed from an archive. Raises UserError for a member that is too large."""
    members = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            labels = name.startswith("vocabulary/") and name.endswith("_labels.txt")
            if not member.isfile() or not (labels or name in ("config.json", "weights.th")):
                continue
            if member.size > LARGEST.get(name, 2**20):
                raise UserError(f"{path}: {name} has {member.size:,} bytes; take the archive as published")
            members[name] = archive.extractfile(member).read()
    return members


def dataset_prefix(vocabulary, model_name, path):
    """The data set's name before "__ner_labels": the model's own name, or else the only one. Raises UserError."""
    prefixes = [name.removesuffix("__ner_labels") for name in vocabulary if name.endswith("__ner_labels")]
    prefixes = [prefix for prefix in prefixes if f"{prefix}__relation_labels" in vocabulary]
    if model_name in prefixes:
        return model_name
    if len(prefixes) != 1:
        raise UserError(f"{path}: its vocabulary has labels of {len(prefixes)} data sets; "
                        "take the archive as published")
    return prefixes[0]
