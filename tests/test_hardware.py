import torch

from o2o_diffusion.hardware import MAX_RELATIVE_ERROR, choose_matmul


def test_the_chosen_route_is_true_float32():
    before = torch.get_float32_matmul_precision()
    try:
        assert choose_matmul() == torch.get_float32_matmul_precision()
        a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1))
        exact = a.double() @ b.double()
        assert float(((a @ b).double() - exact).norm() / exact.norm()) < MAX_RELATIVE_ERROR
    finally:
        torch.set_float32_matmul_precision(before)
