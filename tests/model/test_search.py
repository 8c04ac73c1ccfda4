"""The search against float64: the same neighbours wherever float32 can tell them apart, for every filter type."""

import subprocess
import sys

import pytest
import torch

from cfa_cli.model.search import NeighbourSearch, nearest_plain
from cfa_cli.model.search_filter import FILTER_TYPES, Filter, filter_sizes, shorten

UNIT = 2.0**-24  # float32's rounding


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(bank, count=200, noise=0.2):
    chosen = bank[torch.randint(0, len(bank), (count,), generator=torch.Generator().manual_seed(1))]
    return chosen + draw(*chosen.shape, seed=2) * bank.std() * noise


def subspace(count, channels, *, inside=30, remainder=0.0):
    """A bank that lies in few directions, and leaves a little in the others."""
    spread = torch.full((channels,), remainder)
    spread[:inside] = 1
    basis = torch.linalg.qr(draw(channels, channels, seed=3)).Q
    return draw(count, channels) * spread @ basis


def near_duplicates():
    originals = draw(30, 96)
    bank = originals.repeat(10, 1) + draw(300, 96, seed=4) * 1e-4
    return bank, originals + draw(30, 96, seed=5) * 1e-4


def smooth():
    basis = torch.linalg.qr(draw(448, 448, seed=3)).Q
    bank = 5 + draw(1500, 448) * torch.logspace(0, -2, 448) @ basis
    return bank, near(bank)


def small_remainder():
    """Trailing coordinates that decide between centroids and are far below the rounding of the leading ones' norm."""
    leading = draw(20, 50, seed=6).repeat(50, 1) * 100
    bank = torch.cat([leading, draw(1000, 78, seed=7) * 1e-2], dim=1)
    picks = torch.randint(0, 1000, (300,), generator=torch.Generator().manual_seed(8))
    return bank, torch.cat([leading[picks], draw(300, 78, seed=9) * 1e-2], dim=1)


def huge_centroid():
    bank = draw(300, 64)
    bank[17] = 1e6
    return bank, near(bank[:17], 100)


def mixed_queries():
    bank = draw(400, 80)
    return bank, torch.cat(
        [near(bank, 50), near(bank, 50) * 1e3, bank[:50], near(bank, 50) * 1e-6, bank.new_zeros(1, 80)]
    )


HARD = {
    "isotropic": lambda: (draw(600, 200), near(draw(600, 200))),
    "smooth": smooth,
    "near duplicates": near_duplicates,
    "repeated": lambda: (draw(40, 64).repeat(8, 1), near(draw(40, 64))),
    "small remainder": small_remainder,
    "tiny remainder": lambda: ((bank := subspace(500, 128, remainder=1e-6)), near(bank, noise=1e-6)),
    "off the subspace": lambda: (subspace(500, 128), 3 * draw(100, 128, seed=10)),
    "one huge centroid": huge_centroid,
    "near and far queries": mixed_queries,
    "constant features": lambda: (torch.full((256, 70), 3.0), torch.full((5, 70), 3.0) + draw(5, 70) * 0.1),
    "zeros": lambda: (torch.zeros(200, 64), torch.cat([torch.zeros(2, 64), draw(3, 64)])),
    "1e-19": lambda: (draw(300, 64) * 1e-19, near(draw(300, 64)) * 1e-19),
    "1e19": lambda: (draw(300, 64) * 1e19, near(draw(300, 64)) * 1e19),
    "1e-19, 40 centroids": lambda: (draw(40, 64) * 1e-19, near(draw(40, 64)) * 1e-19),
    "1e19, 40 centroids": lambda: (draw(40, 64) * 1e19, near(draw(40, 64)) * 1e19),
    "wide": lambda: (draw(300, 1799), near(draw(300, 1799), 40)),
    "narrow": lambda: (draw(500, 3), near(draw(500, 3))),
} | {f"M of {m}": (lambda m=m: (draw(m, 64), near(draw(m, 64)))) for m in (4, 5, 127, 128, 129, 1003)}


def check(found, queries, bank, k):
    """Hold `found` against float64, in the search's own coordinates: there float32 rounds |q|^2, |b|^2 and 2 q.b."""
    squared, indices = found
    k = min(k, len(bank))
    assert squared.shape == indices.shape == (len(queries), k)
    assert all(len(set(row.tolist())) == k for row in indices)
    assert (squared[:, 1:] >= squared[:, :-1]).all()
    q, b = queries.double(), bank.double()
    true = torch.cdist(q, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    # Sums of D products in float32 are wrong by D roundings of the terms' sizes, in the worst case.
    error = (2 * bank.shape[1] + 20) * UNIT * (q.square().sum(1)[:, None] + b.square().sum(1)) + 2.0**-149
    taken, own = true.gather(1, indices), error.gather(1, indices)
    representable = taken < torch.finfo(torch.float32).max * 0.99
    assert ((squared - taken).abs() <= own)[representable].all()
    # Rounding may put the i-th nearest anywhere up to here; a centroid further away cannot have passed for it.
    furthest = (true + error).sort(dim=1).values[:, :k]
    assert (taken - own <= furthest).all()


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
@pytest.mark.parametrize("kind", HARD)
def test_the_neighbours_are_float64s_up_to_rounding(kind, dtype):
    bank, queries = HARD[kind]()
    search = NeighbourSearch(bank, dtype)
    queries = search.project(queries)
    for k in (1, 6, len(bank) // 16, len(bank) - 1, len(bank) + 5):
        check(search(queries, max(1, k)), queries, search.bank, max(1, k))
    check(search(queries[:1], 3), queries[:1], search.bank, 3)


@pytest.mark.parametrize("k", [1, 3])
def test_distances_far_below_the_vectors_lengths_are_right_to_their_own_digits(k):
    """Sums of products would round to a hundred times such a distance: the noise of two patches that are alike."""
    bank = draw(300, 128)
    search = NeighbourSearch(bank)
    queries = search.project(near(bank, noise=1e-4))
    squared, indices = search(queries, k)
    exact = (queries.double()[:, None] - search.bank.double()[indices]).square().sum(2)
    assert float(exact[:, 0].max()) < 1e-5
    torch.testing.assert_close(squared.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
def test_the_bound_holds_for_every_pair(dtype):
    """P <= (|q - b| + r)^2 + F, with P as the product gives it and everything else in float64."""
    for kind in ("small remainder", "tiny remainder", "near duplicates", "smooth", "off the subspace", "wide"):
        bank, queries = HARD[kind]()
        true = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
        for size in filter_sizes(bank.shape[1], dtype):
            distances, rounding, error = Filter(bank, *size).distances(queries)
            values = distances.values[:, : len(bank)]
            bound = (true + rounding.double()[:, None]).square() + error.double()[:, None]
            assert (values <= bound.float().to(values.dtype)).all(), (kind, size)


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
@pytest.mark.parametrize("count", [5, 200])
def test_queries_that_no_distance_is_defined_for_raise_nothing(count, dtype):
    bank = draw(count, 64)
    search = NeighbourSearch(bank, dtype)
    good = search.project(near(bank, 10))
    bad = draw(7, 64)
    bad[0, 3], bad[1, 5], bad[2, 7], bad[3] = torch.nan, torch.inf, -torch.inf, 1e38
    bad[4:] *= torch.tensor([[1e15], [3e17], [1e18]])
    squared, indices = search(torch.cat([bad, good]), 4)
    assert not squared[:4].isfinite().any()
    assert ((indices >= 0) & (indices < count)).all()
    lengths = bad[4:].double().square().sum(1, keepdim=True)
    torch.testing.assert_close(squared[4:7].double(), lengths.expand(3, 4), rtol=1e-6, atol=0)
    for mine, alone in zip(search(good, 4), (squared[7:], indices[7:]), strict=True):
        assert torch.equal(mine, alone)


@pytest.mark.parametrize("count", [5, 200])
def test_no_queries_have_no_neighbours(count):
    search = NeighbourSearch(draw(count, 64))
    squared, indices = search(torch.zeros(0, 64), 3)
    assert squared.shape == indices.shape == (0, 3)
    assert nearest_plain(torch.zeros(0, 64), draw(count, 64), 3)[0].shape == (0, 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("count", [5, 200])
def test_a_bank_that_is_not_finite_raises_nothing(count, value):
    bank = draw(count, 64)
    bank[3, 3], bank[4, 3] = value, -value
    search = NeighbourSearch(bank)
    squared, indices = search(search.project(draw(6, 64)), 3)
    assert squared.shape == (6, 3)
    assert ((indices >= 0) & (indices < count)).all()


def test_k_is_cut_to_the_bank():
    assert nearest_plain(draw(3, 8), draw(4, 8), 6)[0].shape == (3, 4)


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
def test_a_large_bank_is_searched_in_bounded_memory(dtype):
    bank = draw(65_536, 64)
    search = NeighbourSearch(bank, dtype)
    queries = search.project(draw(100, 64, seed=1))
    check(search(queries, 6), queries, search.bank, 6)


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
def test_results_do_not_depend_on_what_was_searched_before(dtype):
    # The search adapts its filter to the queries; a model must give the same scores whatever it saw before.
    bank, queries = smooth()
    adapted, fresh = NeighbourSearch(bank, dtype), NeighbourSearch(bank, dtype)
    kinds = [adapted.project(each) for each in (queries, near(bank, noise=3), bank[:200], queries * 1e3)]
    for each in kinds:
        adapted(each, 3)
    for each in kinds:
        for mine, expected in zip(adapted(each, 3), fresh(each, 3), strict=True):
            assert torch.equal(mine, expected)


def test_nothing_is_warned_of():
    code = (
        "import torch\nfrom cfa_cli.model.search import NeighbourSearch\n"
        "search = NeighbourSearch(torch.randn(200, 64))\nsearch(torch.randn(5, 64), 3)"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "Sparse" not in done.stderr


@pytest.mark.parametrize("dtype", FILTER_TYPES, ids=str)
@pytest.mark.parametrize("remainder", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
def test_short_vectors_are_no_further_apart_than_whole_ones(remainder, dtype):
    spread = torch.cat([torch.ones(57), torch.full((71,), remainder)])
    bank = draw(40, 128).repeat(10, 1) * spread + draw(400, 128, seed=11) * spread * 1e-3
    queries = bank + draw(400, 128, seed=12) * spread * 1e-3
    q, b = shorten(queries, 57, dtype), shorten(bank, 57, dtype)
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    short = torch.cdist(q.values.double(), b.values.double(), **exact)
    room = q.rounding.double()[:, None] + b.rounding.double()
    assert (short <= torch.cdist(queries.double(), bank.double(), **exact) + room).all()
    if dtype == torch.float32:  # the room is for the norm of what is small, not for the vectors' lengths
        assert float(room.max()) <= 1e-2 * remainder
