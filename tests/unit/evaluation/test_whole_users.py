"""Evaluation in chunks of whole users: memory for a few rows, figures as from all rows at once."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from world import World

from dcclctl.evaluation import candidates
from dcclctl.evaluation.scores import whole_users
from dcclctl.stages.evaluate import evaluate, open_subjects
from dcclctl.store.store import Store


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_no_user_is_cut_and_no_chunk_is_larger_than_needed(most: int) -> None:
    users = np.array([0, 0, 0, 3, 4, 4, 7, 7, 7, 7, 7, 9])
    chunks = [users[part].tolist() for part in whole_users(users, most)]
    assert np.concatenate(chunks).tolist() == users.tolist()
    for chunk, following in zip(chunks, [*chunks[1:], [None]], strict=True):
        assert len(chunk) <= most or len(set(chunk)) == 1
        assert chunk[-1] != following[0]
    assert list(whole_users(users[:0], most)) == []


@pytest.mark.parametrize("sampled", ["all", "5"])
def test_chunks_change_no_figure(world: World, tmp_path, monkeypatch: pytest.MonkeyPatch, sampled: str) -> None:
    found = []
    for name, rows in (("whole", 1 << 20), ("cut", 40)):
        store = Store(world.copy(tmp_path / name))
        monkeypatch.setattr(candidates, "_ROWS", rows)
        settings = {"candidates": sampled, "auc_negatives": 10, "threads": 1}
        found.append(evaluate(open_subjects(["cloud@1"], store), settings))
    whole, cut = found
    # a batch with longer histories sums in another order
    assert_frame_equal(whole.per_user, cut.per_user, rel_tol=1e-5)
    bins = [each.artifact.read_table("reliability.parquet") for each in found]
    for column in bins[0].columns:
        if bins[0][column].dtype == pl.Float64:  # the same
            assert bins[1][column].fill_null(0).to_numpy() == pytest.approx(
                bins[0][column].fill_null(0).to_numpy(), rel=1e-5
            )
        else:
            assert bins[1][column].equals(bins[0][column])
    about = [dict(each.artifact.facts["subjects"]) for each in found]
    for name, facts in about[0].items():
        assert about[1][name] == {**facts, "ece": pytest.approx(facts["ece"], rel=1e-5)}
