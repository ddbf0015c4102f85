"""Numbers of every size and kind: the result is as good as at ordinary sizes, or a typed error, and never anything
that is not finite."""
import math
import pytest, torch
from torch import nn
from udfc_nb import compress
from udfc_nb.errors import NonFiniteError, UDFCError
from udfc_nb.moments.counting import Counting
from udfc_nb.moments.streams import anchor, moments_of
from nets import assert_unchanged, snapshot

x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

def plain(norm=False, channels=8):
    torch.manual_seed(0)
    B = (lambda: [nn.BatchNorm2d(channels)]) if norm else (lambda: [])
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *B(), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), *B(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, 4)).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.2, 1.)
    return net

def stretched(c):
    "The same function, its first tensor c times as large."
    net = plain()
    for p in net[0].parameters(): p.data *= c
    net[2].weight.data /= c
    return net

def moved(net, recipe, x=x, **kw):
    "By what share of themselves the outputs move; all numbers of the result are finite, the input is as it was."
    before = snapshot(net)
    out = compress(net, x, recipe=recipe, **dict(pruning_ratio=.4, weight_bits=8, activation_bits=8) | kw)
    assert_unchanged(net, before)
    for n, t in out.model.state_dict().items(): assert t.isfinite().all() and t.dtype == net.state_dict()[n].dtype, n
    with torch.no_grad(): a, b = net(x).double(), out.model(x).double()
    assert b.isfinite().all()
    return ((a-b).norm()/a.norm()).item()

@pytest.mark.parametrize('recipe', ['prune', 'fast'])
def test_sizes_from_1e_30_to_1e30(recipe):
    usual = moved(plain(), recipe)
    for c in (1e-30, 1e-15, 1e15, 1e30): assert moved(stretched(c), recipe) < 2*usual+.01, c

def test_moments_of_any_size():
    z = torch.randn(8, 4, 6, 6)
    z[:, 3] = 0
    m, v = moments_of(z)
    for c in (2.**-100, 2.**100):
        M, V = moments_of(z*c)
        assert torch.allclose(M, m*c, rtol=1e-6, atol=0) and torch.allclose(V, v*c*c, rtol=1e-5, atol=0)
        (a, b), (A, B) = anchor((m, v), (m, v)), anchor((M, V), (M, V))
        assert torch.allclose(a, A) and a[3] == 0
    def counted(c):
        count = Counting(torch.Generator().manual_seed(0))
        count('w', 'convolution', (z*c, torch.ones(5, 4, 3, 3), None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1))
        return count.moments()['w']
    one = counted(1.)
    for c in (2.**-100, 2.**100):
        assert (torch.allclose(counted(c).covariance, one.covariance.double()*c*c, rtol=1e-5, atol=0)
            and torch.allclose(counted(c).p, one.p.double()*c, rtol=1e-5, atol=0))

def changed(name, f, norm=True):
    net = plain(norm)
    with torch.no_grad(): f(net.state_dict()[name])
    return net

ODD = {'a dead row': lambda: changed('0.weight', lambda t: t[0].zero_(), False),
    'a constant tensor': lambda: changed('0.weight', lambda t: t.zero_(), False),
    'denormals': lambda: changed('0.weight', lambda t: t.mul_(1e-42), False),
    'a variance of 0': lambda: changed('1.running_var', lambda t: t[0].zero_()),
    'variances of 0': lambda: changed('1.running_var', lambda t: t.zero_()),
    'no slope': lambda: changed('1.weight', lambda t: t.zero_()),
    'a huge variance': lambda: changed('1.running_var', lambda t: t[0].fill_(1e30)),
    'one channel': lambda: plain(True, 1)}

@pytest.mark.parametrize('case', ODD)
def test_dead_and_constant_channels(case):
    for recipe in ('prune', 'fast'):
        assert (math.isfinite(moved(ODD[case](), recipe))
            and moved(ODD[case](), recipe, pruning_ratio=0., activation_bits=None) < .02)

def test_an_eps_of_0():
    net = plain(True)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.eps = 0.
    assert moved(net, 'fast', pruning_ratio=0., activation_bits=None) < .02
    net[1].running_var[0] = 0. # the network itself gives infinities
    with pytest.raises(NonFiniteError) as info: moved(net, 'fast')
    assert info.value.hint

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    assert moved(plain(True).to(dtype), 'fast', x.to(dtype), pruning_ratio=0., activation_bits=None) < .02
    assert moved(plain().to(dtype), 'prune', x.to(dtype)) < 1

def test_half_precision_that_cannot_hold_the_result_is_told():
    net = plain().half()
    net[0].weight.data *= 6e4/net[0].weight.abs().max()
    net[2].weight.data /= 1e5
    try: moved(net, 'fast', x.half())
    except UDFCError as e: assert isinstance(e, NonFiniteError) and e.layer and e.hint

def test_complex_numbers_are_left_alone():
    net = plain(True)
    net.register_buffer('c', torch.randn(3, dtype=torch.complex64))
    net.d = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    out = compress(net, x, pruning_ratio=.4, weight_bits=4, recipe='fast').model
    assert torch.equal(out.c, net.c) and torch.equal(out.d, net.d) and out[0].out_channels < 8

def test_what_is_not_finite_is_never_returned(monkeypatch):
    from udfc_nb.recipes.job import Job
    def spoil(self, name, bits, round=Job.round): round(self, name, bits); self.mods[name].weight.data[0] = math.inf
    monkeypatch.setattr(Job, 'round', spoil)
    with pytest.raises(NonFiniteError) as info: compress(plain(), x, weight_bits=4, recipe='prune')
    assert info.value.layer == '0.weight' and info.value.hint
