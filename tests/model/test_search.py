"""The search against a plain one in float64: the same neighbours wherever float32 can tell them apart."""

import pytest
import torch

from cfa_cli.model.search import NeighbourSearch, nearest_plain


def search(bank, queries, k):
    found = NeighbourSearch(bank)
    return found(found.project(queries), k)


def reference(queries, bank, k):
    squared = ((queries.double()[:, None] - bank.double()[None]) ** 2).sum(-1)
    return squared.topk(min(k, len(bank)), dim=1, largest=False), squared


def make_bank(count, channels, kind):
    generator = torch.Generator().manual_seed(count + channels)
    if kind == "isotropic":  # no subspace to filter in: the hardest case
        bank = torch.randn(count, channels, generator=generator)
    elif kind == "smooth":  # as real banks are: most of the variance in a few directions, far from the origin
        spread = torch.logspace(0, -2, channels)
        basis = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
        bank = 5 + torch.randn(count, channels, generator=generator) * spread @ basis
    else:  # many centroids are the same
        bank = torch.randn(max(1, count // 7), channels, generator=generator).repeat(8, 1)[:count]
    pick = torch.randint(0, count, (200,), generator=generator)
    noise = torch.randn(200, channels, generator=generator) * bank.std() * 0.2
    return bank, bank[pick] + noise


@pytest.mark.parametrize("kind", ["isotropic", "smooth", "repeated"])
@pytest.mark.parametrize(
    ("count", "channels"), [(49, 64), (130, 64), (784, 448), (3136, 448), (3000, 100), (600, 1792)]
)
@pytest.mark.parametrize("k", [1, 6])
def test_same_neighbours_as_the_plain_search(kind, count, channels, k):
    bank, queries = make_bank(count, channels, kind)
    squared, indices = search(bank, queries, k)
    expected, everything = reference(queries, bank, k)
    # Float32's rounding of |x|² + |c|² - 2xc around the bank's centre.
    rounding = 1e-5 * (everything.max())
    assert (squared.double() - expected.values).abs().max() <= rounding
    found = everything.gather(1, indices)
    assert (found - expected.values).abs().max() <= rounding
    apart = torch.ones_like(indices, dtype=torch.bool)
    gaps = everything.sort(dim=1).values
    for i in range(indices.shape[1]):
        low = gaps[:, i] - gaps[:, i - 1] if i else torch.full((len(gaps),), torch.inf)
        apart[:, i] = (low > 2 * rounding) & (gaps[:, i + 1] - gaps[:, i] > 2 * rounding)
    assert (indices == expected.indices)[apart].all()
    assert (squared.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("distribution", ["far", "scaled", "on top"])
def test_queries_unlike_the_bank_are_searched_as_exactly(distribution):
    bank, queries = make_bank(2048, 448, "smooth")
    queries = {"far": queries + 100, "scaled": queries * 20, "on top": bank[:200].clone()}[distribution]
    squared, _ = search(bank, queries, 3)
    expected, everything = reference(queries, bank, 3)
    assert (squared.double() - expected.values).abs().max() <= 1e-5 * everything.max()


def test_a_large_bank_is_searched_in_bounded_memory():
    bank = torch.randn(65_536, 64, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    squared, indices = search(bank, queries, 6)
    expected, everything = reference(queries, bank, 6)
    assert (squared.double() - expected.values).abs().max() <= 1e-5 * everything.max()
    assert (indices == expected.indices).float().mean() > 0.99


def test_k_is_cut_to_the_bank():
    bank = torch.randn(4, 8)
    squared, indices = search(bank, torch.randn(3, 8), 6)
    assert squared.shape == indices.shape == (3, 4)
    assert nearest_plain(torch.randn(3, 8), bank, 6)[0].shape == (3, 4)


def test_results_do_not_depend_on_what_was_searched_before():
    # The search adapts its filter to the queries; a model must give the same scores whatever it saw before.
    bank, near = make_bank(2048, 448, "smooth")
    far = make_bank(2048, 448, "isotropic")[1] * 3
    adapted, fresh = NeighbourSearch(bank), NeighbourSearch(bank)
    near, far = adapted.project(near), adapted.project(far)
    adapted(near, 3), adapted(far, 3)
    for queries in (near, far):
        for mine, expected in zip(adapted(queries, 3), fresh(queries, 3), strict=True):
            assert torch.equal(mine, expected)
