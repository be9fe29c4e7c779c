"""Every update against a computation of its own: the formula in numpy, or another library's optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from llamafactory.errors import ModelError
from llamafactory.optim._block_adam import LayerAdam, Turns
from llamafactory.optim._eight_bit import BLOCK, dequantize, quantize, table
from llamafactory.optim._low_rank import random_bases
from llamafactory.optim._ratio_adam import RatioAdam
from llamafactory.optim._update import TensorwiseOptimizer
from llamafactory.optim.adalomo import AdaLomo
from llamafactory.optim.adam_mini import AdamMini
from llamafactory.optim.apollo import Apollo
from llamafactory.optim.galore import GaLore
from llamafactory.optim.lomo import Lomo
from llamafactory.optim.muon import Muon, newton_schulz

LR, DECAY, BETAS, EPS = 0.1, 0.01, (0.9, 0.99), 1e-8
DEFAULTS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
PROJECTED: dict[str, Any] = {"rule": "adam", "rank": 2, "interval": 50, "scale": 3.0, "proj_type": "std"}


def tensors(*shape: int, count: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def run(make: Callable[[nn.Parameter], Optimizer], start: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The weight after one step for each gradient."""
    parameter = nn.Parameter(start.clone())
    optimizer = make(parameter)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def galore(**options: Any) -> Callable[[nn.Parameter], Optimizer]:
    return lambda parameter: GaLore([{"params": [parameter], **PROJECTED, **options}], DEFAULTS)


def adamw(parameter: nn.Parameter, **options: Any) -> Optimizer:
    return torch.optim.AdamW([parameter], **{"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, **options})


class NumpyAdam:
    """m^ / (sqrt(v^) + eps)."""

    def __init__(self) -> None:
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.step = 0

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        self.step += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * gradient
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * gradient**2
        return self.m / (1 - BETAS[0] ** self.step) / (np.sqrt(self.v / (1 - BETAS[1] ** self.step)) + EPS)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right"])
def test_galore_is_its_formula(shape: tuple[int, int], proj_type: str) -> None:
    (start,), gradients = tensors(*shape, seed=1), tensors(*shape, count=3)
    u, _, vh = np.linalg.svd(gradients[0].numpy(), full_matrices=False)
    right = proj_type == "right" or ((shape[0] >= shape[1]) == (proj_type == "std") and proj_type.endswith("std"))
    rule, weight = NumpyAdam(), start.numpy().copy()
    for gradient in gradients:
        if right:
            direction = rule(gradient.numpy() @ vh[:2].T) @ vh[:2]
        else:
            direction = u[:, :2] @ rule(u[:, :2].T @ gradient.numpy())
        weight = weight - LR * DECAY * weight - LR * 3.0 * direction
    np.testing.assert_allclose(run(galore(proj_type=proj_type), start, gradients).numpy(), weight, atol=1e-9)


def test_galore_full_projects_both_sides() -> None:
    (start,), gradients = tensors(6, 4, seed=1), tensors(6, 4, count=2)
    parameter = nn.Parameter(start.clone())
    optimizer = galore(proj_type="full")(parameter)
    rule, weight = NumpyAdam(), start.numpy().copy()
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        left, right = (optimizer.state[parameter][side].numpy() for side in ("left", "right"))
        direction = left @ rule(left.T @ gradient.numpy() @ right) @ right.T
        weight = weight - LR * DECAY * weight - LR * 3.0 * direction
    assert optimizer.state[parameter]["m"].shape == (2, 2)
    np.testing.assert_allclose(parameter.detach().numpy(), weight, atol=1e-9)


def test_galore_of_full_rank_is_adamw_in_turned_coordinates() -> None:
    (start,), gradients = tensors(4, 6, seed=1), tensors(4, 6, count=5)
    basis = torch.linalg.svd(gradients[0])[0]
    turned = run(
        lambda parameter: adamw(parameter, weight_decay=0.0),
        basis.T @ start,
        [basis.T @ gradient for gradient in gradients],
    )
    found = run(
        lambda parameter: GaLore(
            [{"params": [parameter], **PROJECTED, "rank": 4, "scale": 1.0}], {**DEFAULTS, "weight_decay": 0.0}
        ),
        start,
        gradients,
    )
    torch.testing.assert_close(basis.T @ found, turned)


def test_galore_renews_the_projection_and_keeps_the_moments() -> None:
    parameter = nn.Parameter(tensors(6, 4)[0])
    optimizer = galore(interval=2)(parameter)
    bases = []
    for gradient in tensors(6, 4, count=4, seed=3):
        parameter.grad = gradient
        optimizer.step()
        bases.append(optimizer.state[parameter]["right"].clone())
    assert torch.equal(bases[0], bases[1]) and torch.equal(bases[2], bases[3])
    assert not torch.equal(bases[1], bases[2]) and optimizer.state[parameter]["step"] == 4


def test_galore_projects_each_expert_on_its_own() -> None:
    (start,), gradients = tensors(3, 6, 4, seed=1), tensors(3, 6, 4, count=2)
    together = run(galore(), start, gradients)
    for number in range(3):
        alone = run(galore(), start[number], [gradient[number] for gradient in gradients])
        torch.testing.assert_close(together[number], alone)


def test_unprojected_weights_follow_adamw() -> None:
    (start,), gradients = tensors(5, 3, seed=1), tensors(5, 3, count=6)
    expected = run(adamw, start, gradients)
    for optimizer in (
        lambda parameter: GaLore([{"params": [parameter], "rule": "adam"}], DEFAULTS),
        lambda parameter: Apollo([{"params": [parameter]}], DEFAULTS, seed=0),
        lambda parameter: Muon([{"params": [parameter], "orthogonal": False}], DEFAULTS),
    ):
        torch.testing.assert_close(run(optimizer, start, gradients), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize(("proj_type", "dim"), [("left", 0), ("right", 1)])
@pytest.mark.parametrize("proj", ["random", "svd"])
def test_apollo_is_its_formula(scale_type: str, proj_type: str, dim: int, proj: str) -> None:
    options = {**PROJECTED, "proj": proj, "scale_type": scale_type, "scale_front": False, "proj_type": proj_type}
    (start,), gradients = tensors(6, 4, seed=1), tensors(6, 4, count=3)
    gradients[1] *= 10
    parameter = nn.Parameter(start.clone())
    optimizer = Apollo([{"params": [parameter], **options}], DEFAULTS, seed=5)
    rule, weight, norm = NumpyAdam(), start.numpy().copy(), math.inf
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        basis, full = optimizer.state[parameter][proj_type].numpy(), gradient.numpy()
        low = basis.T @ full if proj_type == "left" else full @ basis
        axis = None if scale_type == "tensor" else dim
        factor = np.linalg.norm(rule(low), axis=axis, keepdims=True) / np.linalg.norm(low, axis=axis, keepdims=True)
        update = full * factor * math.sqrt(3.0)
        update *= min(1.0, 1.01 * norm / np.linalg.norm(update))
        norm = float(np.linalg.norm(update))
        weight = weight - LR * DECAY * weight - LR * update
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-5)


def test_apollo_scales_before_or_after_the_limiter_alike() -> None:
    (start,), gradients = tensors(6, 4, seed=1), tensors(6, 4, count=4)
    found = [
        run(
            lambda parameter, front=front: Apollo(
                [{"params": [parameter], **PROJECTED, "proj": "random", "scale_type": "channel", "scale_front": front}],
                DEFAULTS,
                seed=0,
            ),
            start,
            gradients,
        )
        for front in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_random_bases_keep_lengths_on_average_and_depend_on_the_seed() -> None:
    gradient = torch.zeros(200, 3)
    bases = [random_bases(gradient, 4, ("left",), seed)["left"] for seed in range(200)]
    mean = torch.stack([basis @ basis.T for basis in bases]).mean(0)
    assert mean.diagonal().mean() == pytest.approx(1.0, abs=0.02) and not torch.equal(bases[0], bases[1])
    assert torch.equal(bases[7], random_bases(gradient, 4, ("left",), 7)["left"])


def test_adam_mini_has_one_second_moment_for_each_block() -> None:
    (start,), gradients = tensors(6, 4, seed=1), tensors(6, 4, count=3)
    for heads, shape in ((2, (2, 12)), (0, (6, 4))):
        m, v, weight = 0.0, 0.0, start.numpy().reshape(shape)
        for step, gradient in enumerate(gradients, 1):
            blocks = gradient.numpy().reshape(shape)
            m = 0.9 * m + 0.1 * blocks
            v = 0.99 * v + 0.01 * (blocks**2).mean(1, keepdims=True)
            direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + EPS)
            weight = weight - LR * DECAY * weight - LR * direction
        found = run(
            lambda parameter, heads=heads: AdamMini([{"params": [parameter], "num_heads": heads}], DEFAULTS),
            start,
            gradients,
        )
        np.testing.assert_allclose(found.numpy().reshape(shape), weight, atol=1e-9)


def test_adam_mini_of_single_numbers_is_adamw() -> None:
    (start,), gradients = tensors(7, 1, seed=1), tensors(7, 1, count=5)
    found = run(lambda parameter: AdamMini([{"params": [parameter], "num_heads": 0}], DEFAULTS), start, gradients)
    torch.testing.assert_close(found, run(adamw, start, gradients))


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_muon_is_that_of_torch(shape: tuple[int, int]) -> None:
    (start,) = tensors(*shape, seed=1, dtype=torch.float32)
    gradients = tensors(*shape, count=4, dtype=torch.float32)
    expected = run(
        lambda parameter: torch.optim.Muon([parameter], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        start,
        gradients,
    )
    found = run(lambda parameter: Muon([{"params": [parameter], "orthogonal": True}], DEFAULTS), start, gradients)
    assert (found - expected).norm() < 0.03 * (expected - start).norm()  # both round to bfloat16


def test_newton_schulz_makes_singular_values_about_one() -> None:
    (experts,) = tensors(2, 16, 24, dtype=torch.float32)
    values = torch.linalg.svdvals(newton_schulz(experts).float())
    assert values.min() > 0.5 and values.max() < 1.3
    torch.testing.assert_close(newton_schulz(experts)[1], newton_schulz(experts[1]), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("shape", [(6, 4), (5,)])
def test_adafactor_is_that_of_transformers(shape: tuple[int, ...]) -> None:
    (start,) = tensors(*shape, seed=1, dtype=torch.float32)
    gradients = tensors(*shape, count=4, dtype=torch.float32)
    expected = run(
        lambda parameter: Adafactor([parameter], lr=LR, weight_decay=0.0, scale_parameter=False, relative_step=False),
        start,
        gradients,
    )
    plain = {**DEFAULTS, "weight_decay": 0.0}
    found = run(lambda parameter: GaLore([{"params": [parameter], "rule": "adafactor"}], plain), start, gradients)
    torch.testing.assert_close(found, expected)
    scaled = run(
        lambda parameter: Adafactor([parameter], lr=LR, weight_decay=0.0, scale_parameter=True, relative_step=False),
        start,
        gradients,
    )
    torch.testing.assert_close(
        run(lambda parameter: AdaLomo([{"params": [parameter]}], plain), start, gradients), scaled
    )


def test_lomo_is_gradient_descent() -> None:
    (start,), gradients = tensors(6, 4, seed=1), tensors(6, 4, count=2)
    found = run(lambda parameter: Lomo([{"params": [parameter]}], {**DEFAULTS, "weight_decay": 0.0}), start, gradients)
    torch.testing.assert_close(found, start - LR * gradients[0] - LR * gradients[1])


def test_eight_bits_round_little() -> None:
    for signed in (True, False):
        numbers = table(signed=signed)
        assert numbers.numel() == 256 == numbers.unique().numel() and numbers.max() == 1 and 0 in numbers
        (values,) = tensors(3, 700, dtype=torch.float32)
        values = values if signed else values.abs()
        codes, scales = quantize(values, signed=signed)
        found = dequantize(codes, scales, values.shape, signed=signed)
        assert codes.dtype == torch.uint8 and scales.numel() == math.ceil(2100 / BLOCK)
        assert (found - values).norm() / values.norm() < 0.02
    zeros = torch.zeros(10)
    assert torch.equal(dequantize(*quantize(zeros, signed=True), zeros.shape, signed=True), zeros)


def test_eight_bit_adam_stays_close_to_adam() -> None:
    (start,) = tensors(64, 80, seed=1, dtype=torch.float32)
    gradients = tensors(64, 80, count=10, dtype=torch.float32)
    expected = run(adamw, start, gradients)
    found = run(lambda parameter: GaLore([{"params": [parameter], "rule": "adam_8bit"}], DEFAULTS), start, gradients)
    assert (found - expected).norm() < 0.03 * (expected - start).norm()


def in_backward(optimizer: TensorwiseOptimizer) -> TensorwiseOptimizer:
    return optimizer.update_in_backward(max_grad_norm=0.0)


def test_update_in_backward_is_the_update_after_it() -> None:
    found = []
    for early in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
        groups = [{"params": list(model.parameters())[::2], **PROJECTED}]
        optimizer = GaLore([*groups, {"params": list(model.parameters())[1::2], "rule": "adam"}], DEFAULTS)
        if early:
            in_backward(optimizer)
        for seed in range(3):
            model(tensors(5, 6, seed=seed, dtype=torch.float32)[0]).square().sum().backward()
            gradients = [parameter.grad for parameter in model.parameters()]
            norm = optimizer.applied_grad_norm() if early else nn.utils.get_total_norm(gradients)
            assert not early or gradients == [None] * 4
            optimizer.step()
            optimizer.zero_grad()
        found.append((torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), norm))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].item() == pytest.approx(found[1][1].item(), rel=1e-5)


def test_a_second_gradient_in_one_update_is_an_error() -> None:
    layer = nn.Linear(3, 2)
    in_backward(Lomo([{"params": list(layer.parameters())}], DEFAULTS))
    layer(torch.ones(1, 3)).sum().backward()
    with pytest.raises(ModelError, match="a weight got a second gradient in one update"):
        layer(torch.ones(1, 3)).sum().backward()


def test_gradients_that_are_not_finite_change_nothing() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = in_backward(Lomo([{"params": [layer.weight]}], DEFAULTS))
    layer(torch.full((1, 3), math.nan)).sum().backward()
    assert torch.equal(layer.weight, before) and optimizer.applied_grad_norm().isnan()


def turns(mode: str, start: int | None = None, interval: int | None = 2) -> list[int]:
    order = Turns(interval=interval, mode=mode, start=start, seed=3)
    return [order.block(order.turn(step), 3) for step in range(12)]


def test_whose_turn_it_is() -> None:
    assert turns("ascending") == [0, 0, 1, 1, 2, 2] * 2
    assert turns("descending", start=1) == [1, 1, 0, 0, 2, 2] * 2
    assert turns("descending")[0] == 2
    assert turns("fixed", start=2) == [2] * 12 == turns("ascending", start=2, interval=None)
    rounds = turns("random")
    assert sorted(rounds[:6]) == sorted(rounds[6:]) == [0, 0, 1, 1, 2, 2]
    assert turns("random", start=2)[0] == 2


def test_a_layer_in_turn_follows_a_new_adamw() -> None:
    starts, gradients = tensors(4, 3, count=2, seed=1), tensors(4, 3, count=8)
    blocks = [nn.Parameter(start.clone()) for start in starts]
    groups = [{"params": [block], "block": number} for number, block in enumerate(blocks)]
    optimizer = LayerAdam(groups, DEFAULTS, Turns(2, "ascending", None, 0), num_blocks=2)
    for step, gradient in enumerate(gradients):
        active = step // 2 % 2
        assert [block.requires_grad for block in blocks] == [active == 0, active == 1]
        blocks[active].grad = gradient.clone()
        optimizer.step()
    for number in range(2):
        expected = starts[number]
        for first in (2 * number, 2 * number + 4):
            expected = run(adamw, expected, gradients[first : first + 2])
        torch.testing.assert_close(blocks[number].detach(), expected, rtol=1e-5, atol=1e-6)


def test_small_steps_of_16_bit_weights_add_up() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    options = {**DEFAULTS, "lr": 1e-4, "weight_decay": 0.0}
    optimizer = LayerAdam([{"params": [parameter], "block": 0}], options, Turns(None, "fixed", 0, 0), num_blocks=1)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.float().mean().item() == pytest.approx(0.99, abs=0.003)


@pytest.mark.parametrize("scattered", [False, True])
def test_a_share_of_the_entries_follows_adamw(scattered: bool) -> None:
    (start,) = tensors(10, 10, seed=1, dtype=torch.float32)
    gradients = tensors(10, 10, count=4, dtype=torch.float32)
    parameter = nn.Parameter(start.clone())
    options = {**DEFAULTS, "weight_decay": 0.0}
    optimizer = RatioAdam(
        [{"params": [parameter]}], options, Turns(2, "fixed", None, 0), share=0.07, scattered=scattered
    )
    places = []
    for number, gradient in enumerate(gradients):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        moved = (parameter.detach() != before).flatten().nonzero().flatten()
        places.append(moved.tolist())
        if number == 1:
            expected = run(lambda weight: adamw(weight, weight_decay=0.0), start, gradients[:2])
            torch.testing.assert_close(parameter.detach().flatten()[moved], expected.flatten()[moved])
    assert [len(moved) for moved in places] == [7] * 4
    assert places[0] == places[1] != places[2] == places[3]
    assert scattered or all((b - a) % 100 in {1, 94} for a, b in zip(places[0], places[0][1:], strict=False))
