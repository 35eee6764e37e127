import numpy as np
import pytest
import torch
from small_worlds import Asked, basis_for, din, normal, random_log, scores

from dcclctl.devices.hidden_patch import patched_head, patched_logits
from dcclctl.models import scoring
from dcclctl.models.din import DinBackbone


@pytest.fixture(scope="module")
def world():
    """A log, a cloud model, a basis, and a code for two users of three."""
    log = random_log()
    model = din(log, scale=10)
    codes = normal(log.n_users, 4)
    codes[::3] = 0
    return log, model, basis_for(model), codes


def scored(world, candidates=None, batch_events=256):
    """Events in ascending order, and the logits of the cloud model and of the patched models."""
    log, model, basis, codes = world
    backbone, events = DinBackbone(model, log), log.events_in(2, 3)
    heads = (backbone.head, patched_head(backbone, basis, codes))
    return events, *(scores(backbone, events, candidates, batch_events, head) for head in heads)


def test_scores_are_those_of_the_model_that_was_trained(world):
    log, model, basis, codes = world
    events, cloud, patched = scored(world)
    with torch.no_grad():
        z1 = model.first_layer_of_few(log, events, torch.arange(30).expand(len(events), -1).contiguous())
        torch.testing.assert_close(cloud, model.logits(model.second_layer(z1)), atol=1e-5, rtol=1e-5)
        own = basis.patch(codes[torch.from_numpy(log.user[events])])
        torch.testing.assert_close(patched, patched_logits(model, z1, own), atol=1e-5, rtol=1e-5)


def test_models_that_share_a_backbone_are_scored_together_as_alone(world):
    log, model, basis, codes = world
    backbone, events = DinBackbone(model, log), log.events_in(2, 3)
    heads = [backbone.head, patched_head(backbone, basis, codes)]
    for batch, logits in scoring.score(backbone, heads, events, lambda rows: Asked(rows, None), 30, 7):
        index = torch.from_numpy(np.searchsorted(events, batch.events))
        for ours, alone in zip(logits, scored(world)[1:], strict=True):
            torch.testing.assert_close(ours, alone[index], atol=1e-5, rtol=1e-5)


def test_users_without_a_patch_get_the_cloud_models_scores_to_the_last_bit(world):
    log, *_ = world
    events, cloud, patched = scored(world)
    unpatched = torch.from_numpy(log.user[events] % 3 == 0)
    assert torch.equal(patched[unpatched], cloud[unpatched])
    assert not torch.isclose(patched[~unpatched], cloud[~unpatched]).all(1).any()


def test_candidates_are_columns_of_the_whole_catalogue(world):
    events, cloud, patched = scored(world)
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (len(events), 7)))
    _, few_cloud, few_patched = scored(world, candidates)
    torch.testing.assert_close(few_cloud, cloud.gather(1, candidates), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few_patched, patched.gather(1, candidates), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_events", [1, 5])
def test_batches_change_no_score(world, batch_events):
    _, cloud, patched = scored(world)
    for ours, theirs in zip((cloud, patched), scored(world, batch_events=batch_events)[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_small_cache_changes_no_score(world, monkeypatch):
    _, cloud, _ = scored(world)
    monkeypatch.setattr(scoring, "_UNITS", 2000)
    _, other, _ = scored(world)
    torch.testing.assert_close(other, cloud, atol=1e-5, rtol=1e-5)


def test_few_candidates_have_the_scores_that_are_ranked(world):
    """The short way of a DIN gives what evaluate's way gives."""
    log, model, basis, codes = world
    backbone, events = DinBackbone(model, log), log.events_in(2, 3)
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (len(events), 7)))
    for head in (backbone.head, patched_head(backbone, basis, codes)):
        few = backbone.logits_of_few(events, candidates, head).detach()
        torch.testing.assert_close(few, scores(backbone, events, candidates, head=head), atol=1e-5, rtol=1e-5)


def test_a_backbone_is_asked_for_as_few_events_at_a_time_as_it_wants():
    asked = []
    log = random_log()
    events = log.events_in(1)

    class Rows(scoring.Backbone):
        """Logits that name the event and the candidate."""

        def __init__(self):
            self.log = log

        @property
        def head(self):
            return lambda events, candidates, below: below + candidates

        def lengths(self, events):
            return np.full(len(events), 7)

        def activation_cost(self, n_candidates, length):
            assert (n_candidates, length) == (4, 7)
            return (1 << 20) // 6

        def activations(self, events, candidates):
            asked.append(len(events))
            return 1000.0 * torch.from_numpy(events)[:, None] + 0 * candidates

    backbone = Rows()
    candidates = torch.arange(4).expand(len(events), -1)
    expected = 1000.0 * torch.from_numpy(events)[:, None] + candidates
    assert torch.equal(backbone.logits_of_few(events, candidates, backbone.head), expected)
    assert torch.equal(scores(backbone, events, candidates), expected)
    assert max(asked) == 6 and sum(asked) == 2 * len(events)


def test_threads_change_nothing_but_the_last_digits(world, two_threads):
    (_, cloud_1, patched_1), (_, cloud_2, patched_2) = two_threads(lambda: scored(world))
    torch.testing.assert_close(cloud_1, cloud_2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched_1, patched_2, atol=1e-5, rtol=1e-5)


def test_scoring_makes_no_gradients_and_leaves_the_callers_setting_alone(world):
    log, model, *_ = world
    backbone = DinBackbone(model, log)
    for _, logits in scoring.score(backbone, [backbone.head], log.events_in(3), lambda rows: Asked(rows, None), 30, 4):
        assert torch.is_grad_enabled()
        assert not logits[0].requires_grad


def test_embeddings_of_the_catalogue_are_the_items(world):
    log, model, *_ = world
    assert torch.equal(DinBackbone(model, log).embeddings, model.embed(torch.arange(log.n_items)).detach())
