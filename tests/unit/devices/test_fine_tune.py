"""Fine-tuning on the device: against torch's own layers and Adam, one by one, and as it is served."""

import dataclasses

import pytest
import torch
from small_worlds import din, frozen, local, normal, random_log
from torch.nn import functional as F

from dcclctl.devices.fine_tune import changed_logits, fit_layers, layer_head, number_of_weights
from dcclctl.devices.hidden_patch import DeviceRows, Head
from dcclctl.errors import DivergedError
from dcclctl.events.log import TEST, EventLog
from dcclctl.models.din import Din, DinBackbone, prelu

COUNTS = [1, 40, 3, 17, 8]


def rows_of(counts: list[int], width: int = 12, seed: int = 0) -> DeviceRows:
    """Users with so many rows each, padded with garbage of weight 0."""
    n = max(counts)
    weights = (torch.arange(n) < torch.tensor(counts)[:, None]).float()
    labels = (normal(len(counts), n, seed=seed + 1) > 0).float()
    return DeviceRows(normal(len(counts), n, width, seed=seed), labels, weights)


@pytest.fixture(scope="module")
def log() -> EventLog:
    return random_log()


@pytest.fixture(scope="module")
def model(log: EventLog) -> Din:
    return din(log, scale=10)


@pytest.fixture(scope="module")
def head(model: Din) -> Head:
    return Head.of(model)


def cloud_logits(head: Head, rows: DeviceRows) -> torch.Tensor:
    return prelu(rows.z1 @ head.weight_2.T + head.bias_2, head.slope_2) @ head.out + head.bias


def double(thing):
    """A record of tensors, in float64."""
    return type(thing)(**{field.name: getattr(thing, field.name).double() for field in dataclasses.fields(thing)})


def test_fine_tuning_is_torchs_adam_on_the_models_own_last_layers(head: Head) -> None:
    """Σ CE + prior·‖w − w_cloud‖² by autograd on real layers, user by user, in float64."""
    wide, exact = double(head), double(rows_of([7, 3, 1]))
    torch.set_default_dtype(torch.float64)
    try:
        found = fit_layers(wide, exact, local(10, 0.01, 0.3))
        assert found.shape == (3, number_of_weights(head)) == (3, 12 * 7 + 7 + 7 + 1)
        for user in range(3):
            hidden, out = torch.nn.Linear(12, 7), torch.nn.Linear(7, 1)
            with torch.no_grad():
                hidden.weight.copy_(wide.weight_2), hidden.bias.copy_(wide.bias_2)
                out.weight.copy_(wide.out[None]), out.bias.copy_(wide.bias[None])
            weights = [*hidden.parameters(), *out.parameters()]
            cloud = [weight.detach().clone() for weight in weights]
            optimiser = torch.optim.Adam(weights, lr=0.01)
            for _ in range(10):
                optimiser.zero_grad()
                logits = out(F.prelu(hidden(exact.z1[user]), wide.slope_2))[:, 0]
                loss = F.binary_cross_entropy_with_logits(
                    logits, exact.labels[user], exact.weights[user], reduction="sum"
                )
                away = sum((weight - before).square().sum() for weight, before in zip(weights, cloud, strict=True))
                (loss + 0.3 * away).backward()
                optimiser.step()
            change = torch.cat([(w.detach() - c).flatten() for w, c in zip(weights, cloud, strict=True)])
            assert change.abs().max() > 0.01
            torch.testing.assert_close(found[user], change, atol=1e-9, rtol=1e-7)
    finally:
        torch.set_default_dtype(torch.float32)


def test_all_users_at_once_learn_what_each_learns_alone(head: Head) -> None:
    rows, how = rows_of(COUNTS), local(12, 0.01, 0.5)
    kept = frozen(*vars(head).values(), rows.z1)
    together = fit_layers(head, rows, how)
    assert frozen(*vars(head).values(), rows.z1) == kept
    assert (together.norm(dim=1) > 1e-3).all()
    for user, count in enumerate(COUNTS):
        own = DeviceRows(*(values[user : user + 1, :count] for values in vars(rows).values()))
        alone = fit_layers(head, own, how)[0]
        assert (together[user] - alone).norm() <= 1e-4 * alone.norm()


def test_what_is_learned_lowers_the_users_loss_and_the_prior_keeps_it_small(head: Head) -> None:
    rows = rows_of([30, 30])
    free, held = (fit_layers(head, rows, local(60, 0.01, prior)) for prior in (0.0, 10.0))

    def losses(codes: torch.Tensor) -> torch.Tensor:
        logits = changed_logits(head, rows, codes)
        return F.binary_cross_entropy_with_logits(logits, rows.labels, reduction="none").sum(1)

    assert (losses(free) < losses(held)).all() and (losses(held) < losses(torch.zeros_like(held))).all()
    assert (held.norm(dim=1) < 0.5 * free.norm(dim=1)).all()


def test_a_user_without_rows_keeps_the_cloud_model(head: Head) -> None:
    rows = rows_of([4, 4])
    rows.weights[1] = 0
    codes = fit_layers(head, rows, local(5, 0.01, 0.5))
    assert codes[0].any() and not codes[1].any()


def test_without_a_change_the_rows_have_the_clouds_logits(head: Head) -> None:
    rows, size = rows_of(COUNTS), number_of_weights(head)
    zero = changed_logits(head, rows, torch.zeros(5, size))
    torch.testing.assert_close(zero, cloud_logits(head, rows), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(changed_logits(head, rows, torch.full((5, size), 0.3)), zero, atol=1e-3)


@pytest.mark.parametrize("everything", [True, False])
def test_a_served_user_has_the_own_layers_and_without_a_change_the_clouds_to_the_last_bit(
    model: Din, log: EventLog, head: Head, everything: bool
) -> None:
    backbone, events = DinBackbone(model, log), log.events_in(TEST)
    candidates = None if everything else torch.arange(20).expand(len(events), -1)
    codes = normal(log.n_users, number_of_weights(head)) * 0.1
    codes[::2] = 0
    with torch.no_grad():
        z1 = backbone.activations(events, candidates)
        cloud = backbone.head(events, candidates, z1)
        served = layer_head(backbone, codes)(events, candidates, z1)
    owners = torch.from_numpy(log.user[events])
    assert torch.equal(served[owners % 2 == 0], cloud[owners % 2 == 0])
    assert (served != cloud)[owners % 2 == 1].any(1).all()
    nothing = torch.zeros(z1.shape[:2])
    expected = changed_logits(head, DeviceRows(z1, nothing, nothing), codes[owners])
    torch.testing.assert_close(served, expected, atol=1e-5, rtol=1e-4)


def test_devices_that_diverge_say_so(head: Head) -> None:
    with pytest.raises(DivergedError, match="infinite"):
        fit_layers(head, rows_of([4, 4]), local(15, 1e30, 1.0))
