"""What RecBole does in peers.py, in its own environment: one task a process, its result as one line of JSON.

    .venv-peers/bin/python benchmarks/recbole_side.py TASK FOLDER '{"key": value}'

FOLDER holds log/log.inter (RecBole's atomic format) and, for gauc, scores.npz. It imports nothing of dcclctl.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.evaluator import Collector, Evaluator  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

torch.set_num_threads(1)


def prepared(model: str, folder: Path, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Configuration, data set, loaders and trainer: leave one out, ranked among all items."""
    given = {
        "data_path": str(folder),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 10,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": str(folder / "saved"),
        "eval_batch_size": 4096 * 16,
        "seed": 0,
        **settings,
    }
    sys.argv = sys.argv[:1]  # Config reads it
    config = Config(model=model, dataset="log", config_dict=given)
    init_seed(0, True)
    dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    found = get_model(model)(config, loaders[0]._dataset).to("cpu")
    return config, dataset, loaders, found, get_trainer(config["MODEL_TYPE"], model)(config, found)


def work_of(dataset: Any, test: Any) -> dict[str, Any]:
    """Whose last events are ranked: user → item, as outside ids."""
    rows = test._dataset.inter_feat
    users = dataset.id2token("user_id", rows["user_id"].numpy()).tolist()
    return {"targets": dict(zip(users, dataset.id2token("item_id", rows["item_id"].numpy()).tolist(), strict=True))}


def counted(model: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """EASE or ItemKNN: fit, and rank."""
    _, dataset, (_, _, test), _, trainer = prepared(model, folder, settings)
    found = trainer.evaluate(test, load_best_model=False)
    return {"hr@10": found["hit@10"], "ndcg@10": found["ndcg@10"], **work_of(dataset, test)}


def training(folder: Path, settings: dict[str, Any], batches: int) -> dict[str, Any]:
    """SASRec: some steps of Adam."""
    _, _, (train, _, _), model, trainer = prepared("SASRec", folder, settings)
    rows, found = 0, iter(train)
    model.train()
    next(found)
    started, wall = time.process_time(), time.perf_counter()
    for _, batch in zip(range(batches), found, strict=False):
        trainer.optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        trainer.optimizer.step()
        rows += len(batch)
    return {"rows": rows, "cpu": time.process_time() - started, "wall": time.perf_counter() - wall}


def ranking(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """SASRec, untrained: rank the test events among all items."""
    _, dataset, (_, _, test), _, trainer = prepared("SASRec", folder, settings)
    started, wall = time.process_time(), time.perf_counter()
    trainer.evaluate(test, load_best_model=False)
    return {
        "cpu": time.process_time() - started,
        "wall": time.perf_counter() - wall,
        "items": int(dataset.item_num) - 1,
        **work_of(dataset, test),
    }


def quality(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """SASRec, trained to its end by RecBole's defaults."""
    _, dataset, (train, valid, test), _, trainer = prepared("SASRec", folder, settings)
    started, wall = time.process_time(), time.perf_counter()
    trainer.fit(train, valid, saved=True, show_progress=False)
    seconds = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    found = trainer.evaluate(test, load_best_model=True)
    return {"hr@10": found["hit@10"], "ndcg@10": found["ndcg@10"], **seconds, **work_of(dataset, test)}


def gauc(folder: Path) -> dict[str, Any]:
    """GAUC of given scores: as in RecBole's own evaluation, a row a user with −∞ where an item was not scored."""
    given = np.load(folder / "scores.npz")
    items, scores, n_items = given["items"], torch.from_numpy(given["scores"]), int(given["n_items"])
    config, *_ = prepared("Pop", folder, {"metrics": ["GAUC"], "valid_metric": "GAUC", "topk": [10]})
    collector, evaluator = Collector(config), Evaluator(config)
    started, wall = time.process_time(), time.perf_counter()
    for first in range(0, len(items), 256):
        columns = torch.from_numpy(items[first : first + 256])
        table = torch.full((len(columns), n_items), -np.inf)
        table.scatter_(1, columns, scores[first : first + 256])
        users = torch.arange(len(columns))
        collector.eval_batch_collect(table, None, users, columns[:, 0])
    found = evaluator.evaluate(collector.get_data_struct())
    return {
        "cpu": time.process_time() - started,
        "wall": time.perf_counter() - wall,
        "gauc": float(found["gauc"]),
        "users": len(items),
        "rows": int(items.size),
    }


def main() -> None:
    task, folder, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    batches = given.pop("batches", 0)
    tasks = {
        "ease": lambda: counted("EASE", folder, given),
        "item-knn": lambda: counted("ItemKNN", folder, given),
        "training": lambda: training(folder, given, batches),
        "ranking": lambda: ranking(folder, given),
        "quality": lambda: quality(folder, given),
        "gauc": lambda: gauc(folder),
    }
    found = tasks[task]()
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
