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


def test_a_run_has_a_name(tmp_path):
    assert compare_runs.main([str(tmp_path), "--output", f"{tmp_path}/t"]) != 0
