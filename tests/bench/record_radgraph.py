"""Records what the package radgraph 0.1.18 reads in made-up reports, with random weights in its archives' format.

    python -m tests.bench.record_radgraph                      writes tests/golden/radgraph.json
    python -m tests.bench.record_radgraph --texts FILE.jsonl   compares on texts of lines {"hypothesis", "reference"}

Needs `pip install radgraph "transformers<5" requests`: a copy of AllenNLP of 60,000 lines, which does not run with
transformers 5, so that no test run can have it beside the other references. The weights are the same wherever they are
made: numbers of numpy's frozen generator, spread so that some spans are entities and some pairs of them are related.
"""

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.bench.record_metrics import GOLDEN, nasty_texts, write

BERT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
            max_position_embeddings=48, type_vocab_size=2)
WIDEST, WIDTH_SIZE, HIDDEN, LONGEST = 5, 6, 16, 40
ENTITIES = ["", "Anatomy::definitely present", "Observation::definitely present", "Observation::uncertain",
            "Observation::definitely absent"]
RELATIONS = ["modify", "located_at", "suggestive_of"]
NAMES = ("radgraph", "radgraph-xl")
SEEDS = {"radgraph": 4, "radgraph-xl": 7}
NULL = 6.0  # what the null label has ahead of every entity label


def vocabulary():
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = "the heart lung ##s effusion no clear right left pneumo ##thorax is of".split()
    pieces = [*letters, *("##" + letter for letter in letters), *words]
    return list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))


def shapes(dataset):
    """{name in weights.th: shape}, the coreference and event heads, which nothing reads, among them."""
    D = BERT["hidden_size"]
    span = 2 * D + WIDTH_SIZE
    at = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
    named = {f"{at}embeddings.word_embeddings.weight": (len(vocabulary()), D),
             f"{at}embeddings.position_embeddings.weight": (BERT["max_position_embeddings"], D),
             f"{at}embeddings.token_type_embeddings.weight": (2, D)}

    def linear(name, inputs, outputs):
        named[f"{name}.weight"], named[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name):
        named[f"{name}.weight"], named[f"{name}.bias"] = (D,), (D,)

    def feed_forward(name, inputs):
        linear(f"{name}._linear_layers.0", inputs, HIDDEN)
        linear(f"{name}._linear_layers.1", HIDDEN, HIDDEN)

    norm(f"{at}embeddings.LayerNorm")
    for i in range(BERT["num_hidden_layers"]):
        layer = f"{at}encoder.layer.{i}."
        for part in ("query", "key", "value"):
            linear(f"{layer}attention.self.{part}", D, D)
        linear(f"{layer}attention.output.dense", D, D)
        norm(f"{layer}attention.output.LayerNorm")
        linear(f"{layer}intermediate.dense", D, BERT["intermediate_size"])
        linear(f"{layer}output.dense", BERT["intermediate_size"], D)
        norm(f"{layer}output.LayerNorm")
    linear(f"{at}pooler.dense", D, D)
    named["_endpoint_span_extractor._span_width_embedding.weight"] = (WIDEST, WIDTH_SIZE)

    entity, relation = f"{dataset}__ner_labels", f"{dataset}__relation_labels"
    feed_forward(f"_ner._ner_scorers.{entity}.0._module", span)
    linear(f"_ner._ner_scorers.{entity}.1._module", HIDDEN, len(ENTITIES) - 1)
    named["_coref._distance_embedding.weight"] = (10, WIDTH_SIZE)
    feed_forward("_coref._antecedent_feedforward._module", 3 * span + WIDTH_SIZE)
    feed_forward("_coref._mention_pruner._scorer.0._module", span)
    linear("_coref._mention_pruner._scorer.1._module", HIDDEN, 1)
    linear("_coref._antecedent_scorer._module", HIDDEN, 1)
    linear("_coref._f_network._linear_layers.0", 2 * span, span)
    named["_events._distance_embedding.weight"] = (10, WIDTH_SIZE)
    feed_forward(f"_relation._mention_pruners.{relation}._scorer.0._module", span)
    linear(f"_relation._mention_pruners.{relation}._scorer.1._module", HIDDEN, 1)
    feed_forward(f"_relation._relation_feedforwards.{relation}", 3 * span)
    linear(f"_relation._relation_scorers.{relation}", HIDDEN, len(RELATIONS))
    return named


def weights(dataset):
    random_state, tensors = np.random.RandomState(SEEDS[dataset]), {}
    for name, shape in shapes(dataset).items():
        values = random_state.standard_normal(shape) * (0.5 if len(shape) == 2 else 0.1)
        if "LayerNorm.weight" in name:
            values = 1 + values
        if name.endswith(f"{dataset}__ner_labels.1._module.bias"):
            values = values - NULL                                   # so that the null label mostly wins
        tensors[name] = torch.tensor(values, dtype=torch.float32)
    return tensors


def config(bert):
    """config.json of an archive; bert: the model's name, here a folder."""
    indexer = {"type": "pretrained_transformer_mismatched", "model_name": str(bert), "max_length": LONGEST}
    return {"dataset_reader": {"type": "dygie", "max_span_width": WIDEST, "token_indexers": {"bert": indexer}},
            "model": {"type": "dygie", "embedder": {"token_embedders": {"bert": indexer}}, "initializer": {},
                      "module_initializer": {}, "feature_size": WIDTH_SIZE, "max_span_width": WIDEST,
                      "feedforward_params": {"num_layers": 2, "hidden_dims": HIDDEN, "dropout": 0.4},
                      "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
                      "target_task": "relation",
                      "modules": {"ner": {}, "relation": {"spans_per_word": 0.5},
                                  "coref": {"spans_per_word": 0.3, "max_antecedents": 10, "coref_prop": 0},
                                  "events": {"trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.3,
                                             "loss_weights": {"trigger": 1.0, "arguments": 1.0}}}}}


def write_archive(folder, dataset, bert="bert", changed=None):
    """folder/DATASET.tar.gz; vocab.txt and config.json of its BERT beside it. changed: {member: other content}."""
    buffer = io.BytesIO()
    torch.save(weights(dataset), buffer)
    members = {"config.json": json.dumps(config(bert)).encode(), "weights.th": buffer.getvalue(),
               "vocabulary/non_padded_namespaces.txt": b"*labels\n*tags\n",
               f"vocabulary/{dataset}__ner_labels.txt": "\n".join([*ENTITIES, ""]).encode(),
               f"vocabulary/{dataset}__relation_labels.txt": "\n".join([*RELATIONS, ""]).encode(), **(changed or {})}
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{dataset}.tar.gz", "w:gz") as archive:
        for name, content in members.items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(vocabulary()), **BERT}))
    return folder


def texts():
    """Made-up reports. None with ² or ½, which count as letters of a word or not, depending on the version of nltk."""
    made_up = nasty_texts(66, random.Random(7))
    readable = [text for text in made_up if text.strip() and not {"²", "½"} & set(text)]
    return [*readable, "no effusion.", "heart", "The lungs are clear. " * 14]


def of_package(folder, dataset, reports):
    """The package's entities per report: [words, label, first, last, [[relation, number of the other], …]]."""
    from radgraph import RadGraph
    from transformers import BertConfig, BertModel

    bert = folder / "bert"
    BertModel(BertConfig(vocab_size=len(vocabulary()), **BERT)).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (bert / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    write_archive(folder, dataset, bert)
    with tarfile.open(folder / f"{dataset}.tar.gz") as archive:
        archive.extractall(folder / "cache" / dataset, filter="data")
    read = RadGraph(model_type=dataset, model_cache_dir=str(folder / "cache"), cuda=-1)(reports)
    return [[[entity["tokens"], entity["label"], entity["start_ix"], entity["end_ix"],
              [[relation, int(other) - 1] for relation, other in entity["relations"]]]
             for entity in read[str(i)]["entities"].values()] for i in range(len(reports))]


def of_project(folder, dataset, reports):
    """The same of metrics/radgraph.py."""
    from metrics.radgraph import RadGraph

    return [[[*entity[:4], sorted(map(list, entity.relations))] for entity in entities]
            for entities in RadGraph.from_pretrained(write_archive(folder / "ours", dataset))(reports, progress=False)]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--texts", metavar="FILE.jsonl")
    args = p.parse_args()
    recorded, differing = {}, 0
    for dataset in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            if not args.texts:
                recorded[dataset] = of_package(Path(folder), dataset, texts())
                continue
            rows = [json.loads(line) for line in Path(args.texts).read_text(encoding="utf-8").splitlines()]
            reports = list(dict.fromkeys(row[side] for row in rows for side in ("hypothesis", "reference")))[:200]
            wanted = [[[*entity[:4], sorted(entity[4])] for entity in entities]
                      for entities in of_package(Path(folder), dataset, reports)]
            found = of_project(Path(folder), dataset, reports)
            wrong = [text for text, a, b in zip(reports, found, wanted) if a != b]
            differing += len(wrong)
            print(f"{dataset}: {len(wrong)} of {len(reports)} texts differ; {sum(map(len, wanted)):,} entities, "
                  f"{sum(len(entity[4]) for entities in wanted for entity in entities):,} relations")
    if args.texts:
        return int(differing > 0)
    write("radgraph.json", {"texts": texts(), "entities": recorded})
    print(f"written: {GOLDEN / 'radgraph.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
