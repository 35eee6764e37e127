"""dcclctl beside RecBole 1.2.1 at equal sizes, on equal logs: `make bench-peers`.

    python benchmarks/peers.py --peer .venv-peers/bin/python [--data FOLDER] [--times 3] [--quality] [--json FILE]

Each task runs in a process of its own with one thread, RecBole's in its own environment, in turn (A B A B). CPU seconds are
compared, because the machine may be busy. Both sides must have done the same work: the same users, the same last events
(whose times are order numbers here, so that both mean the same event), the same number of rows; else the run fails.
--quality also trains SASRec to its end on both sides, which takes hours.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import Ratio, find_data, machine, show, write_results

HERE = Path(__file__).resolve().parent
#: SASRec on both sides: two blocks, one head, an inner layer as wide as the states
SIZES: dict[str, Any] = {
    "train_neg_sample_args": None,
    "hidden_size": 64,
    "inner_size": 64,
    "n_layers": 2,
    "n_heads": 1,
    "MAX_ITEM_LIST_LENGTH": 50,
}
OURS = {"item_size": 64, "history": 50}
RECBOLE_TRAINING = SIZES | {"train_batch_size": 1024, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
#: neighbours and shrinkage of item-kNN, λ of EASE: RecBole's defaults
KNN, EASE = {"k": 100, "shrink": 0.0}, {"reg_weight": 250.0}
TARGETS = {"training": 40, "ranking": 5, "gauc": 3}


def in_order(name: str, data: Path, folder: Path) -> None:
    """Write a log with the number of the event in its user's order as its time, so that no two are at once."""
    import polars as pl

    if name == "ml-100k":
        log = pl.read_csv(data / name / "ml-100k.inter", separator="\t", infer_schema=False)
        log = log.rename({"user_id:token": "user", "item_id:token": "item", "timestamp:float": "time"})
    else:
        log = pl.read_csv(data / name / "events.csv.gz", infer_schema=False)
        log.columns = ["user", "item", "time"][: log.width] + log.columns[3:]
    log = log.with_columns(pl.col("time").cast(pl.Float64)).sort("user", "time", maintain_order=True)
    log = log.with_columns(pl.int_range(pl.len()).over("user").alias("order"))
    (folder / "log").mkdir(parents=True)
    atomic = {"user": "user_id:token", "item": "item_id:token", "order": "timestamp:float"}
    log.select(*atomic).rename(atomic).write_csv(folder / "log" / "log.inter", separator="\t")


def dataset_of(folder: Path) -> Any:
    import dcclctl

    store = dcclctl.Store(folder / "store")
    return dcclctl.ingest(folder / "log" / "log.inter", store=store, split="leave-one-out", time_unit="ordinal")


def targets_of(data: Any) -> dict[str, str]:
    """User → item of the test events, as outside ids."""
    log = data.log
    rows = (log.period == 3).nonzero()[0]
    users, items = data.users["user_id"].gather(log.user[rows]), data.items["item_id"].gather(log.item[rows])
    return dict(zip(users, items, strict=True))


def ours_counted(folder: Path, model: str) -> dict[str, Any]:
    """As `dcclctl evaluate` ranks, and with the histories that RecBole scores from (without the valid event)."""
    import dcclctl

    data = dataset_of(folder)
    settings = {"ridge": 250.0} if model == "ease" else {"neighbours": 100, "shrinkage": 0.0}
    cloud = dcclctl.train(data, model=model, on="cloud,device", threads=1, **settings)
    made = dcclctl.evaluate([cloud], candidates="all", k=[10], threads=1)
    means = {row["metric"]: row["value"] for row in made.aggregate.filter(group="all").to_dicts()}
    same = _from_training_events(data, cloud)
    return {"hr@10": means["hr@10"], "ndcg@10": means["ndcg@10"], "same": same, "targets": targets_of(data)}


def _from_training_events(data: Any, cloud: Any) -> dict[str, float]:
    """HR and NDCG at 10 where only training events are in the histories; what a user had is left out, as always."""
    import numpy as np
    import torch

    from dcclctl.models.kind import open_backbone

    log = data.log
    backbone: Any = open_backbone(cloud, torch.device("cpu"), log)  # of a counted model
    model = backbone.model
    trained = log.period < 2
    scores = model.scores(log.user[trained], log.item[trained], None, log.n_users)
    seen = log.period < 3
    scores[log.user[seen], log.item[seen]] = -np.inf
    rows = (log.period == 3).nonzero()[0]
    users, own = torch.from_numpy(log.user[rows]), scores[log.user[rows], log.item[rows]].unsqueeze(1)
    rank = 1 + (scores[users] > own).sum(1).double()
    hit = (rank <= 10).double()
    return {"hr@10": float(hit.mean()), "ndcg@10": float((hit / torch.log2(rank + 1)).mean())}


def ours_training(folder: Path) -> dict[str, Any]:
    """One epoch of SASRec as `dcclctl train` runs it, without its validation."""
    import numpy as np
    import torch

    from dcclctl.events.log import CLOUD, DEVICE, Block
    from dcclctl.models.sequence import SasrecKind, SequenceSettings
    from dcclctl.models.settings import FitSettings
    from dcclctl.models.training import FitState, Trainer, pick

    torch.set_num_threads(1)
    log, settings = dataset_of(folder).log, SequenceSettings(**OURS)
    model = SasrecKind().new(log, settings, torch.Generator().manual_seed(0))
    trainer = Trainer(model, log, [Block(CLOUD), Block(DEVICE)], FitSettings.of(settings, 0, "bench"))
    valid = trainer.validation
    valid.samples, valid.ranked = pick(valid.samples, np.arange(1)), valid.ranked[:1]
    state = FitState.start(model, trainer.validate())
    started, wall = time.process_time(), time.perf_counter()
    trainer.epoch(state)
    return {"rows": trainer.n_events, "cpu": time.process_time() - started, "wall": time.perf_counter() - wall}


def ours_ranking(folder: Path) -> dict[str, Any]:
    """`dcclctl evaluate --candidates all` of a SASRec, with its averages, AUC and calibration."""
    import dcclctl

    data = dataset_of(folder)
    cloud = dcclctl.train(data, model="sasrec", on="cloud,device", epochs=1, threads=1, **OURS)
    targets = targets_of(data)
    started, wall = time.process_time(), time.perf_counter()
    made = dcclctl.evaluate([cloud], candidates="all", k=[10], threads=1, force=True)
    seconds = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    assert made.facts["events"] == len(targets)
    return {**seconds, "items": data.log.n_items, "targets": targets}


def ours_quality(folder: Path) -> dict[str, Any]:
    """SASRec by dcclctl's defaults, trained to its end."""
    import dcclctl

    data = dataset_of(folder)
    started, wall = time.process_time(), time.perf_counter()
    cloud = dcclctl.train(data, model="sasrec", on="cloud,device", threads=1)
    seconds = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    made = dcclctl.evaluate([cloud], candidates="all", k=[10], threads=1)
    means = {row["metric"]: row["value"] for row in made.aggregate.filter(group="all").to_dicts()}
    return {"hr@10": means["hr@10"], "ndcg@10": means["ndcg@10"], **seconds, "targets": targets_of(data)}


def ours_gauc(folder: Path) -> dict[str, Any]:
    import numpy as np

    from dcclctl.metrics.auc import gauc, user_auc

    scores = np.load(folder / "scores.npz")["scores"]
    started, wall = time.process_time(), time.perf_counter()
    users = np.repeat(np.arange(len(scores)), scores.shape[1])
    labels = np.zeros(scores.shape, dtype=np.int64)
    labels[:, 0] = 1
    value, count = gauc(user_auc(users, labels.ravel(), scores.ravel()))
    return {
        "cpu": time.process_time() - started,
        "wall": time.perf_counter() - wall,
        "gauc": value,
        "users": count,
        "rows": scores.size,
    }


def ours(task: str, folder: Path) -> dict[str, Any]:
    """One task in this process."""
    from dcclctl.compute import peak_memory

    tasks = {"training": ours_training, "ranking": ours_ranking, "quality": ours_quality, "gauc": ours_gauc}
    found = tasks[task](folder) if task in tasks else ours_counted(folder, task)
    return found | {"peak_bytes": peak_memory()}


def drawn_scores(folder: Path, users: int, n_items: int) -> None:
    """Scores of one positive and 100 negatives for each user, with ties."""
    import numpy as np

    draw = np.random.default_rng(0)
    items = np.stack([draw.choice(n_items - 1, 101, replace=False) + 1 for _ in range(users)])
    scores = draw.normal(size=items.shape).round(2).astype(np.float32)
    np.savez(folder / "scores.npz", items=items, scores=scores, n_items=n_items)


class Pair:
    """Runs a task on both sides.

    Args:
        peer: RecBole's Python. folder: with the log.
    """

    def __init__(self, peer: Path, folder: Path) -> None:
        self.peer, self.folder = peer.absolute(), folder

    def run(self, task: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What RecBole found, and what we found."""
        theirs = [self.peer, HERE / "recbole_side.py", task, self.folder, json.dumps(settings)]
        own = [sys.executable, HERE / "peers.py", "--task", task, "--folder", self.folder]
        return _last_line(theirs, self.folder), _last_line(own, self.folder)

    def in_turn(self, task: str, settings: dict[str, Any], times: int) -> tuple[Ratio, dict[str, Any]]:
        """How many times less CPU time we take, and the medians."""
        pairs = [self.run(task, settings) for _ in range(times)]
        for theirs, own in pairs:
            check_same_work(task, theirs, own)
        per = [[side["cpu"] / side.get("rows", 1) for side in sides] for sides in zip(*pairs, strict=True)]
        ratio = Ratio.faster(f"{task}: CPU time against RecBole", per[0], per[1], TARGETS[task])
        names = ("cpu", "wall", "peak_bytes", *(("rows",) if "rows" in pairs[0][0] else ()))
        medians = {
            side: {name: statistics.median(run[name] for run in runs) for name in names}
            for side, runs in zip(("recbole", "dcclctl"), zip(*pairs, strict=True), strict=True)
        }
        return ratio, medians


def check_same_work(task: str, theirs: dict[str, Any], own: dict[str, Any]) -> None:
    """Stop where the two sides did not rank the same events, or do not agree on a figure that both computed."""
    for name in ("targets", "items", "users"):
        assert theirs.get(name) == own.get(name), f"{task}: the two sides differ in {name}"
    if "gauc" in own:
        assert theirs["rows"] == own["rows"] and abs(theirs["gauc"] - own["gauc"]) < 1e-6, (theirs, own)
    if "same" in own:
        assert abs(theirs["ndcg@10"] - own["same"]["ndcg@10"]) < 1e-6, (theirs["ndcg@10"], own["same"])


def _last_line(command: list[Any], folder: Path) -> dict[str, Any]:
    # in the temporary folder, because RecBole leaves its own logs where it runs
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(peer: Path, data: Path, times: int, quality: bool) -> tuple[list[Ratio], dict[str, Any]]:
    """All tasks: ratios, and what was measured."""
    ratios, found = [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        movies, beauty = Pair(peer, Path(name) / "ml-100k"), Pair(peer, Path(name) / "beauty")
        in_order("ml-100k", data, movies.folder)
        in_order("amazon-beauty", data, beauty.folder)
        for task, settings in (("ease", EASE), ("item-knn", KNN)):
            theirs, own = movies.run(task, settings)
            check_same_work(task, theirs, own)
            value = own["ndcg@10"] / theirs["ndcg@10"]
            what = f"{task}, ml-100k, all items: NDCG@10 against RecBole"
            ratios.append(Ratio(what, value, (value, value), "≥ 1", value >= 1))
            figures = ("hr@10", "ndcg@10")
            found[task] = {
                "users": len(own["targets"]),
                "recbole": {each: theirs[each] for each in figures},
                "dcclctl": {each: own[each] for each in figures},
                "dcclctl with RecBole's histories": own["same"],
            }
        drawn_scores(beauty.folder, 22_363, 12_102)
        for task, settings in (("gauc", {}), ("training", RECBOLE_TRAINING | {"batches": 8}), ("ranking", SIZES)):
            ratio, found[task] = beauty.in_turn(task, settings, times)
            ratios.append(ratio)
        if quality:
            theirs, own = beauty.run("quality", {"train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 50})
            check_same_work("quality", theirs, own)
            for metric in ("hr@10", "ndcg@10"):
                value = own[metric] / theirs[metric]
                what = f"SASRec by its defaults, Beauty, all items: {metric} against RecBole"
                ratios.append(Ratio(what, value, (value, value), "≥ 1", value >= 1))
            found["quality"] = {"recbole": theirs | {"targets": {}}, "dcclctl": own | {"targets": {}}}
    return ratios, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="Python of RecBole's environment")
    parser.add_argument("--data", type=Path, help="folder with ml-100k/ and amazon-beauty/ (or DCCL_DATA)")
    parser.add_argument("--times", type=int, default=3, help="repetitions of each way; medians are compared")
    parser.add_argument("--quality", action="store_true", help="also train SASRec to its end on both sides")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        print("\n" + json.dumps(ours(given.task, given.folder)))
        return
    data = find_data(given.data)
    if given.peer is None or data is None:
        raise SystemExit("Run make bench-peers, with the folder of the real logs in DCCL_DATA (docs/logs.md).")
    ratios, found = compare(given.peer, data, given.times, given.quality)
    show(ratios)
    if given.json:
        write_results(given.json, machine(), ratios, found)


if __name__ == "__main__":
    main()
