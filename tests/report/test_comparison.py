"""A sweep's table: a row a setting, mean and deviation over seeds, failed runs as rows, labels of what was swept."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flsparse.report.comparison import Job, comparison, read_job, targets

SUMMARY: dict[str, Any] = {
    "status": "completed",
    "strategy": "topk",
    "dataset": "digits",
    "rounds": 2,
    "final_sparsity": 0.95,
    "uplink_bytes": 999_000,
    "downlink_bytes": 999_000_000,
    "uplink_wire_bytes": 999_000,
    "downlink_wire_bytes": 99_900_000,
    "uplink_ratio": 99.9,
    "downlink_ratio": 99.9,
    "wall_seconds": 3725.0,
}


def job(accuracy: float | None = None, **overrides: Any) -> Job:
    """Return a job that completed with an accuracy, or failed."""
    failed = {"status": "failed", "error": "RoundFailed: round 1 had no replies"}
    summary = SUMMARY | (failed if accuracy is None else {"final_accuracy": accuracy})
    return Job(Path("0-topk"), {key.replace("__", "."): str(value) for key, value in overrides.items()}, summary)


def lines(jobs: list[Job], width: int = 80) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(comparison(jobs))
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


def test_runs_that_differ_by_their_seed_are_a_mean_and_a_sample_standard_deviation() -> None:
    text = lines([job(0.9, strategy="topk", seed=0), job(0.92, strategy="topk", seed=1), job(0.5, strategy="fedavg")])
    (first,), (second,), (third,) = ([line for line in text if word in line] for word in (" topk", "2 seeds", "fedavg"))
    assert first.split()[1:3] == ["91.0", "%"]
    assert second.split()[2:5] == ["±", "1.4", "%"]
    assert third.split()[1:3] == ["50.0", "%"]
    assert "±" not in third


def test_seeds_alone_are_one_row_of_the_strategy() -> None:
    text = "\n".join(lines([job(0.9, seed=0), job(0.8, seed=1), job(0.7, seed=2)]))
    assert text.count("topk") == 1
    assert "80.0 %" in text
    assert "± 10.0 %" in text
    assert "3 seeds" in text


def test_a_failed_run_is_a_row_and_no_part_of_the_mean() -> None:
    text = lines([job(0.9, strategy="topk", seed=0), job(strategy="topk", seed=1), job(strategy="fedavg", seed=0)])
    assert [line.split()[:2] for line in text if "failed" in line] == [["topk", "failed"], ["fedavg", "failed"]]
    assert any("1 of 2 seeds" in line or "1 of 2" in line for line in text)
    assert any("seed 1" in line for line in text)
    assert "±" not in "".join(text)


def test_a_run_that_left_no_summary_is_a_row() -> None:
    lost = Job(Path("1-topk"), {"seed": "1"}, {})
    assert any("failed" in line for line in lines([job(0.9, seed=0), lost]))
    assert lost.error == "failed; its log is flsparse.log in there"
    assert job().error == "RoundFailed: round 1 had no replies"


def test_labels_are_the_values_of_what_was_swept_below_its_keys() -> None:
    jobs = [job(0.9, strategy="topk", strategy__sparsity=s, num_rounds=2, seed=0) for s in (0.9, 0.95)]
    text = lines(jobs)
    assert any(line.split()[0] == "sparsity" for line in text)
    assert [line.split()[0] for line in text if "%" in line] == ["0.9", "0.95"]
    assert not any("num_rounds" in line for line in text)


def test_80_columns_hold_the_widest_row_and_break_no_word() -> None:
    """Each word of a label is whole on its line; one that is longer than the column is broken behind a mark."""
    values = {"strategy": "malcom_psgd", "client__lr": "1000000000.0", "dataset": "fashion_mnist"}
    jobs = [job(0.999, seed=0, **values), job(0.1, seed=1, **values), job(0.5, strategy="topk", client__lr="0.1")]
    text = lines(jobs)
    assert max(map(len, text)) <= 80
    for word in ("malcom_psgd", "1e+09", "fashion_", "mnist", "2 seeds", "1:02:05 h", "(99.9 MB)", "± 63.6 %"):
        assert any(word in line for line in text), word


def run_of(folder: Path, strategy: str, accuracies: list[float], sent: int, seed: int = 0, **summary: Any) -> Job:
    """Return a completed job whose rows send so many bytes each, both ways and framed."""
    folder.mkdir()
    ways = {f"{way}_bytes": sent // 4 for way in ("uplink", "downlink", "uplink_wire", "downlink_wire")}
    rows = [{"server_round": i, "accuracy": a, **ways} for i, a in enumerate(accuracies, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = SUMMARY | {"strategy": strategy, "final_accuracy": accuracies[-1]} | summary
    return Job(folder, {"strategy": strategy, "seed": str(seed)}, found)


def target_lines(jobs: list[Job]) -> list[list[str]]:
    out = StringIO()
    table = targets(jobs)
    assert table is not None
    Console(file=out, width=80).print(table)
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


DENSE: dict[str, Any] = {"uplink_ratio": 1.0, "downlink_ratio": 1.0}


def test_a_sweep_with_dense_fedavg_is_measured_at_its_accuracy_less_half_a_point(tmp_path: Path) -> None:
    fedavg = run_of(tmp_path / "0", "fedavg", [0.5, 0.9, 0.9, 0.9], 4000, **DENSE)
    topk = run_of(tmp_path / "1", "topk", [0.8, 0.8, 0.896, 0.896, 0.896, 0.896], 40)
    lost = run_of(tmp_path / "2", "sparsyfed", [0.89] * 9, 40)
    text = target_lines([fedavg, topk, lost])
    assert text[0][:3] == ["to", "89.5", "%,"]
    assert ["fedavg", "4", "-", "4", "kB", "4", "kB", "8", "kB", "1.0x"] in text
    assert ["topk", "5", "-", "50", "B", "50", "B", "100", "B", "80.0x"] in text
    assert ["sparsyfed", "not", "held", "-", "-", "-", "-", "-"] in text


def test_seeds_are_a_mean_and_all_must_hold(tmp_path: Path) -> None:
    fedavg = [run_of(tmp_path / f"f{seed}", "fedavg", [0.9] * 4, 4000, seed, **DENSE) for seed in (0, 1)]
    topk = [run_of(tmp_path / f"t{i}", "topk", [a, 0.9, 0.9, 0.9], 40, i) for i, a in enumerate((0.9, 0.1))]
    assert ["topk", "3.5", "-", "35", "B", "35", "B", "70", "B", "85.7x"] in target_lines([*fedavg, *topk])
    one = [topk[0], run_of(tmp_path / "t2", "topk", [0.1] * 4, 40, 1)]
    assert ["topk", "not", "held", "-", "-", "-", "-", "-"] in target_lines([*fedavg, *one])


def test_a_given_target_needs_no_baseline_and_nothing_to_compare_with_is_no_table(tmp_path: Path) -> None:
    topk = run_of(tmp_path / "1", "topk", [0.5, 0.6, 0.7, 0.8], 40)
    assert targets([topk]) is None
    topk.summary["target"] = 0.6
    assert ["topk", "4", "-", "40", "B", "40", "B", "80", "B", "-"] in target_lines([topk])


def test_a_dead_or_quantized_fedavg_is_no_baseline(tmp_path: Path) -> None:
    topk = run_of(tmp_path / "1", "topk", [0.9] * 4, 40)
    dead = run_of(tmp_path / "2", "fedavg", [0.1] * 4, 40, **DENSE, warnings=["nearly all samples get the same answer"])
    coded = run_of(tmp_path / "3", "fedavg", [0.9] * 4, 40)
    assert targets([topk, dead]) is None
    assert targets([topk, coded]) is None


def test_jobs_are_read_from_their_folders(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["strategy=topk", "+model.width=8", "seed=1"]))
    assert read_job(tmp_path).overrides == {"strategy": "topk", "model.width": "8", "seed": "1"}
    assert not read_job(tmp_path).completed
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    assert read_job(tmp_path).completed
    assert not read_job(tmp_path, since=(tmp_path / "summary.json").stat().st_mtime + 1).completed
