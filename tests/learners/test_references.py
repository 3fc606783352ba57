"""Ten updates of a learner equal those of a plain reference: autograd, Adam, and one averaging of the targets each."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from builders import FINETUNE, PRETRAIN, SPEC, leaves, make_batch
from torch.distributions import Normal

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.awac import AWAC
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.famo2o import FamO2O, encode
from o2o_diffusion.learners.famo2o_cql import FamO2OCQL
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.learners.pex import PEX
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.replay import Replay

RATE, TAU, UPDATES = 3e-3, 0.1, 10
COMMON = {"hidden": (16, 16), "learning_rate": RATE, "tau": TAU}


class Reference:
    """Copies of a learner's networks and random stream; `step` and `follow` change them."""

    def __init__(self, learner):
        self.networks = {n: deepcopy(p) for n, p in vars(learner).items() if isinstance(p, torch.nn.Module)}
        trained = {n: list(p.parameters()) for n, p in self.networks.items()}
        self.adams = {n: torch.optim.Adam(parameters, lr=RATE) for n, parameters in trained.items() if parameters}
        self.rng = ShardedRng(0)
        self.rng.load_state_dict(deepcopy(learner.rng.state_dict()))

    def __getattr__(self, name):
        return self.networks[name]

    def step(self, name, loss):
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.adams[name].step()

    def follow(self, target, source, tau=TAU):
        for old, new in zip(self.networks[target].parameters(), self.networks[source].parameters(), strict=True):
            old.data = (1 - tau) * old.data + tau * new.data

    def squashed(self, base, *shape):
        """tanh(u) and its log-density, u ~ `base`."""
        u = base.mean + base.log_std.exp() * self.rng.normal(*shape)
        jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), (Normal(base.mean, base.log_std.exp()).log_prob(u) - jacobian).sum(-1)


def log_density(policy, actions):
    return Normal(policy.mean, policy.log_std.exp()).log_prob(actions).sum(-1)


def bootstrapped(b, next_v):
    return (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()


def td_loss(p, b, y):
    q1, q2 = p.critic(b.observations, b.actions)
    return ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()


def iql(p, b, number, *, balanced=False):
    q = torch.minimum(*p.target_critic(b.observations, b.actions)).detach()
    difference = q - p.value(b.observations)
    p.step("value", (torch.where(difference > 0, 0.7, 0.3) * difference**2).mean())
    advantage = (q - p.value(b.observations)).detach()
    if balanced:
        beta = 3 + 2 * (2 * p.rng.uniform(64) - 1)
        policy = p.actor(b.observations, encode(beta))
    else:
        beta, policy = 3.0, p.actor(b.observations)
    loss = -((beta * advantage).exp().clamp(max=100) * log_density(policy, b.actions)).mean()
    if balanced and number % 2 == 0:
        x, log_prob = p.squashed(p.balance(b.observations).base, 64, 1)
        chosen = p.actor(b.observations, encode(3 + 2 * x.squeeze(1)))
        actions = chosen.mean + chosen.log_std.exp() * p.rng.normal(64, 2)
        values = torch.minimum(*p.target_critic(b.observations, actions))
        p.step("balance", (p.temperature().detach() * log_prob - values).mean())
        p.step("temperature", (p.temperature() * (-log_prob.detach() + 0.5)).mean())
    p.step("actor", loss)
    p.follow("acting_actor", "actor", max(0.4, 1 / (number + 1)))
    p.step("critic", td_loss(p, b, bootstrapped(b, p.value(b.next_observations))))
    p.follow("target_critic", "critic")


def awac(p, b, number):
    def sampled(observations):
        policy = p.actor(observations)
        return (policy.mean + policy.log_std.exp() * p.rng.normal(64, 2)).clamp(-1, 1).detach()

    next_v = torch.minimum(*p.target_critic(b.next_observations, sampled(b.next_observations)))
    p.step("critic", td_loss(p, b, bootstrapped(b, next_v)))
    q, v = (torch.minimum(*p.critic(b.observations, a)) for a in (b.actions, sampled(b.observations)))
    weights = (q - v).exp().clamp(max=100).detach()
    p.step("actor", -(weights * log_density(p.actor(b.observations), b.actions)).mean())
    p.follow("target_critic", "critic")


def td3_bc(p, b, number):
    noise = (0.2 * p.rng.normal(64, 2)).clamp(-0.5, 0.5)
    next_actions = (p.target_actor(b.next_observations) + noise).clamp(-1, 1)
    next_v = torch.minimum(*p.target_critic(b.next_observations, next_actions))
    p.step("critic", td_loss(p, b, bootstrapped(b, next_v)))
    if number % 2 == 1:
        actions = p.actor(b.observations)
        q = p.critic(b.observations, actions)[0]
        p.step("actor", ((actions - b.actions) ** 2).mean() - 2.5 * q.mean() / q.abs().mean().item())
        p.follow("target_critic", "critic")
        p.follow("target_actor", "actor")


def sac(p, b, number):
    next_actions, next_log_prob = p.squashed(p.actor(b.next_observations).base, 64, 2)
    next_v = torch.minimum(*p.target_critic(b.next_observations, next_actions)) - p.temperature() * next_log_prob
    p.step("critic", td_loss(p, b, bootstrapped(b, next_v)))
    p.follow("target_critic", "critic")
    actions, log_prob = p.squashed(p.actor(b.observations).base, 64, 2)
    q = torch.minimum(*p.critic(b.observations, actions))
    p.step("actor", (p.temperature().detach() * log_prob - q).mean())
    p.step("temperature", (p.temperature() * (-log_prob.detach() + 2)).mean())


def famo2o(p, b, number):
    iql(p, b, number, balanced=True)


def pex_online(p, b, number):
    q = torch.minimum(*p.target_critic(b.observations, b.actions)).detach()
    difference = q - p.value(b.observations)
    p.step("value", (torch.where(difference > 0, 0.7, 0.3) * difference**2).mean())
    p.step("critic", td_loss(p, b, bootstrapped(b, p.value(b.next_observations))))
    p.follow("target_critic", "critic")
    q = torch.minimum(*p.target_critic(b.observations, b.actions))
    weights = (3 * (q - p.value(b.observations))).exp().clamp(max=100).detach()
    p.step("actor", -(weights * log_density(p.actor(b.observations), b.actions)).mean())
    p.follow("acting_actor", "actor", max(0.4, 1 / (number + 1)))


CASES = {
    "iql": (IQL, {"actor_tau": 0.4}, iql),
    "awac": (AWAC, {}, awac),
    "td3_bc": (TD3BC, {}, td3_bc),
    "sac": (SAC, {}, sac),
    "famo2o": (FamO2O, {"actor_tau": 0.4, "balance_interval": 2}, famo2o),
    "pex_online": (PEX, {"actor_tau": 0.4, "policy_target": "replay"}, pex_online),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_updates_equal_those_of_the_reference(name):
    cls, settings, update = CASES[name]
    learner = cls(cls.Config(**COMMON, **settings), SPEC, seed=0)
    if name == "pex_online":
        learner.begin_phase(FINETUNE, Replay(SPEC))
    reference = Reference(learner)
    for number in range(UPDATES):
        b = make_batch(seed=number)
        learner.update(b)
        update(reference, b, number)
    for part, network in reference.networks.items():
        for found, expected in zip(getattr(learner, part).parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(
                found.data, expected.data, rtol=1e-4, atol=1e-5, msg=lambda m, p=part: f"{p} {m}"
            )


def pretrained(cls):
    learner = cls(cls.Config(**COMMON), SPEC, seed=0)
    learner.begin_phase(PRETRAIN, Replay(SPEC))
    learner.update(make_batch())
    learner.begin_phase(FINETUNE, Replay(SPEC))
    return learner


@pytest.mark.parametrize("cls", [CQL, FamO2OCQL, PEX, FamO2O])
def test_the_targets_of_an_online_update_approach_the_critics_by_tau(cls):
    learner = pretrained(cls)
    before = deepcopy(learner.target_critic)
    learner.update(make_batch(seed=1))
    for old, new, critic in zip(
        before.parameters(), learner.target_critic.parameters(), learner.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new.data, (1 - TAU) * old.data + TAU * critic.data)
    assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), learner.critic.parameters(), strict=True))


def test_gradients_are_clipped_together():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(()))]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    optimizer, adam = Optimizer(parameters, RATE, max_grad_norm=1.0), torch.optim.Adam(plain, lr=RATE)
    for scale in (100.0, 0.1):  # norms 300 and 0.3
        optimizer.step(scale * ((2 * torch.ones(2) * parameters[0]).sum() + parameters[1]))
        factor = min(scale, 1 / 3)
        plain[0].grad, plain[1].grad = torch.full((2,), 2 * factor), torch.tensor(factor)
        adam.step()
    for found, expected in zip(parameters, plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_restored_optimizer_shares_nothing_with_the_saved_state():
    one, other = (Optimizer([torch.nn.Parameter(torch.ones(2))], RATE) for _ in range(2))
    one.step(one.parameters[0].sum())
    state = deepcopy(one.state_dict())
    before = deepcopy(leaves(state))
    other.load_state_dict(state)
    other.step(3 * other.parameters[0].sum())
    for name, value in leaves(state).items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name
