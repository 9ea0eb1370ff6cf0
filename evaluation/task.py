"""The settings of one evaluation: how texts are labelled and scored, and where the results are written."""

from data.files import UserError, file_digest
from evaluation.console import print_metrics
from evaluation.labels import chexbert_labeler, missing_labels, phantom_labeler, with_labels, with_scores
from evaluation.output import check_rexrank, results_folder, write_json, write_labels, write_rexrank, write_rows
from evaluation.page.page import write_page
from evaluation.pairs import read_pairs
from evaluation.results import PROTOCOLS, Scoring
from metrics.meteor_data import find_data


class Task:
    """The settings of one evaluation. All checks are made here or in `load_networks`, before any work is done.

    args: evaluate.py's settings. path: the evaluated file, a checkpoint or reports. out: folder for the results.
    source: the data set of the studies ("phantom", "iu_xray", "mimic_cxr"), "" if unknown. Raises UserError.
    """

    def __init__(self, args, path, out, source=""):
        self.path, self.source, self.labels_only = path, source, args.labels_only
        self.out, self.rexrank = results_folder(out, path, args.against), args.rexrank
        check_rexrank(args.rexrank, path, args.against)

        self.against = args.against
        self.against_rows = read_pairs(args.against, args.section) if args.against else None
        protocols = PROTOCOLS if args.protocol == "both" else (args.protocol,)
        cleaning = args.cleaning or ("mimic" if source == "mimic_cxr" else "iu")
        if args.meteor_data:
            find_data(args.meteor_data)
        self.scoring = Scoring(protocols, cleaning, args.reference_words, args.meteor_data, args.draws, args.seed)

        # The phantom's rules label every drawn report correctly, so reports on phantoms are always labelled.
        rules = not args.chexbert and (args.labeler or source == "phantom")
        self.labeler = phantom_labeler() if rules else None

        # The networks that score or label texts, and their folders.
        folders = {"chexbert": args.chexbert, "bertscore": args.bertscore, "radgraph": args.radgraph}
        self.folders = {name: folder for name, folder in folders.items() if folder}
        self.models, self.networks = None, {}

    def load_networks(self, device=None):
        """Loads the networks that the command line names, onto the GPU if there is one. Raises UserError."""
        if not self.folders:
            return
        import torch  # only here, since scoring given texts needs no torch

        from metrics.model_based import ModelScores

        self.models = ModelScores.from_pretrained(**self.folders, device=device)
        self.networks = {"torch": torch.__version__}
        for name, files in self.models.files.items():
            self.networks[name] = {"folder": str(self.folders[name]),
                                   **{file.name: file_digest(file) for file in files}}
        if self.models.chexbert:
            self.labeler = chexbert_labeler(self.models.chexbert)

    def labelled(self, rows, path):
        """(rows with labels on both sides, origin of the labels), or (rows, None) if there are no labels.

        Raises UserError, naming `path`, if only some of the texts have labels.
        """
        if self.labeler:
            return with_labels(rows, self.labeler)
        missing = missing_labels(rows)
        if missing and any(row.get("labels") for row in rows):
            number, side = missing[0]
            raise UserError(f"{path}: id {rows[number]['id']!r} has no labels of its {side}, though the file holds "
                            "labels; add the missing labels, or give --chexbert or --labeler")
        return rows, None if missing else "given"

    def scored(self, systems):
        """{name: rows}, with the networks' scores in every row if networks are loaded."""
        return with_scores(systems, self.models) if self.models else systems

    def settings(self):
        """The entries of metrics.json's settings on the other reports and on the networks."""
        against = {"against": str(self.against), "against_sha256_16": file_digest(self.against)} if self.against else {}
        return against | self.networks

    def write(self, metrics, settings, rows, **page):
        """Writes metrics.json, reports.jsonl and report.html, and prints the tables. Raises OSError."""
        metrics = {**metrics, "settings": settings | self.settings() | metrics["settings"]}
        self.keep(rows)
        write_json(self.out / "metrics.json", metrics)
        write_page(self.out / "report.html", metrics, rows, labeler=self.labeler, **page)
        print_metrics(metrics)
        print(f"\nwritten: metrics.json, reports.jsonl and report.html in {self.out}")

    def keep(self, rows):
        """Writes reports.jsonl, and the file of --rexrank if given."""
        write_rows(self.out / "reports.jsonl", rows)
        if self.rexrank:
            write_rexrank(self.rexrank, {row["id"]: row["hypothesis"] for row in rows})

    def write_labels(self, rows):
        write_labels(self.out / "labels.csv", rows)
        print(f"written: {self.out / 'labels.csv'}")
