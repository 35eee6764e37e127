import torch
from small_worlds import new_encoder, normal
from torch import nn
from torch.nn import functional as F

from dcclctl.devices.encoder import Encoder

PROFILES = torch.tensor([[0, 0], [1, 3], [2, 1], [2, 3]])


def test_everybody_gets_zero_before_training():
    encoder = new_encoder(4, 6, (3, 4), seed=1)
    result = encoder(normal(4, 4), PROFILES)
    assert result.shape == (4, 4)
    assert not result.any()


def test_it_is_the_equation_on_one_hot_profiles():
    encoder = new_encoder(4, 6, (3, 4), seed=1)
    nn.init.normal_(encoder.out)
    codes = normal(4, 4)
    u = torch.cat([F.one_hot(PROFILES[:, 0], 3), F.one_hot(PROFILES[:, 1], 4)], dim=1).float()
    u[:, [0, 3]] = 0  # missing values are no category
    expected = (encoder.out @ torch.tanh(encoder.code @ codes.T + encoder.profile.T @ u.T)).T
    torch.testing.assert_close(encoder(codes, PROFILES), expected)


def test_who_says_nothing_is_served_by_the_cloud_model():
    encoder = new_encoder(4, 6, (3, 4), seed=1)
    nn.init.normal_(encoder.out)
    served = encoder(torch.zeros(4, 4), PROFILES)
    assert not served[0].any()
    assert served[1:].any(1).all()
    without_profiles = new_encoder(4, 6, (1,), seed=1)
    nn.init.normal_(without_profiles.out)
    assert not without_profiles(torch.zeros(5, 4), torch.zeros(5, 1, dtype=torch.int64)).any()
    assert without_profiles(normal(5, 4), torch.zeros(5, 1, dtype=torch.int64)).any(1).all()


def test_all_three_matrices_learn_a_known_answer():
    """Weights of the same shape made the answers; the encoder finds θ̂ ↦ answer from samples of it."""
    truth = Encoder(3, 5, (3, 4), torch.Generator().manual_seed(1))
    nn.init.normal_(truth.out, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    codes = torch.randn(400, 3, generator=generator)
    profile = torch.stack([torch.randint(0, n, (400,), generator=generator) for n in (3, 4)], dim=1)
    answers = truth(codes, profile).detach()
    encoder = new_encoder(3, 16, (3, 4), seed=5)
    before = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    assert set(before) == {"out", "code", "profile"}
    optimiser = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        loss = F.mse_loss(encoder(codes[:300], profile[:300]), answers[:300])
        loss.backward()
        optimiser.step()
    for name, weight in encoder.named_parameters():
        read = torch.ones(len(weight), dtype=torch.bool)
        if name == "profile":
            read[[0, 3]] = False  # missing values
        assert torch.equal(weight.grad.any(-1), read), f"a row of {name} gets no gradient"
        assert (weight != before[name])[read].all(), f"{name} did not learn"
    unseen = F.mse_loss(encoder(codes[300:], profile[300:]), answers[300:])
    assert unseen < 0.02 * answers.var()


def test_the_same_seed_gives_the_same_encoder():
    ours, same, other = (new_encoder(4, 6, (3, 4), seed).code for seed in (1, 1, 2))
    assert torch.equal(ours, same)
    assert not torch.equal(ours, other)


def test_saved_weights_are_all_there_is():
    encoder = new_encoder(4, 6, (3, 4), seed=1)
    nn.init.normal_(encoder.out)
    saved = encoder.state_dict()
    assert set(saved) == {"out", "code", "profile"}
    again = new_encoder(4, 6, (3, 4), seed=2)
    again.load_state_dict(saved)
    codes = normal(4, 4)
    assert torch.equal(again(codes, PROFILES), encoder(codes, PROFILES))
