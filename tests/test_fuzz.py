"""Random networks and arguments: the right result, or an error with a type. `make fuzz` tries a thousand; here are
twenty, those that ever failed, and the rules behind them."""
import copy, sys
from pathlib import Path
import pytest, torch, torch.nn as nn, torch.nn.functional as F, torch.nn.utils.prune
from hypothesis import given, settings, strategies as st
from udfc_nb import compress
from udfc_nb.graph.record import record
from udfc_nb.graph.nodes import rerun
from udfc_nb.recipes.recipe import RECIPES
from udfc_nb.run.report import count
from nets import roughen

sys.path.append(str(Path(__file__).resolve().parents[1]/'fuzz'))
from known import KNOWN
from networks import draw_plan
from oracle import Fault, compare, entries
from run import CHECKS, check_known, failure

def conv(i, o, k=3): return nn.Conv2d(i, o, k, padding=k//2)
def run(net, *x):
    with torch.no_grad(): return net(*x)
images = torch.randn(2, 3, 8, 8)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.sampled_from([*CHECKS]), st.integers(0, 999))
def test_random_networks(r, what, seed):
    plan = draw_plan(r, 2)
    wrong, _ = failure(plan, what, seed)
    assert wrong is None, f'{what}, {seed}, {plan}: {wrong}'


KEPT = [ # check, seed, plan
    ('cut', 283, (2, 'tensor', ('mean', 0), (('residual', 930, (('parametrised', 435),)),))),
    ('cut', 286, (2, 'tensor', ('mean', 0), (('per_channel', 896),))),
    ('cut', 1223, (2, 'tensor', ('mean', 0), (('ghost', 959), ('grouped', 730)))),
    ('recipe', 1329, (2, 'tensor', ('mean', 0), (('written', 797),))),
    ('arguments', 61, (2, 'tensor', ('mean', 0), (('conv', 415), ('recurrent', 705)))),
    ('recipe', 37, (1, 'tensor', ('answer', 0), (('conv', 0), ('attention', 1), ('conv', 0)))),
    ('cut', 1, (2, 'tensor', ('mean', 0), (('parametrised', 511),))),
    ('cut', 1, (2, 'tensor', ('mean', 0), (('parametrised', 517),))),
    ('cut', 1, (2, 'masked', ('two', 686), (('written', 192),))),
    *[('cut', 1, (2, 'tensor', ('mean', 97), (('conv', 776), p)))
    for p in (('recurrent', 142), ('traced', 532), ('scripted', 756), ('shared', 751))],
    ('recipe', 1006, (2, 'tensor', ('mean', 72), (('functional', 953), ('transposed', 316)))),
    ('recipe', 1011, (2, 'named', ('two', 761), (('split', 452, (('excite', 121),)), ('conv', 476)))),
    ('recipe', 1016, (2, 'dict', ('mean', 175), (('transposed', 488),))),
    ('recipe', 1023, (2, 'tensor', ('mean', 0), (('named', 403),))),
    ('recipe', 1026, (2, 'tensor', ('mean', 0), (('parametrised', 462),))),
    ('recipe', 3001, (2, 'tensor', ('mean', 665), (('normed', 997), ('shared', 377)))),
    ('arguments', 1007, (2, 'named', ('mean', 0), (('select_kernels', 33),))),
    ('arguments', 1045, (2, 'pair', ('mean', 0), (('conv', 718), ('quantised', 691), ('normed', 514), ('conv', 83))))]

@pytest.mark.parametrize('what, seed, plan', KEPT, ids=lambda v: str(v) if isinstance(v, (str, int)) else None)
def test_what_once_failed(what, seed, plan): assert failure(plan, what, seed)[0] is None

@pytest.mark.slow
@pytest.mark.parametrize('sites', ['own', 'all'])
@pytest.mark.parametrize('name', KNOWN)
def test_networks_as_libraries_have_them(name, sites): check_known(name, sites)


# ---- the oracle itself

def test_the_oracle_sees_a_wrong_cut():
    "A channel too few, another one, and another number are all seen."
    net = roughen(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 2)))
    twin = lambda: copy.deepcopy(net)
    def cut(): return compress(net, images, recipe='prune', pruning_ratio=.5)
    assert compare(twin(), cut(), [torch.randn(3, 3, 8, 8)]) < 1e-9
    def swapped(out): w = out.model[3].weight.data; w[:, [0, 1]] = w[:, [1, 0]].clone()
    def moved(out): out.model[1].running_mean[0] += 1
    def other(out): out.kept['0'] = out.kept['0'].flip(0)
    def told(out): out.report.rows[0]['out'] += 1
    def size(out): out.model[0].out_channels += 1
    for harm in (swapped, moved, other, told, size):
        out = cut(); harm(out)
        with pytest.raises(Fault): compare(twin(), out, [torch.randn(3, 3, 8, 8)])

def test_which_entries_are_left():
    w = torch.randn(6, 5, 3); rows, columns = [0, 2, 5], [1, 4]
    found = entries(w, w[rows][:, columns])
    assert [f.tolist() for f in found] == [rows, columns, [0, 1, 2]] and entries(w, w[rows]*2) is None


# ---- what a forward writes into itself

class Remembers(nn.Module):
    "A cache as wide as the channels, a counter, the last features."
    def __init__(self):
        super().__init__(); self.a, self.n, self.b = conv(3, 16), nn.BatchNorm2d(16), conv(16, 4)
        self.cache, self.last = None, None
        self.register_buffer('calls', torch.zeros((), dtype=torch.long))
    def forward(self, x):
        self.calls += 1
        y = F.relu(self.n(self.a(x)))
        if self.cache is None: self.cache = torch.ones(1, y.shape[1], 1, 1)
        self.last = y*self.cache
        return self.b(self.last)

@pytest.mark.parametrize('recipe', ['prune', 'fast', 'best'])
def test_what_a_forward_writes_is_not_in_the_result(recipe):
    net = roughen(Remembers())
    out = compress(net, images, pruning_ratio=.5, weight_bits=4, recipe=recipe)
    for m in (net, out.model): assert m.calls == 0 and m.cache is None and m.last is None
    assert torch.isfinite(run(out.model, images)).all() and out.model.cache.shape[1] == 8

def test_statistics_reach_the_result():
    "Norms that are told anew are told in the network itself, not in its twin only."
    net = roughen(Remembers())
    out = compress(net, images, weight_bits=2, recipe='fast')
    assert not torch.equal(out.model.n.running_mean, net.n.running_mean)

def test_counting_writes_nothing():
    net = Remembers().eval()
    count(net, images); assert net.calls == 0 and net.cache is None


# ---- layers that no operation of the record is a call of

class Idle(nn.Module):
    "One layer is never called, one is read by an operation whose channels stay."
    def __init__(self):
        super().__init__()
        self.a, self.idle, self.up, self.b = (conv(3, 16), conv(16, 16), nn.ConvTranspose2d(16, 16, 2, 2, groups=2),
            conv(16, 4))
    def forward(self, x): return self.b(F.relu(self.up(F.relu(self.a(x)))))

# the idle layer stays float, which takes 9,216 bytes
IDLE = [dict(pruning_ratio=.3, activation_bits=8), dict(size_budget=14000), dict(weight_bits=3.5)]

@pytest.mark.parametrize('recipe', ['field', 'fast', 'paper'])
@pytest.mark.parametrize('kwargs', IDLE, ids=str)
def test_layers_that_are_never_run(kwargs, recipe):
    out = compress(Idle().eval(), images, recipe=recipe, **kwargs)
    assert torch.isfinite(run(out.model, images)).all()

def test_the_own_scale_of_layers_that_are_never_run():
    out = compress(Idle().eval(), images, recipe=RECIPES['paper'].but(scale='own'), weight_bits=4)
    assert {r['layer']: r['bits'] for r in out.report.rows} == dict(a=4, idle=32, up=4, b=4)


# ---- sizes that a module remembers where a hook computes its weight

@pytest.mark.parametrize('how',
    [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm,
    lambda m: nn.utils.prune.random_unstructured(m, 'weight', .3),
    lambda m: nn.utils.prune.ln_structured(m, 'weight', .3, 2, 0)], ids=['weight', 'spectral', 'pruned', 'filters'])
@pytest.mark.parametrize('layer',
    [lambda: conv(16, 16), lambda: nn.Linear(16, 16), lambda: nn.ConvTranspose2d(16, 16, 3)],
    ids=['conv', 'linear', 'transposed'])
@pytest.mark.filterwarnings('ignore')
def test_sizes_beside_hooks(how, layer):
    m = how(layer())
    linear = isinstance(m, nn.Linear)
    net = (nn.Sequential(nn.Linear(3, 16), m, nn.ReLU(), nn.Linear(16, 4)) if linear
        else nn.Sequential(conv(3, 16), m, nn.ReLU(), conv(16, 4)))
    x = torch.randn(4, 3) if linear else images
    out = compress(net.eval(), x, pruning_ratio=.5, recipe='prune')
    run(out.model, x)
    m, w = out.model[1], out.model[1].weight
    says = ((m.out_features, m.in_features) if linear else (m.out_channels, m.in_channels) if not m.transposed
        else (m.in_channels, m.out_channels))
    assert says == tuple(w.shape[:2])


# ---- operations

def test_fake_quantization_is_passed():
    "Of activations and of weights, with a step for each channel too."
    torch.manual_seed(0)
    net, x = KNOWN['aware_of_quantization']()
    out = compress(net.eval(), x, pruning_ratio=.5, recipe='prune')
    assert ([m.out_channels for m in out.model if isinstance(m, nn.Conv2d)] == [6, 4, 4]
        and len(out.model[2].weight_fake_quant.scale) == 6)
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4)
            self.register_buffer('step', torch.rand(8)*.01+.01)
            self.register_buffer('zero', torch.zeros(8, dtype=torch.int32))
        def forward(self, x):
            return self.b(F.relu(torch.fake_quantize_per_channel_affine(self.a(x).float(), self.step, self.zero, 1,
                -128, 127)))
    out = compress(Steps().eval(), images, pruning_ratio=.5, recipe='prune')
    assert out.model.a.out_channels == 4 == len(out.model.step) == len(out.model.zero)

def test_an_operation_that_writes_into_a_given_tensor_runs_again():
    "`out=`: neither the tensor of the record nor the shape of the new one is in the way."
    class Out(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b = conv(3, 8), conv(8, 4)
        def forward(self, x): x = self.a(x); y = torch.empty_like(x); torch.add(x, 1., out=y); return self.b(y)
    rec = record(Out().eval(), images)
    node = next(n for n in rec.nodes if n.op == 'add' and 'out' in n.kwargs)
    held = [n.value.clone() if isinstance(n.value, torch.Tensor) else None for n in node.inputs]
    x = torch.linspace(-2, 2, 11)
    assert (torch.equal(rerun(node, x), x+1)
        and all(v is None or torch.equal(v, n.value) for v, n in zip(held, node.inputs)))

@pytest.mark.parametrize('names', [('weight', 'bias'), ('gamma', 'beta')])
@pytest.mark.parametrize('recipe', ['prune', 'paper', 'fast', 'best', 'field'])
def test_norms_of_unusual_modules(names, recipe):
    "A functional norm of a module that keeps its ε to itself, or has other names for its parts."
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            for n, v in zip(names, (torch.rand(8)+.5, torch.randn(8))): setattr(self, n, nn.Parameter(v))
            self.register_buffer('running_mean', torch.randn(8)*.1)
            self.register_buffer('running_var', torch.rand(8)+.5)
        def forward(self, x):
            w, b = (getattr(self, n) for n in names)
            return F.batch_norm(x, self.running_mean, self.running_var, w, b, False, 0., 1e-3)
    net = nn.Sequential(conv(3, 8), Norm(), nn.ReLU(), conv(8, 4)).eval()
    out = compress(net, images, pruning_ratio=.5, weight_bits=4, recipe=recipe)
    assert out.model[0].out_channels == 4 == len(out.model[1].running_mean) and torch.isfinite(out.model(images)).all()

def masked(m): nn.utils.prune.custom_from_mask(m, 'weight', (torch.rand_like(m.weight) > .2).float()); return m
class Beside(nn.Module):
    "Two branches meet; the weight of one is computed anew."
    def __init__(self, computed, meet):
        super().__init__()
        self.a, self.b, self.c, self.meet = conv(3, 8), computed(conv(3, 8)), conv(8, 4), meet
    def forward(self, x): return self.c(F.relu(self.meet(self.a(x), self.b(x))))

@pytest.mark.parametrize('computed', [masked, nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm], ids=['mask', 'weight norm', 'spectral norm'])
@pytest.mark.parametrize('meet', [lambda a, b: a+b, lambda a, b: b+a, lambda a, b: a*b.sigmoid(),
    lambda a, b: b*a.sigmoid()], ids=['a+b', 'b+a', 'gate b', 'gate a'])
@pytest.mark.parametrize('recipe', ['prune', 'paper', 'fast', 'best', 'field'])
def test_a_branch_whose_weight_is_computed(computed, meet, recipe):
    "Nothing is handed on by filters that are not what the module stores; the layer behind is repaired or named."
    torch.manual_seed(0)
    net = Beside(computed, meet).eval().requires_grad_(False)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    out = compress(net, images, pruning_ratio=.5, recipe=recipe, sites='all')
    assert torch.isfinite(out.model(images)).all()
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    if out.model.c.in_channels < 8 and recipe == 'paper': assert any("'c'" in n for n in out.report.notes)

class Repeated(nn.Module):
    "The same channels several times, in two orders, in front of a convolution with groups."
    def __init__(self, order, groups):
        super().__init__()
        self.a, self.b, self.order = conv(3, 8), nn.Conv2d(8*len(order), 12, 3, padding=1, groups=groups), order
    def forward(self, x):
        y = F.relu(self.a(x))
        return self.b(torch.cat([y if k > 0 else y.flip(1) for k in self.order], 1))

@pytest.mark.parametrize('order', [(1, 1), (1, -1), (1, 1, 1), (1, -1, 1, -1)])
@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('recipe', ['prune', 'paper', 'fast', 'best'])
def test_several_groups_read_one_channel(order, groups, recipe):
    "Every group hands over what it loses; where each one reads all of the channels, exact copies come back."
    torch.manual_seed(0)
    net = Repeated(order, groups).eval().requires_grad_(False)
    net.a.weight[4:], net.a.bias[4:] = net.a.weight[:4]*.5, net.a.bias[:4]*.5
    out = compress(net, images, pruning_ratio=.5, recipe=recipe, sites='all')
    assert torch.isfinite(out.model(images)).all()
    if len(order) % groups == 0:
        assert out.model.a.out_channels == 4
        if recipe != 'prune': torch.testing.assert_close(out.model(images), net(images), rtol=1e-3, atol=1e-4)

class FilterAndNorm(nn.Conv2d):
    "`weight` is the filter, not the norm's factor."
    def __init__(self):
        super().__init__(3, 8, 3, padding=1)
        self.eps = 1e-3
        self.gamma, self.beta = nn.Parameter(torch.rand(8)+.5), nn.Parameter(torch.randn(8))
        self.register_buffer('running_mean', torch.randn(8)*.1)
        self.register_buffer('running_var', torch.rand(8)+.5)
    def forward(self, x):
        return F.batch_norm(super().forward(x), self.running_mean, self.running_var, self.gamma, self.beta, False, 0.,
            self.eps)

class OtherEps(nn.BatchNorm2d):
    "`eps` is there, and is not what is used."
    def __init__(self):
        super().__init__(8)
        self.running_mean.normal_(0, .1); self.running_var.uniform_(.1, .5)
    def forward(self, x): return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=.5)

@pytest.mark.parametrize('make', [lambda: [FilterAndNorm()], lambda: [conv(3, 8), OtherEps()]],
    ids=['a filter beside', 'another ε'])
@pytest.mark.parametrize('recipe', ['prune', 'paper', 'fast', 'best', 'field'])
def test_norms_whose_names_mean_something_else(make, recipe):
    torch.manual_seed(0)
    net = nn.Sequential(*make(), nn.ReLU(), conv(8, 4)).eval()
    out = compress(net, images, pruning_ratio=.5, weight_bits=8, recipe=recipe)
    assert out.model[0].out_channels == 4 and torch.isfinite(out.model(images)).all()
    assert [n.kind for n in record(net, images).nodes if 'norm' in str(n.op)] == ['own statistics']

def by_hand(x, make):
    y = make(x, (*x.shape[:2], x.shape[2]+2, x.shape[3]+2))
    y[:, :, 1:-1, 1:-1] = x
    return y

@pytest.mark.parametrize('pad', [
    lambda x: F.pad(x, (1, 1, 1, 1), mode='circular'), lambda x: F.pad(x, (1, 1, 0, 0), mode='circular'),
    lambda x: by_hand(x, torch.Tensor.new_zeros), lambda x: by_hand(x, torch.Tensor.new_ones),
    lambda x: by_hand(x, lambda x, shape: torch.zeros(shape)),
    lambda x: torch.cat([by_hand(x, torch.Tensor.new_zeros)[:, :, :2, 1:-1], x], 2)],
    ids=['circular', 'circular, one axis', 'zeros', 'ones', 'zeros of a shape', 'a part'])
@pytest.mark.parametrize('call', range(3))
def test_buffers_that_are_written_in_parts(pad, call):
    "Layers in front of them are cut, whatever lies in the memory that nobody has written to."
    class Padded(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = conv(3, 8), nn.Conv2d(8, 6, 3), conv(6, 2)
        def forward(self, x): return self.c(F.relu(self.b(pad(F.relu(self.a(x))))))
    torch.manual_seed(0)
    net, junk = Padded().eval(), [torch.full((n,), float('nan')) for n in range(1, 2000, 7)]
    del junk
    out = compress(net, images, pruning_ratio=.5, recipe='prune')
    assert (out.model.a.out_channels, out.model.b.out_channels) == (4, 3), str(out.report)
    assert out.report.totals['difference'] < 1e-6
    kept = out.model.a.weight
    gone = [not any(torch.equal(w, k) for k in kept) for w in net.a.weight]
    want, got = net(images), out.model(images)
    assert sum(gone) == 4 and want.shape == got.shape and torch.isfinite(got).all()


# ---- what a network takes

@pytest.mark.parametrize('takes', [lambda n: n % 2 == 0, lambda n: n == 6, lambda n: n % 3 == 0, lambda n: n > 1],
    ids=['even', 'six', 'threes', 'several'])
@pytest.mark.parametrize('recipe', ['prune', 'fast'])
def test_networks_that_take_some_batches_only(takes, recipe):
    class Clips(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 4)
        def forward(self, x):
            if not takes(len(x)): raise ValueError(f'a batch of {len(x)}')
            return self.c(F.relu(self.b(F.relu(self.a(x)))))
    out = compress(Clips().eval(), torch.randn(6, 3, 8, 8), pruning_ratio=.5, recipe=recipe)
    assert out.model.a.out_channels < 8 and out.report.judged['this'] < 1


# ---- a size, whatever the recipe

@pytest.mark.parametrize('recipe', ['folding', 'data-free-pruning', 'neuron-merging', 'lbyl'])
def test_a_size_with_recipes_that_replace_channels(recipe):
    "Those that go are those that have a replacement: what a duplicate says is not lost."
    net = roughen(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12), nn.BatchNorm2d(12), nn.ReLU(),
        conv(12, 4)))
    with torch.no_grad(): net[0].weight[5], net[0].bias[5] = net[0].weight[2], net[0].bias[2]
    for t in (*net[1].parameters(), net[1].running_mean, net[1].running_var): t.data[5] = t.data[2]
    out = compress(net, images, recipe=recipe, size_budget=3000)
    assert (out.report.totals['params'] < out.report.totals['params_before']
        and torch.isfinite(run(out.model, images)).all())


# ---- one weight in two modules

@pytest.mark.parametrize('recipe', ['field', 'fast', 'paper'])
@pytest.mark.parametrize('kwargs', [dict(weight_bits=4), dict(pruning_ratio=.5, weight_bits=4, sites='all')], ids=str)
def test_a_weight_of_two_modules_is_cut_and_rounded_once(kwargs, recipe):
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    net[4].weight = net[2].weight
    out = compress(net.eval(), images, recipe=recipe, **kwargs)
    assert torch.isfinite(run(out.model, images)).all() and out.model[4].weight is out.model[2].weight
    for k in ('2', '4'):
        if recipe != 'paper': assert torch.equal(out.codes[k].dequantize(), out.model[4].weight)
