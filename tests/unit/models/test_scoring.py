import numpy as np
import pytest
import torch
from small_worlds import basis_for, din, normal, random_log

from dcclctl.algorithm import scoring
from dcclctl.algorithm.metapatch import patched_logits
from dcclctl.algorithm.training import first_layer

LIMIT = 8


@pytest.fixture(scope="module")
def world():
    log = random_log()
    model = din(log, scale=10)
    codes = normal(log.n_users, 4)
    codes[::3] = 0
    return log, model, basis_for(model), codes


def scored(world, candidates=None, batch_events=256, n_candidates=30):
    """Events in ascending order, and the logits of the cloud model and of the patched models."""
    log, model, basis, codes = world
    heads = [scoring.cloud_head(model), scoring.patched_head(model, basis, codes, log)]
    place = {event: row for row, event in enumerate(log.events_in(2, 3))}

    def candidates_of(events):
        return None if candidates is None else candidates[[place[event] for event in events.tolist()]]

    parts = list(
        scoring.score(
            scoring.DinBackbone(model, log, LIMIT),
            heads,
            log.events_in(2, 3),
            candidates_of,
            n_candidates,
            batch_events,
        )
    )
    events = np.concatenate([rows for rows, _, _ in parts])
    order = torch.from_numpy(np.argsort(events))
    cloud, patched = (torch.cat([logits[head] for _, _, logits in parts])[order] for head in (0, 1))
    return np.sort(events), cloud, patched


def test_scores_are_those_of_the_model_that_was_trained(world):
    log, model, basis, codes = world
    events, cloud, patched = scored(world)
    assert np.array_equal(events, log.events_in(2, 3))
    with torch.no_grad():
        z1 = first_layer(model, log, events, torch.arange(30).expand(len(events), -1).contiguous(), LIMIT)
        torch.testing.assert_close(cloud, model.logits(model.second_layer(z1)), atol=1e-5, rtol=1e-5)
        own = basis.patch(codes[torch.from_numpy(log.user[events])])
        torch.testing.assert_close(patched, patched_logits(model, z1, own), atol=1e-5, rtol=1e-5)


def test_users_without_a_patch_get_the_cloud_models_scores_to_the_last_bit(world):
    log, *_ = world
    events, cloud, patched = scored(world)
    unpatched = torch.from_numpy(log.user[events] % 3 == 0)
    assert torch.equal(patched[unpatched], cloud[unpatched])
    assert not torch.isclose(patched[~unpatched], cloud[~unpatched]).all(1).any()


def test_candidates_are_columns_of_the_whole_catalogue(world):
    events, cloud, patched = scored(world)
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (len(events), 7)))
    same, few_cloud, few_patched = scored(world, candidates, n_candidates=7)
    assert np.array_equal(same, events)
    torch.testing.assert_close(few_cloud, cloud.gather(1, candidates), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few_patched, patched.gather(1, candidates), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_events", [1, 5])
def test_batches_change_no_score(world, batch_events):
    events, cloud, patched = scored(world)
    same, *others = scored(world, batch_events=batch_events)
    assert np.array_equal(same, events)
    for ours, theirs in zip((cloud, patched), others, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_small_cache_changes_no_score(world, monkeypatch):
    events, cloud, _ = scored(world)
    monkeypatch.setattr(scoring, "_UNITS", 2000)
    same, other, _ = scored(world)
    assert np.array_equal(same, events)
    torch.testing.assert_close(other, cloud, atol=1e-5, rtol=1e-5)


def test_threads_change_nothing_but_the_last_digits(world, two_threads):
    (_, cloud_1, patched_1), (_, cloud_2, patched_2) = two_threads(lambda: scored(world))
    torch.testing.assert_close(cloud_1, cloud_2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched_1, patched_2, atol=1e-5, rtol=1e-5)


def test_scoring_makes_no_gradients_and_leaves_the_callers_setting_alone(world):
    log, model, *_ = world
    heads = [scoring.cloud_head(model)]
    for _, _, logits in scoring.score(
        scoring.DinBackbone(model, log, LIMIT), heads, log.events_in(3), lambda rows: None, 30, 4
    ):
        assert torch.is_grad_enabled()
        assert not logits[0].requires_grad


def test_embeddings_of_the_catalogue_are_the_items(world):
    log, model, *_ = world
    assert torch.equal(scoring.item_embeddings(model), model.embed(torch.arange(log.n_items)).detach())
