"Small numbers by hand, for changes of the arithmetic that the notebooks alone did not notice (tests/mutants.py)."
import math
import pytest, torch
from torch import nn
from udfc_nb.errors import BudgetError, RatioError
from udfc_nb.paper.assumption import check_ratio, filter_norms, n_kept, split_channels
from udfc_nb.paper.notation import affine, inner_layers
from udfc_nb.run.budget import allot, hull


@pytest.mark.parametrize('learned', [True, False])
def test_affine_is_the_batch_norm_with_an_epsilon_that_shows(learned):
    bn = nn.BatchNorm1d(4, eps=.5, affine=learned).eval()
    bn.running_mean.normal_(); bn.running_var.uniform_(.6, 2)
    if learned: nn.init.uniform_(bn.weight, .5, 2); nn.init.normal_(bn.bias)
    z = torch.randn(5, 4)
    c, b = affine(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    assert torch.allclose(bn(z), c*z+b, atol=1e-6)


def test_inner_layers_are_those_of_their_block():
    tensors = {f'{n}.{k}': torch.randn(3, 3) for n in ('b.1', 'a') for k in ('conv1.weight', 'conv2.weight')}
    tensors |= {f'{n}.bn1.{k}': torch.rand(3)+.5 for n in ('b.1', 'a')
        for k in ('weight', 'bias', 'running_mean', 'running_var')}
    found = inner_layers(tensors | {'fc.weight': torch.zeros(2, 3)})
    assert list(found) == ['a', 'b.1']
    for n, inner in found.items():
        assert inner.W is tensors[f'{n}.conv1.weight'] and inner.W_next is tensors[f'{n}.conv2.weight']
        assert torch.equal(inner.c, affine(*(tensors[f'{n}.bn1.{k}'] for k in ('weight', 'bias', 'running_mean',
            'running_var')))[0])


def test_how_many_are_kept():
    assert [n_kept(10, r) for r in (0, .09, .1, .5, .99)] == [10, 9, 9, 5, 1] and n_kept(3, .5) == 1
    for wrong in (-.1, 1, 1., 2, math.nan, True): pytest.raises(RatioError, check_ratio, wrong)
    assert check_ratio(0) == 0


def test_which_are_kept():
    W = torch.tensor([[[3., 4.]], [[1., 1.]], [[0., 6.]], [[5., 5.]]])
    assert filter_norms(W).tolist() == pytest.approx([5, 2**.5, 6, 50**.5])
    assert filter_norms(W, 1).tolist() == [7, 2, 6, 10]
    kept, pruned = split_channels(filter_norms(W), 2)
    assert (kept.tolist(), pruned.tolist()) == ([2, 3], [0, 1])
    assert split_channels(filter_norms(W), 2, groups=2)[0].tolist() == [0, 3] # one of each run
    assert split_channels(torch.ones(4), 1)[0].tolist() == [0]


def test_the_hull_of_a_curve():
    assert hull([0, 4, 5, 9, 12]) == [(0, 2, 2.5), (2, 4, 3.5)]
    assert hull([0, 1, 3]) == [(0, 1, 1), (1, 2, 2)] and hull([0]) == []


def test_steps_are_taken_in_the_order_of_cost_per_saving():
    curves = {'a': [0, 1, 2, 3], 'b': [0, 2, 5, 9]}
    size = lambda gains: lambda t: 10-sum(gains[s]*n for s, n in t.items())
    same, other = dict(a=1, b=1), dict(a=1, b=4)
    for gains, target, wanted in ((same, 10, (0, 0)), (same, 6, (3, 1)), (same, 4, (3, 3)), (same, 6.5, (3, 1)),
            (other, 6, (0, 1)), (other, 2, (0, 2))):
        found = allot(curves, gains, size(gains), target)
        assert (found['a'], found['b']) == wanted, (gains, target)
    with pytest.raises(BudgetError, match='comes down to 4 '): allot(curves, same, size(same), 3.9)
