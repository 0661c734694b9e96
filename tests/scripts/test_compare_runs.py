import json

import pytest

import compare_runs


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, one of which was trained and tested in calls of its own."""
    lead = {"predict_lead_rouge1": 17.0, "predict_constant_rouge1": 20.0}
    history = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 2.0}, {"step": 10, "train_loss": 2.5}]
    results = {
        "trained": {"train_runtime": 120.0, "train_steps": 10},
        "tested": {"predict_rouge1": 25.0, **lead},
        "untuned": {"predict_rouge1": 11.0, **lead},
    }
    for name, metrics in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_text(json.dumps(metrics))
    state = json.dumps({"log_history": history})
    (tmp_path / "trained" / "trainer_state.json").write_text(state)
    both = f"{tmp_path}/trained,{tmp_path}/tested"
    return [f"sparse, x=1={both}", f"untuned={tmp_path}/untuned"]


def test_runs_stand_above_what_costs_nothing(runs, tmp_path, capsys):
    rows = compare_runs.compare(
        [*runs, "--metrics", "rouge1", "--fact", "data: ours: 37", "--output", f"{tmp_path}/t"]
    )
    assert rows == [
        ["sparse, x=1", "25.0", "10", "2"],
        ["untuned", "11.0", "", ""],
        ["lead", "17.0", "", ""],
        ["constant", "20.0", "", ""],
    ]
    assert "untuned" in capsys.readouterr().out
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["data"] == "ours: 37"
    assert written["rows"][0]["losses"] == [[5, 3.0], [10, 2.0]]
    assert "| sparse, x=1 | 25.0 | 10 | 2 |" in (tmp_path / "t.md").read_text()
    assert (tmp_path / "t.png").stat().st_size > 1000


def test_losses_are_told_apart(tmp_path):
    for name, loss in (("a", 1.8454), ("b", 1.8441)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_text(json.dumps({"eval_loss": loss}))
    rows = compare_runs.compare(
        [
            *(f"{name}={tmp_path}/{name}" for name in "ab"),
            *("--split", "eval", "--metrics", "loss", "--baselines", "--output", f"{tmp_path}/t"),
        ]
    )
    assert [row[1] for row in rows] == ["1.845", "1.844"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"predict_lead_rouge1": 18.0}, "different scores of the lead baseline"),
        ({"predict_rouge1": None}, "metrics: expected one of .*, got 'predict_rouge1'"),
        (None, "runs: expected results in "),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, change, reason):
    path = tmp_path / "untuned" / "all_results.json"
    metrics = json.loads(path.read_text())
    path.unlink()
    if change is not None:
        metrics = {k: v for k, v in (metrics | change).items() if v is not None}
        path.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=reason):
        compare_runs.compare([*runs, "--metrics", "rouge1", "--output", f"{tmp_path}/t"])
    assert not (tmp_path / "t.md").exists()


@pytest.fixture
def written(tmp_path):
    """Runs with half of the words right, one more in every text, or two in every second."""
    references = [f"a{n} b{n} c{n} d{n}" for n in range(20)]
    texts = {
        "half": [f"a{n} b{n} x x" for n in range(20)],
        "better": [f"a{n} b{n} c{n} x" for n in range(20)],
        "mixed": [f"a{n} b{n} x x" if n % 2 else f"a{n} b{n} c{n} d{n}" for n in range(20)],
    }
    for name, rouge in (("half", 50.0), ("better", 75.0), ("mixed", 75.0)):
        (tmp_path / name).mkdir()
        metrics = json.dumps({"predict_rouge1": rouge, "predict_rougeL": rouge})
        (tmp_path / name / "all_results.json").write_text(metrics)
        pairs = zip(references, texts[name], strict=True)
        lines = [json.dumps({"reference": r, "generated": g}) for r, g in pairs]
        (tmp_path / name / "predict_generated.jsonl").write_text("\n".join(lines))
    runs = [f"{name}={tmp_path}/{name}" for name in texts]
    return [*runs, "--baselines", "--output", f"{tmp_path}/t", "--metrics", "rouge1", "rougeL"]


def test_differences_come_with_what_chance_leaves_of_them(written, tmp_path):
    rows = compare_runs.compare([*written, "--against", "half"])
    assert rows[0][1] == "50.0"
    # The same in every document is certain; in every second one it may be more or less.
    assert rows[1][1] == "75.0 (+25.0; +25.0 to +25.0)"
    found = json.loads((tmp_path / "t.json").read_text())["rows"][2]
    mean, low, high = found["difference"]["rouge1"]
    assert mean == 25.0
    # The standard error is 50 sqrt(0.25 / 20) = 5.6, an interval 1.96 of them to either side.
    assert 12 < low < 17
    assert 33 < high < 38
    assert "generated" not in found
    assert "in brackets: difference from 'half'" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize(
    ("against", "lose", "reason"),
    [
        ("none", None, r"against: expected one of \['half', 'better', 'mixed'\], got 'none'"),
        ("half", "predict_generated.jsonl", "expected a file predict_generated.jsonl in 'mixed'"),
        (
            "half",
            "second line",
            "the 20 references of 'half' in 'mixed' too, .* got 19 that differ",
        ),
        ("half", "order", "the 20 references of 'half' in 'mixed' too, .* got 20 that differ"),
        ("half", "score", "expected the rouge1 of 'mixed', 74.0, from its generated texts"),
    ],
)
def test_differences_that_would_be_wrong_are_refused(written, tmp_path, against, lose, reason):
    texts, metrics = (
        tmp_path / "mixed" / name for name in ("predict_generated.jsonl", "all_results.json")
    )
    if lose == "predict_generated.jsonl":
        texts.unlink()
    elif lose == "order":
        texts.write_text("\n".join(reversed(texts.read_text().splitlines())))
    elif lose == "second line":  # and a score that fits
        lines = texts.read_text().splitlines()
        texts.write_text("\n".join([lines[0], *lines[2:]]))
        score = 100 * (10 + 9 * 0.5) / 19
        metrics.write_text(json.dumps({"predict_rouge1": score, "predict_rougeL": score}))
    elif lose == "score":
        metrics.write_text(json.dumps({"predict_rouge1": 74.0, "predict_rougeL": 75.0}))
    with pytest.raises(ValueError, match=reason):
        compare_runs.compare([*written, "--against", against])
    assert not (tmp_path / "t.md").exists()


def test_a_run_has_a_name(tmp_path):
    assert compare_runs.main([str(tmp_path), "--output", f"{tmp_path}/t"]) != 0
