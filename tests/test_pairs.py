"""Reading files of reports: formats, and every mistake named by its line."""

import json

import pytest

from data.files import UserError
from evaluation.pairs import read_pairs


def written(tmp_path, text, name="r.jsonl"):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return path


def line(**changes):
    return json.dumps({"id": "a", "hypothesis": "no effusion", "reference": "effusion"} | changes)


def test_json_lines(tmp_path):
    second = line(id=7, hypothesis=["x"], reference=["y", "z"])
    rows = read_pairs(written(tmp_path, "\ufeff" + line() + "\r\n\n" + second + "\n"))
    assert rows == [{"id": "a", "hypothesis": "no effusion", "reference": "effusion"},
                    {"id": "7", "hypothesis": "x", "reference": ["y", "z"]}]


def test_line_separators_stay_in_their_text(tmp_path):
    strange = "a\u2028b\x85c\x0b\x1cd\re\x00"
    raw = '{"id": 1, "hypothesis": "u\u2028v\x85", "reference": "r"}\n'
    rows = read_pairs(written(tmp_path, raw + line(hypothesis=strange)))
    assert [row["hypothesis"] for row in rows] == ["u\u2028v\x85", strange]
    rows = read_pairs(written(tmp_path, 'id,hypothesis,reference\n1,"a\u2028b\nc",r\n2,d\x85,"e ""f"""\n', "r.csv"))
    assert [row["hypothesis"] for row in rows] == ["a\u2028b\nc", "d\x85"] and rows[1]["reference"] == 'e "f"'


def test_lone_surrogates_are_replaced(tmp_path):
    row, = read_pairs(written(tmp_path, r'{"id": "1", "hypothesis": "a\ud800b", "reference": "r"}'))
    assert row["hypothesis"] == "a\ufffdb"


def test_csv_columns_in_any_order(tmp_path):
    rows = read_pairs(written(tmp_path, "reference,more,id,hypothesis\r\nr,m,1,h\r\n", "r.csv"))
    assert rows == [{"id": "1", "hypothesis": "h", "reference": "r"}]


def test_labels_and_findings(tmp_path):
    labels, finding = [0, 1, 2, 3] + [0] * 10, {"finding": "Edema", "severity": "mild", "location": ""}
    row, = read_pairs(written(tmp_path, line(labels=labels, findings={"hypothesis": [], "reference": [finding]})))
    assert row["labels"] == {"reference": labels} and row["findings"]["reference"] == [finding]


@pytest.mark.parametrize("text, words", [
    (line() + "\n{bad", "line 2 is not JSON"),
    ("[\n " + line() + "]", "line 1 is not JSON.*one object per line.*\\.csv"),
    (line() + "\n[1]", "line 2 is no JSON object"),
    (line() + "\n" + line(), "line 2.*'a' occurs already on line 1"),
    (line(id=1) + "\n" + line(id="1"), "occurs already"),
    (line(hypothesis=None), "line 1 has no hypothesis; add it, or"), (line(id=""), "id is empty"),
    ('{"id": 1}', "no hypothesis and no reference"),
    (line(id=True), "the id"), (line(id=[1]), "the id"),
    (line(hypothesis=3), "hypothesis must be one text"), (line(hypothesis=["a", "b"]), "hypothesis must be one text"),
    (line(reference=[]), "reference must be"), (line(reference=["a", None]), "reference must be"),
    (line(labels=[1] * 13), "labels must be 14"), (line(labels=[True] * 14), "labels must be 14"),
    (line(labels=[-1] * 14), "labels must be 14"),
    (line(labels={"h": [0] * 14}), "labels must be 14"), (line(labels=3), "labels must be 14"),
    (line(findings=[{"finding": 1}]), "findings must be"),
    ("", "holds no reports"), ("\n\n", "holds no reports"), ("[" * 100000, "line 1 is not JSON"),
    (b'{"id": 1}\n\xff\xfe', "line 2 is not UTF-8"),
])
def test_broken_json_lines(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        read_pairs(written(tmp_path, text))
    assert "r.jsonl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, words", [
    ("", "no column hypothesis.*nothing"),
    ("id;hypothesis;reference\n1;2;3\n", "by commas; it holds 'id;hypothesis;reference'"),
    ("id,hypothesis,hypothesis,reference\n1,2,3,4\n", "more than one column hypothesis"),
    ("id,hypothesis\n1,2\n", "no column reference"),
    ("id,hypothesis,reference\n1,a\n", "line 2"),
    ("id,hypothesis,reference\n1,a,b,c\n", "line 2"), ("id,hypothesis,reference\n", "holds no reports"),
    (",hypothesis,reference\n1,2,3\n", "no column id"), ("id,hypothesis,reference\n ,a,b\n", "line 2: the id is empty"),
    ('id,hypothesis,reference\n1,"a,b\n', "line 2"), ("id,hypothesis,reference\n1,a,b\n1,c,d\n", "line 3.*line 2"),
])
def test_broken_csv(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        read_pairs(written(tmp_path, text, "r.csv"))
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(tmp_path)


REXRANK = {"s1": {"model_prediction": "Findings: Clear lungs. Impression: Normal.", "section_findings": "Lungs clear.",
                  "section_impression": "No disease.", "image_path": ["1.png"]},
           "s2": {"model_prediction": "A tube.", "findings": "A tube is in place.", "impression": None},
           "s3": {"model_prediction": "Impression: Normal.", "section_findings": float("nan"),
                  "section_impression": "Normal."}}


def test_rexrank_is_scored_as_rexrank_does(tmp_path):
    """A missing section is the word None there (example_files/evaluation_script.md); older files name findings so."""
    rows = read_pairs(written(tmp_path, json.dumps(REXRANK), "r.json"))
    assert [(row["id"], row["hypothesis"], row["reference"]) for row in rows] == [
        ("s1", "Findings: Clear lungs. Impression: Normal.", "Findings: Lungs clear. Impression: No disease."),
        ("s2", "A tube.", "Findings: A tube is in place. Impression: None"),
        ("s3", "Impression: Normal.", "Findings: None Impression: Normal.")]


def test_one_section_of_rexrank(tmp_path, capsys):
    path = written(tmp_path, json.dumps(REXRANK), "r.json")
    assert [(row["id"], row["hypothesis"], row["reference"]) for row in read_pairs(path, "findings")] == [
        ("s1", "Clear lungs.", "Lungs clear."), ("s2", "A tube.", "A tube is in place.")]
    assert "1 of 3 studies are left out, since they have no findings" in capsys.readouterr().err
    impressions = [(row["id"], row["hypothesis"]) for row in read_pairs(path, "impression")]
    assert impressions == [("s1", "Normal."), ("s3", "Normal.")]


@pytest.mark.parametrize("text, words", [
    ("[1]", "not in ReXrank's format"), ('{"a": 1}', "not in ReXrank's format"), ("{", "not JSON.*jsonl"),
    ("[" * 100_000, "not JSON"),
    ('{"a": {"section_findings": "x"}}', "study 'a' has no text \"model_prediction\""),
    ('{"a": {"model_prediction": "x"}}', "study 'a' has no \"section_findings\""), ("{}", "holds no reports"),
    ('{"a": {"model_prediction": "x", "section_findings": null}}', "holds no reports")])
def test_broken_rexrank(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        read_pairs(written(tmp_path, text, "r.json"))
    assert "\n" not in str(caught.value)
