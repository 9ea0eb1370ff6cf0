"""The tests mirror the files. Nothing is installed: this puts the repository's root on the path.

Real data is used where the folder that the environment variable TRRG_REAL names has it, else ../shared/real.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("TRRG_REAL", ROOT.parent / "shared" / "real"))
SOURCES = {
    "NLMCXR_reports.tgz": "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz",
    "iu_xray_annotation.json": "annotation.json of R2Gen's IU X-Ray, https://github.com/cuhksz-nlp/R2Gen",
    "kaggle": "the two tables of https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university",
    "cxr_cases": "pictures and texts of https://github.com/ieee8023/covid-chestxray-dataset in R2Gen's layout",
    "images": "chest X-rays of https://nihcc.app.box.com/v/ChestXray-NIHCC",
    "peer_predictions_iu.jsonl": 'lines of {"id", "hypothesis", "reference"} of a published model on IU X-Ray',
}

sys.path.insert(0, str(ROOT))


def real(name):
    """The path of a real file or folder; where it is not here, the test is skipped."""
    path = REAL / name
    if not path.exists():
        import pytest  # benchmarks and experiments, which are run without it, pass here too

        pytest.skip(f"needs {path}: put {SOURCES[name]} there, or set TRRG_REAL to a folder with it")
    return path
