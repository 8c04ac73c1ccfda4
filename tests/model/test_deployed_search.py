"""The search within exported graphs against distances in float64, for banks and queries that its filter is bad at."""

import pytest
import torch

from cfa_cli.model import deployed_search
from cfa_cli.model.deployed_search import DeployedSearch
from cfa_cli.model.search import principal_frame

CHANNELS, CENTROIDS = 300, 529  # 17 groups, the last one filled up


class Exported:
    """A search as a traced graph."""

    def __init__(self, bank, neighbours, count):
        frame = principal_frame(bank.double())
        self.frame = frame
        search = DeployedSearch((bank.double() - frame.origin) @ frame.axes, neighbours)
        assert search.filtered
        program = torch.export.export(search, (torch.zeros(count, bank.shape[1]), count))
        self.module = program.module()
        self.count = count

    def __call__(self, queries):
        along = ((queries.double() - self.frame.origin) @ self.frame.axes).float()
        return self.module(along, self.count)


def decaying(rows, seed):
    """Vectors most of whose variance lies along few axes, as descriptors' does."""
    torch.manual_seed(seed)
    return torch.randn(rows, CHANNELS) * torch.logspace(0.5, -2, CHANNELS)


BANKS = {
    "few axes": decaying(CENTROIDS, 0),
    "no axes": torch.randn(CENTROIDS, CHANNELS, generator=torch.Generator().manual_seed(1)),  # filters nearly nothing
    "one sphere": torch.nn.functional.normalize(decaying(CENTROIDS, 2)),
    "equal": decaying(1, 3).repeat(CENTROIDS, 1),
    "far from the origin": decaying(CENTROIDS, 4) + 100,
    "one far away": torch.cat([decaying(CENTROIDS - 1, 5), torch.full((1, CHANNELS), 300.0)]),
}


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("neighbours", [1, 3])
def test_distances_are_the_nearest(name, neighbours, monkeypatch):
    """Queries: near centroids, centroids, elsewhere, and far away; more than one turn's, and no multiple of it."""
    monkeypatch.setattr(deployed_search, "CHUNK_ELEMENTS", 64 * CENTROIDS)
    bank = BANKS[name]
    queries = torch.cat([bank[:50] + 0.01, bank[50:90], decaying(60, 7), 30 * torch.randn(23, CHANNELS)])
    found = Exported(bank, neighbours, len(queries))(queries)
    exact = torch.cdist(queries.double(), bank.double()).square()
    expected = exact.topk(neighbours, largest=False).values
    # A float32 distance |q|² + |b|² - 2 q.b is right up to the rounding of its terms, seen from the bank's middle.
    middle = bank.double().median(0).values
    terms = (queries - middle).square().sum(1) + (bank - middle).square().sum(1).max()
    assert ((found.double() - expected).abs().max(1).values <= 1e-5 * terms + 1e-9).all()
    assert (found.diff(dim=1) >= 0).all()
    assert (found[50:90, 0] <= 1e-9 * terms[50:90]).all()  # of centroids themselves there is no such rounding


def test_what_is_no_number_stays_none():
    queries = decaying(40, 8)
    queries[3, 5], queries[9, 250], queries[11] = torch.nan, torch.inf, -torch.inf
    found = Exported(BANKS["few axes"], 1, len(queries))(queries)
    spoiled = torch.zeros(40, dtype=torch.bool)
    spoiled[[3, 9, 11]] = True
    assert not found[spoiled].isfinite().any()
    assert found[~spoiled].isfinite().all()


@pytest.mark.parametrize("half", [False, True])
def test_the_short_product_is_a_lower_bound(half):
    """The sum of the products is |b|² - 2 q.b; the second is not negative, even as it is stored."""
    bank = decaying(CENTROIDS, 9).double()
    bank = bank.half().double() if half else bank
    search = DeployedSearch(bank, 1, half=half)
    stored = search.rest.half().double() if half else search.rest.double()
    blocks = deployed_search._split_trailing(bank)
    trailing = torch.cat([*blocks, deployed_search._norms(blocks)], dim=1)
    rest = trailing @ stored[:CENTROIDS].T
    assert rest.min() >= 0  # with itself each is as near to negative as can be
    if half:
        return
    leading = torch.cat([bank[:, : deployed_search.LEADING], trailing[:, -deployed_search.BLOCKS :]], dim=1)
    short = leading @ search.short[:CENTROIDS].double().T + search.lengths[:CENTROIDS].double()
    torch.testing.assert_close(short + rest, bank.square().sum(1) - 2 * bank @ bank.T, rtol=0, atol=1e-4)


def test_small_banks_are_searched_whole():
    assert not DeployedSearch(torch.randn(200, 300).double(), 1).filtered
    assert not DeployedSearch(torch.randn(2000, 100).double(), 1).filtered
