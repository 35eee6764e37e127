import numpy as np
import pytest
import torch
from references import activations_event_by_event
from small_worlds import din, log_of, normal, random_log, shown_with
from torch import nn

from dcclctl.models import din as din_module
from dcclctl.models.din import DinBackbone, prelu


def textbook_interest(model, query, keys, mask):
    """Attention as the paper has it: one row per (candidate, past event), a network on [q, k, q−k, q∗k].

    Source: Zhou et al. 2018, figure 2 (with the difference, as their code has it). The weights for [q, k, q−k, q∗k] are such that they fold into the
    model's three maps: Wq·q + Wk·k = (Wq − V)·q + (Wk + V)·k + V·(q−k) for any V.
    """
    size, units = query.shape[-1], model.attention_key.out_features
    v = normal(units, size, seed=3)
    first, activation, last = nn.Linear(4 * size, units), nn.PReLU(units), nn.Linear(units, 1)
    with torch.no_grad():
        wq, wk, wp = (m.weight for m in (model.attention_query, model.attention_key, model.attention_product))
        first.weight.copy_(torch.cat([wq - v, wk + v, v, wp], dim=1))
        first.bias.copy_(model.attention_key.bias)
        activation.weight.copy_(model.attention_slope)
        last.load_state_dict(model.attention_out.state_dict())
        result = torch.zeros_like(query)
        for row in range(len(query)):
            for candidate, q in enumerate(query[row]):
                for k in keys[row][mask[row]]:
                    weight = last(activation(first(torch.cat([q, k, q - k, q * k]))[None]))
                    result[row, candidate] += weight[0, 0] * k
    return result


@pytest.fixture(scope="module")
def world():
    log = random_log()
    model = din(log, scale=10)
    d = model.embedding_size
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 0])[:, None]
    return log, model, normal(4, 5, d), normal(4, 6, d, seed=1), mask


def test_attention_is_the_textbook_form(world):
    _, model, query, keys, mask = world
    torch.testing.assert_close(
        model.interest(query, keys, mask), textbook_interest(model, query, keys, mask), atol=1e-5, rtol=1e-5
    )


def test_attention_for_many_candidates_is_the_same(world):
    _, model, query, keys, mask = world
    torch.testing.assert_close(
        model.interest_of_many(query, keys, mask), model.interest(query, keys, mask), atol=1e-6, rtol=1e-5
    )


def test_without_a_history_there_is_no_interest(world):
    _, model, query, keys, mask = world
    for interest in (model.interest, model.interest_of_many):
        result = interest(query, keys, mask)
        assert not result[3].any()
        assert result[:3].any(-1).all()


def test_padding_changes_nothing(world):
    _, model, query, keys, mask = world
    garbage = torch.cat([keys, 100 * normal(4, 3, keys.shape[-1], seed=9)], dim=1)
    longer = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    for interest in (model.interest, model.interest_of_many):
        torch.testing.assert_close(interest(query, garbage, longer), interest(query, keys, mask))


def test_the_order_of_a_history_changes_nothing(world):
    _, model, query, keys, mask = world
    torch.testing.assert_close(model.interest(query, keys.flip(1), mask.flip(1)), model.interest(query, keys, mask))


def test_hidden_layers_are_a_plain_network_on_what_the_model_knows(world):
    """[candidate, interest, their product, profile] → two PReLU layers → one logit, with torch's own modules."""
    log, model, query, keys, mask = world
    interest, profile = model.interest(query, keys, mask), model.embed_profile(log.profile[:4])
    logits = model.logits(model.second_layer(model.first_layer(query, interest, profile)))
    first, second = nn.PReLU(12), nn.PReLU(7)
    with torch.no_grad():
        first.weight.copy_(model.slope_1)
        second.weight.copy_(model.slope_2)
    network = nn.Sequential(model.hidden_1, first, model.hidden_2, second, model.out)
    for row in range(4):
        for candidate in range(5):
            q, v = query[row, candidate], interest[row, candidate]
            expected = network(torch.cat([q, v, q * v, profile[row]])[None])
            torch.testing.assert_close(logits[row, candidate], expected[0, 0], atol=1e-6, rtol=1e-5)


def test_prelu_is_torchs():
    slope, x = torch.tensor([0.1, -0.5, 2.0]), normal(4, 5, 3)
    module = nn.PReLU(3)
    with torch.no_grad():
        module.weight.copy_(slope)
    assert torch.equal(prelu(x, slope), module(x.transpose(1, 2)).transpose(1, 2))


def test_an_embedding_is_the_items_row_and_the_mean_of_its_categories(world):
    log, model, *_ = world
    embedded = model.embed(torch.arange(log.n_items))
    for item in range(log.n_items):
        own = [c for c in log.item_categories[item].tolist() if c < log.n_categories]
        assert len(own) == item % 4  # 0 to 3: the log has items of every kind
        mean = model.category_table[own].mean(0) if own else torch.zeros(4)
        torch.testing.assert_close(embedded[item], torch.cat([model.item_table[item], mean]))


def test_given_rows_stand_in_for_the_item_table(world):
    _, model, *_ = world
    items = torch.tensor([4, 2, 4])
    assert torch.equal(model.embed(items, model.item_table[items]), model.embed(items))
    changed = model.embed(items, model.item_table[items] + 1)
    assert torch.equal(changed[:, :6], model.item_table[items] + 1)
    assert torch.equal(changed[:, 6:], model.embed(items)[:, 6:])


def test_a_log_without_categories_has_no_category_weights():
    log = log_of([(0, 0, 0, 1, 0), (0, 1, 1, 1, 0)], n_users=1, n_items=3)
    model = din(log)
    assert "category_table" not in dict(model.named_parameters())
    assert model.embedding_size == model.sizes.item_size
    assert torch.equal(model.embed(torch.arange(3)), model.item_table)


def test_profile_columns_have_tables_of_their_own(world):
    _, model, *_ = world
    profile = torch.tensor([[2, 3], [0, 1]])
    expected = torch.stack(
        [torch.cat([model.profile_tables[0][a], model.profile_tables[1][b]]) for a, b in profile.tolist()]
    )
    assert torch.equal(model.embed_profile(profile), expected)


def test_the_same_generator_gives_the_same_weights(world):
    log, *_ = world
    ours, same, other = (dict(din(log, seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert all(not torch.equal(ours[name], other[name]) for name in ours)


def test_the_padding_category_is_zero_and_gets_no_gradient(world):
    log, *_ = world
    model = din(log)
    assert not model.category_table[-1].any()
    model.embed(torch.arange(log.n_items)).sum().backward()
    assert not model.category_table.grad[-1].any()
    assert model.category_table.grad[:-1].any(1).all()


def test_an_event_does_not_see_its_batch(world):
    log, model, *_ = world
    events = log.events_in(2, 3)
    candidates = torch.from_numpy(np.random.default_rng(2).integers(0, log.n_items, (len(events), 4)))
    together = model.first_layer_of_few(log, events, candidates)
    order = np.random.default_rng(3).permutation(len(events))
    shuffled = model.first_layer_of_few(log, events[order], candidates[torch.from_numpy(order)])
    torch.testing.assert_close(shuffled, together[torch.from_numpy(order)], atol=1e-6, rtol=1e-5)
    for row in range(len(events)):
        alone = model.first_layer_of_few(log, events[row : row + 1], candidates[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)


def test_a_candidate_does_not_see_the_other_candidates(world):
    log, model, *_ = world
    events = log.events_in(3)
    candidates = torch.arange(12).expand(len(events), -1).contiguous()
    together = model.first_layer_of_few(log, events, candidates)
    for c in range(12):
        alone = model.first_layer_of_few(log, events, candidates[:, c : c + 1])
        torch.testing.assert_close(alone[:, 0], together[:, c], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("numbers_at_once", [1 << 24, 300])
def test_candidates_that_all_events_share_are_scored_as_if_each_event_had_them(world, monkeypatch, numbers_at_once):
    """The logits, and the gradients of a sum with unequal weights, with histories of any length, also none."""
    monkeypatch.setattr("dcclctl.models.din._CELLS", numbers_at_once)
    log, model, *_ = world
    events, shared = log.events_in(*range(4)), torch.tensor([3, 0, 7, 8])
    assert {0, model.sizes.history} <= set(log.history_lengths(events, model.sizes.history).tolist())
    own = torch.from_numpy(np.random.default_rng(2).integers(0, log.n_items, (len(events), 2)))
    through, positions = model.training_pass(log, events), np.arange(len(events))
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(len(events), 6))).float()

    def gradients(logits):
        model.zero_grad()
        (logits * weight).sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if name != "item_table"}

    together = through.forward_shared(positions, own, shared)
    one_by_one = through.forward(positions, torch.cat([own, shared.expand(len(events), -1)], 1))
    logits = torch.cat([together.logits, together.shared], 1)
    torch.testing.assert_close(logits, one_by_one.logits, atol=1e-5, rtol=1e-5)
    found, expected = gradients(logits), gradients(one_by_one.logits)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.leaf.grad, one_by_one.leaf.grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        ranked = through.forward_shared(positions, own, shared)
    torch.testing.assert_close(torch.cat([ranked.logits, ranked.shared], 1), logits, atol=1e-5, rtol=1e-5)
    new = np.flatnonzero(log.history_lengths(events, 50) == 0)  # a batch of users without any history
    alone = through.forward_shared(new, own[new], shared)
    torch.testing.assert_close(alone.shared, together.shared[new], atol=1e-5, rtol=1e-5)


def test_the_number_of_threads_changes_nothing_but_the_last_digits(two_threads):
    log = random_log(n_users=40, n_items=200, n_events=60)
    model = shown_with(din(log, hidden_sizes=(64, 32), scale=10), 20)
    events = log.events_in(1, 2, 3)
    candidates = torch.from_numpy(np.random.default_rng(2).integers(0, 200, (len(events), 8)))

    def logits():
        return model.logits(model.second_layer(model.first_layer_of_few(log, events, candidates)))

    one, two = two_threads(logits)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_another_log_gives_other_histories(world):
    log, model, *_ = world
    events = log.events_in(2, 3)
    cut = log.truncate_history(events, np.full(len(events), 1))
    backbone = DinBackbone(model, log)
    forgetful = backbone.with_log(cut)
    assert (forgetful.lengths(events) <= 1).all() and (backbone.lengths(events) > 1).any()
    few = torch.arange(4).expand(len(events), -1).contiguous()
    expected = model.first_layer_of_few(cut, events, few)
    torch.testing.assert_close(forgetful.activations(events, few), expected.detach(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(backbone.activations(events, few), expected.detach(), atol=1e-3)


@pytest.mark.parametrize("cells", [0, 3 * 30, 1 << 28])
def test_the_whole_catalogue_has_the_activations_of_its_items(world, monkeypatch, cells):
    """Up to the order of sums; whether the attention of no item is kept, of some, or of all. Also without a history."""
    monkeypatch.setattr(din_module, "_ATTENTION_CELLS", cells)
    log, model, *_ = world
    backbone, events = DinBackbone(model.eval(), log), np.arange(len(log.user))
    assert {0, 1} < set(log.history_lengths(events, 99).tolist())
    expected = activations_event_by_event(backbone, events)
    torch.testing.assert_close(backbone.activations(events, None), expected, rtol=1e-4, atol=1e-6)
    assert backbone.activations(events, None).equal(backbone.activations(events, None))
    assert expected.std() > 1e-3
