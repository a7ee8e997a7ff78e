"""Simulations: equal seeds give equal results, on either engine; every kind of data and split; rubbish is named."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from federation import amlsim, generate, split
from federation.errors import DataError, JobError
from federation.simulate import arms, config, engines, report, worlds
from tests.federation.rows import blocks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SMALL = {"rows": 120, "fraud_rate": 0.1, "seeds": [3], "settings": {"trees": 2, "depth": 2, "bins": 8}}


def quiet(*_arguments):
    pass


def federated(**values):
    chosen = config.load(None, {**SMALL, **values})
    world = worlds.make(chosen, 3)
    return engines.run(chosen, world, 3, quiet)


@pytest.mark.parametrize("kind", ["trees", "linear", "mlp"])
def test_encryption_changes_no_bit_of_any_model(kind):
    values = {"model": kind, "settings": SMALL["settings"] if kind == "trees" else {}}
    found = {federated(**values, encryption=each)[0].hash() for each in ("full", "masks", "none")}
    assert len(found) == 1


def test_equal_seeds_give_equal_results_and_other_seeds_others(tmp_path):
    runs = []
    for name in ("first", "second"):
        chosen = config.load(None, {**SMALL, "seeds": [0, 1], "encryption": "masks", "out": tmp_path / name})
        results = arms.run(chosen, quiet)
        report.save(chosen, results)
        runs.append(results)
    assert runs[0].scores == runs[1].scores
    first, second = (
        pyarrow.parquet.read_table(tmp_path / name / "scores.parquet") for name in ("first", "second")
    )
    assert first == second
    by_seed = {
        seed: [r["value"] for r in runs[0].scores if r["seed"] == seed and r["arm"] == "federated"]
        for seed in (0, 1)
    }
    assert by_seed[0] != by_seed[1]
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert {
        "scores.parquet",
        "costs.parquet",
        "summary.json",
        "report.html",
        "quality.png",
        "model.json",
    } <= names
    page = (tmp_path / "first" / "report.html").read_text()
    assert "AUPRC" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())["summary"]
    values = [r["value"] for r in runs[0].scores if r["arm"] == "pooled" and r["metric"] == "auroc"]
    assert summary["pooled"]["auroc"]["mean"] == pytest.approx(np.mean(values))
    # Student's t with one degree of freedom.
    half = 12.7062 * np.std(values, ddof=1) / np.sqrt(2)
    assert summary["pooled"]["auroc"]["half_width_95"] == pytest.approx(half, rel=1e-4)


def test_trees_of_the_federation_are_the_pooled_ones():
    chosen = config.load(None, {**SMALL, "encryption": "masks"})
    results = arms.run(chosen, quiet)
    scores = {arm: [r["value"] for r in results.scores if r["arm"] == arm] for arm in ("federated", "pooled")}
    assert scores["federated"] == scores["pooled"]


@pytest.mark.parametrize("kind", ["iid", "label", "quantity"])
def test_splits_keep_every_row_once_and_skew_as_asked(kind):
    block = blocks(1, rows=3000, missing=0)[0]
    parts = split.divide(block, 5, kind, seed=1, concentration=0.3)
    assert sum(len(part.y) for part in parts) == len(block.y)
    assert sorted(np.concatenate([part.x[:, 1] for part in parts]).tolist(), key=str) == sorted(
        block.x[:, 1].tolist(), key=str
    )
    assert all(len(part.y) for part in parts)
    sizes, rates = [len(part.y) for part in parts], [part.y.mean() for part in parts]
    if kind == "iid":
        assert max(sizes) - min(sizes) <= 1
        assert np.std(rates) < 0.05
    elif kind == "quantity":
        assert max(sizes) > 3 * min(sizes)
    else:
        assert np.std(rates) > 0.1


def test_by_time_nothing_is_trained_on_that_was_not_known_when_the_test_began():
    block = generate.accounts(2000, 0.1, 0, "bank")
    train, test = split.train_and_test(block, 0.3, 0, by_time=True, delay_days=30)
    assert train.time.max() <= test.time.min() - 30
    without, _ = split.train_and_test(block, 0.3, 0, by_time=True)
    assert len(without.y) > len(train.y)


def test_generated_fraud_is_rare_differs_by_bank_and_can_be_learnt():
    banks = generate.banks(4, 4000, 0.01, 0)
    rates = [block.y.mean() for block in banks]
    assert 0.003 < np.mean(rates) < 0.02
    assert len({len(block.y) for block in banks}) == 4
    assert np.isnan(banks[0].x).any()
    again = generate.banks(4, 4000, 0.01, 0)
    assert all(np.array_equal(a.x, b.x, equal_nan=True) for a, b in zip(banks, again, strict=True))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder does not exist")
def test_amlsim_becomes_accounts_with_features():
    block = amlsim.load(SHARED / "amlsim_20K_fanin200cycle200.tgz")
    assert block.x.shape == (20_000, len(amlsim.FEATURES))
    assert block.y.sum() == 1_804
    counts = block.x[:, amlsim.FEATURES.index("sent_count")].sum()
    assert counts == 120_558


def test_amlsim_that_does_not_hold_together_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no nodes\.csv"):
        amlsim.load(tmp_path)
    (tmp_path / "nodes.csv").write_text("nodeid,isFraud,init_balance\n5,0,1\n9,1,2\n")
    (tmp_path / "transactions.csv").write_text("sourceNodeId,targetNodeId,value,time\n5,7,1,1\n")
    with pytest.raises(DataError, match="row 2: targetNodeId is no node"):
        amlsim.load(tmp_path)
    (tmp_path / "transactions.csv").write_text(
        "sourceNodeId,targetNodeId,value,time\n5,9,1,1\n9,5,2,200000\n"
    )
    block = amlsim.load(tmp_path)
    assert block.x[:, amlsim.FEATURES.index("active_times")].tolist() == [2, 2]
    archive = tmp_path / "rows.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("nodes.csv", "transactions.csv"):
            file.add(tmp_path / name, f"deep/{name}")
    assert np.array_equal(amlsim.load(archive).x, block.x, equal_nan=True)


def test_a_file_split_by_a_column_with_a_toml_beside_it(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["id,a,b,fraud,bank"]
    for i in range(600):
        a = rng.normal()
        lines.append(
            f"{i},{a:.4f},{rng.normal():.4f},{int(rng.random() < 1 / (1 + np.exp(-2 * a)))},{'ABC'[i % 3]}"
        )
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.toml").write_text(
        'data = "rows.csv"\nlabel = "fraud"\nsplit = "column"\ncolumn = "bank"\nseeds = [0]\n'
        'encryption = "masks"\n[settings]\ntrees = 3\ndepth = 2\nlearning_rate = 0.3\n'
    )
    chosen = config.load(tmp_path / "run.toml", {"out": tmp_path / "out"})
    world = worlds.make(chosen, 0)
    assert world.names == ["bank-A", "bank-B", "bank-C"]
    assert world.features == ("a", "b")
    results = arms.run(chosen, quiet)
    auroc = next(r["value"] for r in results.scores if r["arm"] == "federated" and r["metric"] == "auroc")
    assert auroc > 0.75
    # What stands in the folder is this run's: its number of banks, and no file of the run before.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.xgboost.json").write_text("of an earlier run")
    linear = chosen.model_copy(update={"model": "linear", "settings": {}})
    report.save(linear, arms.run(linear, quiet))
    assert not (tmp_path / "out" / "model.xgboost.json").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["config"]["banks"] == 3
    with pytest.raises(JobError, match="as many as the column names"):
        config.load(tmp_path / "run.toml", {"banks": 4})


def test_a_federation_that_loses_to_one_bank_alone_says_so():
    results = arms.Results()
    for arm, bank, value in (("local", "bank-1", 0.5), ("local", "bank-2", 0.6), ("federated", "", 0.55)):
        results.scores.append({"seed": 0, "arm": arm, "bank": bank, "metric": "auprc", "value": value})
    assert "worse than bank-2 alone" in arms._beaten(results, 0)[0]
    results.scores[-1]["value"] = 0.7
    assert arms._beaten(results, 0) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"banks": 2}, "banks: Input should be greater than or equal to 3"),
        ({"seeds": [-1]}, r"seeds\.0"),
        ({"seeds": [1, 1]}, "seeds repeat"),
        ({"model": "forest"}, "model: Input should be"),
        ({"settings": {"deep": 3}}, r"trees\.deep"),
        ({"settings": {"positive_weight": "abc"}}, r"trees\.positive_weight"),
        ({"settings": {"positive_weight": -3.0}}, r"trees\.positive_weight"),
        ({"data": "amlsim"}, "needs a path"),
        ({"split": "column"}, "needs the name of the column"),
        ({"data": "no-such.csv"}, r"no-such\.csv"),
        ({"encryption": "none", "engine": "ray"}, "full or masks"),
        ({"rows": 1}, "rows"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises((JobError, DataError), match=message):
        worlds.make(config.load(None, {**SMALL, **values}), 0)


def test_a_toml_that_is_none_is_named(tmp_path):
    path = tmp_path / "run.toml"
    for text, message in (
        ("banks = ", r"run\.toml"),
        ("settings = 5\n", "a table is needed"),
        ("bank = 5\n", "bank"),
    ):
        path.write_text(text)
        with pytest.raises(JobError, match=message):
            config.load(path, {})
    with pytest.raises(JobError, match=r"none\.toml"):
        config.load(tmp_path / "none.toml", {})


def test_results_that_cannot_be_written_name_the_folder(tmp_path):
    chosen = config.load(None, {**SMALL, "encryption": "none", "out": tmp_path / "file" / "out"})
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="file"):
        report.save(chosen, arms.run(chosen, quiet))
    assert os.listdir(tmp_path) == ["file"]
