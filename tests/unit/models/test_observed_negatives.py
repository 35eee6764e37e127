"""Items that users were shown and did not choose: they train models, choose the epoch, and are what AUC is measured on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_worlds import Row, begin, din, log_of, random_log, trained, trainer
from world import done

from dcclctl.artifacts import CloudModel
from dcclctl.events.log import CLOUD, DEVICE, VALID
from dcclctl.events.sampler import Sampler
from dcclctl.metrics.auc import gauc, user_auc
from dcclctl.models.factors import Bpr
from dcclctl.store.store import Store

# -- the draw


def shown_log():
    """User 0 chooses 1 among 1, 10, 11, later 2 among 2, 12, and 3 without a choice; user 1 has no negatives."""
    rows: list[Row] = [(0, 1, 5, 1, CLOUD), (0, 10, 5, 0, CLOUD), (0, 11, 5, 0, CLOUD)]
    rows += [(0, 2, 6, 1, CLOUD), (0, 12, 6, 0, CLOUD), (0, 3, 7, 1, CLOUD)]
    rows += [(1, item, 5 + item, 1, CLOUD) for item in range(4)]
    return log_of(rows, n_users=2, n_items=13)


def draws(log, observed: bool, negatives: int = 8, epochs: int = 20):
    events = log.events_in(CLOUD)
    sampler = Sampler(log, [CLOUD], negatives, 3, "n", observed=observed)
    return events, np.stack([sampler.draw(events, epoch).candidates[:, 1:].numpy() for epoch in range(epochs)])


def test_half_of_the_negatives_are_those_shown_beside_the_choice():
    log = shown_log()
    events, with_observed = draws(log, observed=True)
    plain = draws(log, observed=False)[1]
    for place, (event, own) in enumerate(zip(events, log.item[events], strict=True)):
        changed = with_observed[:, place] != plain[:, place]
        if log.user[event] == 1:
            assert not changed.any(), "a user without observed negatives has the sampled ones"
            continue
        shown = {1: {10, 11}, 2: {12}, 3: {10, 11, 12}}.get(int(own), set())
        if log.label[event]:
            assert set(with_observed[:, place][changed].tolist()) == shown
    counts = np.isin(with_observed[:, 0], [10, 11]).mean()
    assert counts > np.isin(plain[:, 0], [10, 11]).mean() + 0.2


def test_what_was_chosen_is_not_its_own_negative():
    rows: list[Row] = [(0, 1, 4, 0, CLOUD), (0, 1, 5, 1, CLOUD), (0, 2, 6, 1, CLOUD), (0, 3, 7, 1, CLOUD)]
    log = log_of(rows, n_users=1, n_items=4)
    _, with_observed = draws(log, observed=True, negatives=2)
    plain = draws(log, observed=False, negatives=2)[1]
    assert np.array_equal(with_observed[:, 1], plain[:, 1])
    assert 1 in with_observed[:, 2]


def test_a_log_without_observed_negatives_has_the_same_draws():
    log = random_log()
    log = log_of(
        [(*row, 1, CLOUD) for row in zip(log.user, log.item, np.arange(len(log.user)), strict=True)],
        log.n_users,
        log.n_items,
    )
    assert np.array_equal(draws(log, observed=True)[1], draws(log, observed=False)[1])


# -- what models learn from them


def impressions(n_items: int = 300) -> list[Row]:
    """Item 0 is the favourite of users 10 to 29; users 0 to 9 are shown it every time, and choose another item.

    It is so rare among 300 items that sampled negatives hardly ever say so.
    """
    rows: list[Row] = []
    rng = np.random.default_rng(0)
    for user in range(30):
        for time in range(20):
            period = CLOUD if time < 12 else DEVICE if time < 14 else VALID
            chosen = int(rng.integers(1, 40)) if user < 10 or time % 2 else 0
            rows.append((user, chosen, time, 1, period))
            if user < 10:
                rows.append((user, 0, time, 0, period))
        rows.append((user, 40 + int(rng.integers(n_items - 40)), 11, 1, CLOUD))
    return sorted(rows, key=lambda row: (row[0], row[2]))


@pytest.mark.parametrize("kind", ["bpr", "din"])
def test_shown_and_skipped_ranks_below_chosen(kind: str):
    """With the sampled negatives alone the popular item comes out on top for those who skip it."""
    rows = impressions()
    logs = {"observed": log_of(rows, 30, 300), "sampled": log_of([row for row in rows if row[3]], 30, 300)}
    found = {}
    for name, log in logs.items():
        generator = torch.Generator().manual_seed(1)
        model = Bpr(30, 300, 8, generator) if kind == "bpr" else din(log)
        trained(model, log, epochs=6, learning_rate=0.02)
        whole = logs["observed"]
        events = whole.events_in(VALID)
        events = events[whole.user[events] < 10]
        items = torch.from_numpy(whole.item[events])[:, None]
        with torch.no_grad():
            through = model.serving_pass(whole, events)
            scores = np.zeros(len(events))
            for positions in through.validation_batches():
                scores[positions] = through.forward(positions, items[positions]).logits[:, 0].numpy()
        found[name], _ = gauc(user_auc(whole.user[events], whole.label[events], scores))
    assert found["observed"] > 0.8
    assert found["sampled"] < 0.5


def test_the_epoch_is_chosen_by_both_kinds_of_negatives():
    log = log_of(impressions(), 30, 300)
    plain = log_of([row for row in impressions() if row[3]], 30, 300)
    model = Bpr(30, 300, 8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.item_table[0, 0] = (
            100.0  # above all: right against sampled ones where it is chosen, wrong where it is skipped
        )
        model.item_table[1:, 0] = 0.0
    both, sampled = (begin(trainer(model, each)).best_valid.auc for each in (log, plain))
    assert both == pytest.approx(sampled / 2, abs=0.05)


# -- from the impression log to the report


def test_an_impression_log_from_end_to_end(tmp_path: Path):
    lines = []
    rng = np.random.default_rng(0)
    for n in range(600):
        user, (a, b, c) = n % 20, rng.permutation(12)[:3]
        # each user likes half of the items
        shown = [f"i{item}-{int((item + user) % 2)}" for item in (a, b, c)]
        lines.append(f"{n}\tu{user}\t{1_600_000_000 + n * 60}\t\t{' '.join(shown)}\n")
    (tmp_path / "behaviors.tsv").write_text("".join(lines))
    store = tmp_path / "store"
    data = done("ingest", tmp_path / "behaviors.tsv", "--repeats=keep", store=store)
    assert (data["events"], 0 < data["positives"] < 1800) == (1800, True)
    done("train", "--threads=1", "--epochs=2", store=store)
    references = []
    for method in ("fine-tune", "metapatch", "memory"):
        made = done("patch", f"--method={method}", "--threads=1", store=store)
        references.append(made["ref"])
    table = Store(store).resolve(references[0]).read_table("users.parquet")
    log = CloudModel(Store(store).resolve("cloud@1")).dataset.log
    counted = np.bincount(log.user[log.events_in(DEVICE)], minlength=20)
    assert table["events"].to_list() == counted.tolist(), "a device learns from what its user skipped, too"
    found = done("evaluate", "cloud@1", *references, "--threads=1", store=store)
    values = {
        row["subject"]: row["value"] for row in found["metrics"] if (row["group"], row["metric"]) == ("all", "gauc")
    }
    assert len(values) == 4
    own = Store(store).resolve(found["ref"]).read_table("per_user.parquet")
    assert own["auc"].null_count() < len(own)
    reliability = Store(store).resolve(found["ref"]).read_table("reliability.parquet")
    scored = len(log.events_in(3))
    assert reliability.group_by("subject").sum()["rows"].to_list() == [scored] * 4, "the observed rows alone are scored"
