"Few bits: integer semantics, ranges of activations, flips, equalisation, merging peers."
import copy
import pytest, torch, torch.nn as nn, torch.nn.functional as F
from udfc_nb import compress, load, RECIPES
from udfc_nb.recipes.ranges import RANGES, best_range, range_of
from udfc_nb.recipes.activations import InputQuantizer, grid_of
from udfc_nb.graph.operations import image
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.errors import BitsError, RecipeError
from udfc_nb.recipes.flips import flip
from udfc_nb.graph.proof import find_sites
from udfc_nb.moments.counting import Extents
from udfc_nb.recipes.rounding import GRIDS
from udfc_nb.recipes.recipe import Recipe, recipe_from_json
from udfc_nb.recipes.flips import ROUNDINGS
from nets import assert_unchanged, roughen, snapshot

blank = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('grid', ['symmetric', 'asymmetric'])
def test_integer_convolution(signed, grid):
    "8-bit weights and activations: the simulation is the integer sum times the two scales, exactly in float64."
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(8, 6, 3, 3, generator=g), torch.randn(2, 6, 9, 9, generator=g)*3
    q, a = GRIDS[grid](w, 8), grid_of(-1.7 if signed else 0., 4.1, 8)
    ints = F.conv2d(a.codes(x).long()-a.zero_point, q.codes.long()-q.zero.long(), padding=1, stride=2)
    floats = F.conv2d((a.codes(x)-a.zero_point).double(), (q.codes-q.zero).double(), padding=1, stride=2)
    assert torch.equal(ints.double(), floats)
    # what the layer computes, up to float32 values
    sim = F.conv2d(a(x).double(), q.dequantize().double(), padding=1, stride=2)
    assert torch.allclose(sim, ints*q.scale.double().reshape(-1, 1, 1)*a.scale, rtol=1e-5, atol=1e-5)


def test_quantizer_semantics():
    "Halves to even, saturation, exact zero, and float32 arithmetic as ONNX has it."
    q = InputQuantizer(.25, -3, 4, True)
    x = torch.tensor([0., .125, .375, .625, -.125, 100., -100., float('inf')])
    assert q.codes(x).tolist() == [-3, -3, -1, -1, -3, 7, -8, 7]
    assert q(torch.zeros(3)).eq(0).all()
    for dtype in (torch.float16, torch.bfloat16, torch.float64): assert q(x.to(dtype)).dtype == dtype
    assert q(q(x)).equal(q(x))


def test_values_lie_on_the_grid():
    out = compress(digits_net(), blank, activation_bits=3)
    seen = []
    for m in out.model.modules():
        if hasattr(m, 'input_quantizer'):
            m.input_quantizer, q = ((lambda q: lambda x: seen.append((q, q(x))) or seen[-1][1])(m.input_quantizer),
                m.input_quantizer)
    with torch.no_grad(): out.model(torch.randn(4, 1, 8, 8))
    assert len(seen) == len(out.report.rows)
    for q, y in seen:
        assert len(y.unique()) <= (256 if q.signed else 8) and (q.signed or y.min() >= 0)
    assert [q.signed for q, _ in seen].count(True) == 1 # only the image can be negative, and it keeps its 8 bits


def test_file_carries_grids(tmp_path):
    net = digits_net(); before = snapshot(net)
    out = compress(net, blank, weight_bits=8, activation_bits=8, pruning_ratio=.5)
    assert_unchanged(net, before)
    out.save(tmp_path/'a.safetensors'); again = load(tmp_path/'a.safetensors', digits_net(pretrained=False))
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad(): assert torch.equal(again(x), out.model(x))
    assert again.conv1.input_quantizer == out.model.conv1.input_quantizer and type(net.conv1) is nn.Conv2d


def test_compressing_again():
    "A network that reads through grids is still a network; its grids can be replaced."
    once = compress(digits_net(), blank, activation_bits=8).model
    assert [s.name for s in find_sites(once, blank).sites] == [s.name for s in find_sites(digits_net(), blank).sites]
    twice = compress(once, blank, pruning_ratio=.5, activation_bits=6).model
    assert twice.fc.input_quantizer.bits == 6 and once.fc.input_quantizer.bits == 8
    assert twice.conv1.input_quantizer.bits == 8 # pixels have 8 bits
    copy.deepcopy(twice)(torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize('bits', [1, 17, 3.5, '8', True])
def test_bad_activation_bits(bits):
    with pytest.raises(BitsError): compress(digits_net(), blank, activation_bits=bits)


def test_unknown_preparation():
    with pytest.raises(RecipeError): Recipe(prepare=('magic',))
    with pytest.raises(RecipeError): Recipe(ranges='magic')
    assert recipe_from_json(RECIPES['dfq'].to_json()) == RECIPES['dfq']


class Odd(nn.Module):
    "SiLU, ReLU6, a sum, a concatenation, a transposed and a 1-d convolution, a linear layer."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.t, self.fc, self.one = nn.ConvTranspose2d(8, 4, 2), nn.Linear(4, 3), nn.Conv1d(3, 3, 1)
    def forward(self, x):
        x = F.silu(self.a(x)); y = F.relu6(self.b(x))
        z = self.t(self.c(torch.cat([x+y, y], 1)).relu())
        return self.one(self.fc(z.mean((2, 3)))[:, :, None])


def test_odd_operations():
    out = compress(roughen(Odd()), blank, activation_bits=8, recipe='paper')
    q = {n: getattr(m, 'input_quantizer', None) for n, m in out.model.named_modules()}
    low = lambda g: (g.low-g.zero_point)*g.scale
    assert (-.3 < low(q['b']) < 0 and low(q['c']) < 0 and not q['t'].signed and q['fc'].signed and q['one'].signed
        and type(out.model.one).__name__ == 'QuantizedConv1d')
    assert all(g.bits == 8 for n, g in q.items() if g is not None) and not any('float' in n for n in out.report.notes)
    with torch.no_grad(): assert (out.model(torch.randn(3, 1, 8, 8))).isfinite().all()


def test_relu6_bound():
    assert image(F.relu6, -float('inf'), float('inf')) == (0., 6.)
    assert best_range(torch.tensor([9.]), torch.tensor([3.]), 8, 0., 6.) == (0., 6.)


def test_range_of_what_was_seen():
    "Bounds hold, what never was negative takes no sign, and nothing is cut to nothing."
    mean, var = torch.tensor([.5, 2.]), torch.tensor([1., .3])
    for rule in RANGES:
        low, high = range_of((mean, var, 0., 6.), (-float('inf'), float('inf')), 4, rule)
        assert low == 0 and high > 2
        assert range_of((mean, var, -2., 6.), (-1., 1.), 8, rule) == (-1., 1.)
        assert range_of((0*mean, 0*var, -.5, 2.), (-float('inf'), float('inf')), 8, rule) == (-.5, 2.)
    seen = Extents()
    for x in (torch.randn(4, 3, 5, 5)-9, torch.randn(4, 3, 5, 5).relu()+9):
        seen('w', 'convolution', (x, torch.zeros(2, 3, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1))
    mean, var, least, most = seen.seen['w'] # a layer that is called twice
    assert len(mean) == len(var) == 6 and least < -9 and most > 9 and (mean[:3] < -8).all() and (mean[3:] > 8).all()


def test_range_grows_with_bits():
    mean, std = torch.randn(20), torch.rand(20)+.1
    tops = [best_range(mean, std, b, 0.)[1] for b in range(2, 10)]
    assert all(a < b for a, b in zip(tops, tops[1:]))
    assert best_range(2*mean, 2*std, 4, 0.)[1] == pytest.approx(2*best_range(mean, std, 4, 0.)[1], rel=1e-6)
    assert best_range(torch.zeros(3), torch.zeros(3), 4, 0.)[1] >= 0 # dead channels


@pytest.mark.parametrize('shape', [(7, 5, 9), (3, 1, 25), (4, 30, 1), (1, 1, 1), (6, 64, 49)])
def test_flips(shape):
    "Every filter's sum of errors within a half, every kernel's within one and a half, no code by more than one step."
    x = 4*torch.randn(shape, generator=torch.Generator().manual_seed(1))
    q = flip(x, x.round(), -100, 100)
    d = q-x
    assert d.sum((1, 2)).abs().max() <= .5+1e-3 and d.sum(2).abs().max() <= 1.5+1e-3 and (q-x.round()).abs().max() <= 1
    held = flip(x, x.round().clamp(-2, 1), -2, 1)
    assert held.min() >= -2 and held.max() <= 1


@pytest.mark.parametrize('rounding', ['flips', 'descent', 'second-order', 'nearest'])
@pytest.mark.parametrize('grid', ['symmetric', 'paper'])
def test_roundings_keep_codes_in_range(rounding, grid):
    out = compress(digits_net(), blank, weight_bits=3, recipe=RECIPES['field'].but(rounding=rounding, grid=grid))
    for q in out.codes.values():
        low, high = (-3, 3) if grid == 'symmetric' else (0, 7)
        assert q.codes.min() >= low and q.codes.max() <= high


class Wide(nn.Module):
    "A block of a MobileNetV2 with ReLU6, its channels of very different sizes."
    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(1, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.d, self.nd = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.p, self.np, self.r, self.fc = (nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
            nn.Linear(6, 3))
        for n, c in ((self.na, self.d), (self.nd, self.p)): # of a large channel little is used, of a small one much
            size = torch.exp(4*torch.randn(12)).clamp(max=1.)
            n.weight.data *= size
            n.bias.data = size*torch.rand(12)
            c.weight.data /= size.reshape((-1, 1, 1, 1) if c is self.d else (1, -1, 1, 1))
    def forward(self, x):
        return self.fc(self.np(self.p(self.r(self.nd(self.d(self.r(self.na(self.a(x)))))))).mean((2, 3)))


def test_equalisation_leaves_the_function():
    "And a depthwise network with one grid per tensor loses less at 8 bits."
    torch.manual_seed(0)
    net, x = Wide().eval(), .3*torch.randn(64, 1, 8, 8)
    recipe = RECIPES['dfq'].but(repair=False)
    with torch.no_grad():
        t = net(x)
        same = compress(net, blank, recipe=recipe.but(prepare=('equalise',))).model(x)
        assert torch.allclose(same, t, rtol=1e-3, atol=1e-4)
        err = {p: (compress(net, blank, weight_bits=8, recipe=recipe.but(prepare=p)).model(x)-t).square().mean()
            for p in ((), ('equalise',))}
    assert err['equalise',] < err[()]/4


def distance(out, x, y):
    "Mean square of what is wrong with the outputs, as a share of theirs."
    with torch.no_grad(): return ((out.model(x)-y).square().mean()/y.square().mean()).item()


@pytest.mark.parametrize('name, share',
    [('folding', .3), ('data-free-pruning', .8), ('lbyl', .7), ('lbyl-published', .7)])
def test_merging_peers_repair(name, share):
    "As many parameters as without a repair, and so much less wrong on the digits (measured: .18, .64, .57, .57)."
    x, net = digits('train')[0][:300], digits_net()
    with torch.no_grad(): y = net(x)
    out, plain = (compress(net, blank, pruning_ratio=.4, recipe=r) for r in (name, 'prune'))
    assert out.report.totals['params'] == plain.report.totals['params']
    assert distance(out, x, y) < share*distance(plain, x, y)
    rounded = compress(net, blank, pruning_ratio=.4, weight_bits=4, recipe=name)
    assert {r['bits'] for r in rounded.report.rows} == {4} and distance(rounded, x, y) < share*distance(plain, x, y)


@pytest.mark.parametrize('name', ['folding', 'data-free-pruning'])
def test_duplicates_are_restored(name):
    net = digits_net()
    with torch.no_grad():
        b = net.layer1[1]
        for t in (b.conv1.weight, b.bn1.weight, b.bn1.bias, b.bn1.running_mean, b.bn1.running_var): t[9] = t[2]
        b.conv2.weight[:, 9] = b.conv2.weight[:, 2]
        out = compress(net, blank, recipe=name, layer_ratios={'layer1.1.conv1': 1/16})
        x = torch.randn(8, 1, 8, 8)
        assert set(range(16))-set(out.kept['layer1.1.conv1'].tolist()) <= {2, 9}
        assert torch.allclose(out.model(x), net(x), atol=1e-3)


@pytest.mark.parametrize('recipe', ['fast', 'best', 'squant', 'paper'])
def test_four_bits_cost_the_digits_nothing(recipe):
    "An edge filter in front of the first norm is the hard case of a metric that knows nothing of places."
    x, y = digits('train')
    assert accuracy(compress(digits_net(), blank, weight_bits=4, recipe=recipe).model, x, y) > 99


@pytest.mark.parametrize('rounding', ['second-order', 'descent'])
def test_a_model_with_negative_variances(rounding):
    "A covariance with a negative eigenvalue (a field of few positions has some) must not let the codes run away."
    g = torch.Generator().manual_seed(0)
    A = torch.randn(40, 60, generator=g).double(); C = A@A.T/60; e, U = torch.linalg.eigh(C)
    class Bent:
        covariance = (C-(e[0]+2*e.mean())*torch.outer(U[:, 0], U[:, 0]))[None]
        fold = staticmethod(lambda t: t.double()[None]); unfold = staticmethod(lambda t: t[0])
    W = torch.randn(12, 40, generator=g)
    q = ROUNDINGS[rounding](Bent, W, 4, RECIPES['best'])
    assert (q.dequantize()-W).norm() < .4*W.norm() and q.scale.max() < 2*W.abs().max()/7
