"""An exactly redundant channel, planted in every kind of site, is removed without changing the output.

The planted channel j repeats channel i: a positive multiple, shift included, where ReLU (or a max or a mean)
follows; the same
values where SiLU, GELU or hardswish follows; any combination of other channels where no activation follows. Its
filter is made
the shortest of its layer, so that the criterion chooses it, and its weight in the next layer large, so that dropping
it shows."""
import pytest, torch, torch.nn as nn, torch.nn.functional as F
from torchvision.models.densenet import _DenseLayer
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import SqueezeExcitation, StochasticDepth
from udfc_nb import compress
from udfc_nb.recipes.recipe import RECIPES
from nets import Residual, relative, roughen

LIMIT = 1e-4


def affine(norm, k):
    "c and b of one channel, from the definition."
    c = norm.weight[k]/torch.sqrt(norm.running_var[k]+norm.eps)
    return c, norm.bias[k]-c*norm.running_mean[k]

@torch.no_grad()
def tune(norm, k, c, b):
    "Sets γ and β of channel k so that BN(z) = c·z + b, with the statistics as they are."
    norm.weight[k] = c*torch.sqrt(norm.running_var[k]+norm.eps)
    norm.bias[k] = b+c*norm.running_mean[k]

@torch.no_grad()
def awake(norm, i):
    "c and b of channel i, with its shift made positive, so that ReLU does not hide it."
    tune(norm, i, affine(norm, i)[0], torch.tensor(.8))
    return affine(norm, i)

@torch.no_grad()
def repeat(layer, j, i, a=1., norm=None, at=0, small=.02):
    """Channel j becomes a times channel i (behind the norm, whose entries begin at `at`); its filter is `small`
    times that of i."""
    if norm is None: # the filter itself carries the multiple
        if layer.bias is not None: layer.bias[i] = .5
        layer.weight[j] = a*layer.weight[i]
        if layer.bias is not None: layer.bias[j] = a*layer.bias[i]
        return
    layer.weight[j] = small*layer.weight[i]
    if layer.bias is not None: layer.bias[j] = small*layer.bias[i]
    c, b = awake(norm, at+i)
    tune(norm, at+j, a*c/small, a*b)

@torch.no_grad()
def combine(layer, j, weights, norm=None, small=.02):
    "Channel j becomes Σ weights[i]·(channel i), behind the norm if there is one."
    old_w = layer.weight.clone(); old_b = None if layer.bias is None else layer.bias.clone()
    c, b = zip(*(affine(norm, i) if norm else (torch.tensor(1.), torch.tensor(0.)) for i in weights))
    w = sum(t*ci*old_w[i] for (i, t), ci in zip(weights.items(), c))
    k = small*old_w.flatten(1).norm(dim=1).min()/w.norm() # what is left for the norm to carry
    if norm is None: k = 1.
    layer.weight[j] = k*w
    shift = 0. if old_b is None else sum(t*ci*old_b[i] for (i, t), ci in zip(weights.items(), c))
    if layer.bias is not None: layer.bias[j] = k*shift
    if norm: tune(norm, j, 1/k, sum(t*bi for t, bi in zip(weights.values(), b)))

@torch.no_grad()
def louder(layer, j, by=10.):
    "The next layer listens to input channel j more than to others."
    layer.weight[:, j] *= by


def check(model, x, site, j, limit=LIMIT, visible=1e-2):
    """Removing channels `j` of `site`, and nothing else, leaves the output; dropping them without compensation would
    show."""
    js = [j] if isinstance(j, int) else list(j)
    layer = dict(model.named_modules())[site]
    size, groups = layer.weight.shape[0], len(js)
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    for run, js_run in zip(norms.chunk(groups), js):
        assert run.argmin() + (js_run//(size//groups))*(
            size//groups) == js_run, 'the planted filter is not the shortest'
    ratio = {site: groups/size}
    model.eval()
    with torch.no_grad(): y = model(x)
    out = compress(model, x, layer_ratios=ratio, recipe='paper')
    assert list(out.kept) == [site]
    assert sorted(set(range(size))-set(out.kept[site].tolist())) == sorted(js)
    assert dict(out.model.named_modules())[site].weight.shape[0] == size-len(js)
    x2 = torch.randn_like(x) # other inputs than those that were traced
    with torch.no_grad():
        changed = max(relative(out.model(x), y), relative(out.model(x2), model(x2)))
        dropped = relative(compress(model, x, layer_ratios=ratio, recipe='prune').model(x), y)
    assert changed <= limit, f'the output changed by {changed:.1e}; by {dropped:.1e} without compensation'
    assert dropped > visible, 'the planted channel does not matter: the test could not fail'
    return out


images = torch.randn(3, 3, 12, 12)

def mean_head(width, classes=6): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


# Chains

@pytest.mark.parametrize('a', [.3, 1., 4.])
@pytest.mark.parametrize('act',
    [nn.ReLU(), nn.LeakyReLU(.2), nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.Dropout(.5))],
    ids=['relu', 'leaky', 'relu-maxpool', 'avgpool-relu-dropout'])
def test_conv_norm_act_conv(act, a):
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), act, nn.Conv2d(8, 6, 3),
        mean_head(6)))
    repeat(model[0], 5, 2, a, model[1]); louder(model[3], 5)
    check(model, images, '0', 5, 1e-5)

@pytest.mark.parametrize('act',
    [nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.Mish()],
    ids=lambda m: type(m).__name__)
def test_duplicate_through_a_curved_activation(act):
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), act, nn.Conv2d(8, 6, 3),
        mean_head(6)))
    repeat(model[0], 5, 2, 1., model[1]); louder(model[3], 5)
    check(model, images, '0', 5)

def test_conv_with_bias_in_front_of_a_norm():
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), mean_head(6)))
    repeat(model[0], 5, 2, 2., model[1]); louder(model[3], 5)
    check(model, images, '0', 5)

def test_conv_without_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), mean_head(6))
    repeat(model[0], 1, 6, .05); louder(model[2], 1, 200)
    check(model, images, '0', 1)

def test_norm_without_parameters():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)).eval()
    with torch.no_grad():
        model[1].running_mean.normal_(); model[1].running_var.uniform_(.5, 2)
        model[0].weight[4] = .02*model[0].weight[0]; model[0].bias[4] = .02*model[0].bias[0]
        model[1].running_mean[4] = .02*model[1].running_mean[0]
        model[1].running_var[4] = .02**2*(model[1].running_var[0]+1e-5)-1e-5
    louder(model[3], 4)
    check(model, images, '0', 4)

@pytest.mark.parametrize('norm', [True, False])
def test_any_combination_where_no_activation_follows(norm):
    n = nn.BatchNorm2d(8) if norm else nn.Identity()
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), n, nn.AvgPool2d(2), nn.Conv2d(8, 6, 3), mean_head(6)))
    combine(model[0], 3, {0: .5, 4: -.7, 6: 1.3} if norm else {0: .05, 4: -.07, 6: .06}, n if norm else None)
    louder(model[3], 3, 100)
    check(model, images, '0', 3)

def test_a_negative_multiple_is_exact_only_without_an_activation():
    def net(act):
        return roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), act, nn.Conv2d(8, 6, 3),
            mean_head(6)))
    linear, relu = net(nn.Identity()), net(nn.ReLU())
    for m in (linear, relu): repeat(m[0], 5, 2, -1., m[1]); louder(m[3], 5)
    check(linear, images, '0', 5)
    with pytest.raises(AssertionError, match='the output changed by'): check(relu, images, '0', 5)

def test_shift_is_part_of_the_vector():
    "The same filter with another shift is not the same channel: through ReLU it cannot be restored exactly."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    repeat(model[0], 5, 2, 1., model[1]); louder(model[3], 5)
    with torch.no_grad(): model[1].bias[5] += 1
    with pytest.raises(AssertionError, match='the output changed by'): check(model, images, '0', 5)

def test_more_kept_channels_than_filter_entries():
    """The kept filters span the whole space, so that many combinations fit the filter; only the multiple itself
    passes ReLU."""
    model = roughen(nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 6, 3),
        mean_head(6)))
    repeat(model[0], 5, 2, 2., model[1]); louder(model[3], 5)
    check(model, images, '0', 5)

def test_more_kept_channels_than_filter_entries_no_activation():
    model = roughen(nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 6, 3),
        mean_head(6)))
    combine(model[0], 5, {1: .5, 2: -1.5}, model[1]); louder(model[2], 5)
    check(model, images, '0', 5)

def test_duplicate_among_kept_channels():
    "The channel that is repeated stands there twice: the Gram matrix of the kept ones is singular."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    repeat(model[0], 7, 2, 1., model[1], small=.5); repeat(model[0], 5, 2, 2., model[1]); louder(model[3], 5)
    check(model, images, '0', 5)

def test_dead_channel():
    "γ = 0 and β = 0: removing it costs nothing, with or without compensation."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    with torch.no_grad():
        model[0].weight[5] *= .01; model[1].weight[5] = 0; model[1].bias[5] = 0
        y = model(images)
    for recipe in ('paper', 'prune', 'neuron-merging', 'neuron-merging-derived'):
        out = compress(model, images, layer_ratios={'0': 1/8}, recipe=recipe)
        assert 5 not in out.kept['0']
        with torch.no_grad(): assert relative(out.model(images), y) <= LIMIT, recipe

@pytest.mark.parametrize('recipe', ['best', 'paper', 'neuron-merging', 'neuron-merging-derived'])
def test_duplicates_are_restored_by_every_compensating_recipe(recipe):
    "A true copy, filter and norm alike; the criterion's tie goes to the earlier channel, which is kept."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    with torch.no_grad():
        model[0].weight[2] *= .1; model[0].weight[5] = model[0].weight[2]
        for t in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var): t[5] = t[2]
    louder(model[3], 5, 50)
    with torch.no_grad(): y = model(images)
    out = compress(model, images, layer_ratios={'0': 1/8}, recipe=recipe)
    assert 5 not in out.kept['0'] and 2 in out.kept['0']
    with torch.no_grad(): assert relative(out.model(images), y) <= LIMIT


# Residual networks

def test_basic_block_conv1():
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), BasicBlock(8, 8), BasicBlock(8, 8), mean_head(8)))
    repeat(model[2].conv1, 6, 3, 2.5, model[2].bn1); louder(model[2].conv2, 6, 30)
    check(model, images, '2.conv1', 6)

def bottleneck():
    return roughen(nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), Bottleneck(24, 6), mean_head(24)))

def test_bottleneck_conv1():
    model = bottleneck()
    repeat(model[2].conv1, 4, 1, 2., model[2].bn1); louder(model[2].conv2, 4, 30)
    check(model, images, '2.conv1', 4)

def test_bottleneck_conv2():
    model = bottleneck()
    repeat(model[2].conv2, 0, 5, .5, model[2].bn2); louder(model[2].conv3, 0, 30)
    check(model, images, '2.conv2', 0)

class PreActivation(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, width, 3, padding=1, bias=False)
    def forward(self, x): return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))

def test_pre_activation_block():
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), PreActivation(8, 10), PreActivation(8, 10), mean_head(8)))
    repeat(model[1].conv1, 7, 2, 3., model[1].bn2); louder(model[1].conv2, 7, 20)
    check(model, images, '1.conv1', 7)

def test_channels_of_a_residual_sum_stay():
    out = compress(roughen(Residual()), images, pruning_ratio=.5, recipe='paper')
    reasons = {r['layer']: r['reason'] for r in out.report.rows}
    assert set(out.kept) == {'blocks.0.conv1', 'blocks.1.conv1'}
    assert reasons['stem'] == reasons['blocks.0.conv2'] == reasons['blocks.1.conv2'] == 'tied by an add'
    assert reasons['head'] == 'feeds an output'


# Linear layers

def test_flatten_then_linear():
    "VGG: every channel of the convolution is a run of columns of the linear layer."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3),
        nn.Flatten(), nn.Linear(8*16, 10), nn.ReLU(), nn.Linear(10, 5)))
    repeat(model[0], 6, 1, 2., model[1])
    with torch.no_grad(): model[5].weight[:, 6*16:7*16] *= 10
    out = check(model, images, '0', 6)
    assert out.model[5].in_features == 7*16

def test_linear_then_linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 7))
    repeat(model[1], 9, 4, .05); louder(model[3], 9, 300)
    check(model, torch.randn(5, 3, 4, 4), '1', 9)

def test_linear_with_norm():
    model = roughen(nn.Sequential(nn.Linear(20, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 7)))
    repeat(model[0], 9, 4, 2., model[1]); louder(model[3], 9)
    check(model, torch.randn(5, 20), '0', 9)


# Several consumers, concatenations

class Fork(nn.Module):
    "One site, two consumers, on different paths."
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.head((self.a(F.relu(x)) + self.b(F.avg_pool2d(F.relu(x), 3, 1, 1))).mean((2, 3)))

def test_several_consumers():
    model = roughen(Fork())
    repeat(model.conv, 1, 5, 2., model.bn); louder(model.a, 1, 5); louder(model.b, 1, 5)
    check(model, images, 'conv', 1)

class Branches(nn.Module):
    "Inception: branches of unequal width side by side."
    def __init__(self):
        super().__init__()
        def branch(width, k):
            return nn.Sequential(nn.Conv2d(3, width, k, padding=k//2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.one, self.two, self.pool = branch(5, 1), branch(7, 3), nn.MaxPool2d(3, 1, 1)
        self.last = nn.Conv2d(3+5+7, 6, 3)
        self.head = mean_head(6)
    def forward(self, x): return self.head(self.last(torch.cat([self.pool(x), self.one(x), self.two(x)], 1)))

@pytest.mark.parametrize('site,width,offset', [('one', 5, 3), ('two', 7, 8)])
def test_concatenation(site, width, offset):
    model = roughen(Branches())
    branch = getattr(model, site)
    # four entries (three taps and the shift) and four kept channels in branch `one`: still one solution
    repeat(branch[0], 3, 1, 2., branch[1]); louder(model.last, offset+3, 30)
    out = check(model, images, f'{site}.0', 3)
    assert out.model.last.in_channels == 14

def test_concatenation_both_branches_at_once():
    model = roughen(Branches())
    for b, o in ((model.one, 3), (model.two, 8)): repeat(b[0], 0, 2, .5, b[1]); louder(model.last, o, 30)
    with torch.no_grad(): y = model(images)
    out = compress(model, images, layer_ratios={'one.0': 1/5, 'two.0': 1/7}, recipe='paper')
    assert out.model.last.in_channels == 13 and {n: len(k) for n, k in out.kept.items()} == {'one.0': 4, 'two.0': 6}
    with torch.no_grad(): assert relative(out.model(images), y) <= LIMIT

class Dense(nn.Module):
    "DenseNet: everything so far is concatenated, and each layer brings its own norm for it."
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, bias=False)
        self.one, self.two = (_DenseLayer(n, growth_rate=5, bn_size=2, drop_rate=0.) for n in (6, 11))
        self.bn, self.last, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 6, 1), mean_head(6)
    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.one([x])], 1)
        x = torch.cat([x, self.two([x])], 1)
        return self.head(self.last(F.relu(self.bn(x))))

def test_dense_layers_own_bottleneck():
    model = roughen(Dense())
    repeat(model.two.conv1, 7, 3, 2., model.two.norm2); louder(model.two.conv2, 7, 30)
    check(model, images, 'two.conv1', 7)

@pytest.mark.parametrize('site,j,i,at', [('stem', 4, 2, 0), ('one.conv2', 3, 0, 6), ('two.conv2', 1, 4, 11)])
def test_norm_behind_a_concatenation(site, j, i, at):
    "The norms that see the channel stand behind the concatenation, at an offset; every one of them repeats it."
    model = roughen(Dense())
    layer = dict(model.named_modules())[site]
    with torch.no_grad(): layer.weight[j] = .02*layer.weight[i]
    readers = [(model.one.norm1, model.one.conv1), (model.two.norm1, model.two.conv1), (model.bn, model.last)]
    for norm, conv in readers[['stem', 'one.conv2', 'two.conv2'].index(site):]:
        c, b = awake(norm, at+i); tune(norm, at+j, 2*c/.02, 2*b); louder(conv, at+j, 10)
    check(model, images, site, j)


# Depthwise convolutions and gates

def plant_depthwise(conv, bn1, dw, bn2, j, i, a=2., b=3., k=.7):
    "Hidden channel j is a times i in front of the depthwise convolution and b times i behind its norm."
    repeat(conv, j, i, a, bn1)
    with torch.no_grad(): dw.weight[j] = k*dw.weight[i]
    c2, b2 = awake(bn2, i)
    tune(bn2, j, b*c2/(a*k), b*b2)

class PlainReLU(nn.Module):
    "An inverted residual of its own make, with ReLU; conv, depthwise, projection, each with its norm."
    def __init__(self, act, width=6, hidden=10):
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.dw, self.bn2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        self.project, self.bn3, self.act = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width), act
    def forward(self, x):
        return x + self.bn3(self.project(self.act(self.bn2(self.dw(self.act(self.bn1(self.conv(x))))))))

@pytest.mark.parametrize('act,a,b',
    [(nn.ReLU(), 2., 3.), (nn.ReLU(), .5, .2), (nn.SiLU(), 1., 1.), (nn.Hardswish(), 1., 1.),
    (nn.Identity(), -1., 2.)], ids=str)
def test_depthwise(act, a, b):
    model = roughen(nn.Sequential(nn.Conv2d(3, 6, 3), PlainReLU(act), mean_head(6)))
    block = model[1]
    plant_depthwise(block.conv, block.bn1, block.dw, block.bn2, 8, 3, a, b); louder(block.project, 8, 20)
    out = check(model, images, '1.conv', 8)
    assert out.model[1].dw.groups == out.model[1].dw.in_channels == out.model[1].dw.out_channels == 9
    assert len(out.model[1].bn1.running_mean) == len(out.model[1].bn2.running_mean) == 9

def test_torchvision_inverted_residual():
    "ReLU6 cuts at 6, so here the planted channel is a duplicate."
    model = roughen(nn.Sequential(nn.Conv2d(3, 6, 3), InvertedResidual(6, 6, 1, 2), mean_head(6)))
    c = model[1].conv
    plant_depthwise(c[0][0], c[0][1], c[1][0], c[1][1], 8, 3, 1., 1.); louder(c[2], 8, 20)
    check(model, images, '1.conv.0.0', 8)

def test_depthwise_with_bias_and_without_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1),
        mean_head(5))
    repeat(model[0], 5, 1, .05)
    with torch.no_grad(): model[2].weight[5] = model[2].weight[1]*4; model[2].bias[5] = .2*model[2].bias[1]
    louder(model[4], 5, 100)
    check(model, images, '0', 5)

class Gated(nn.Module):
    "Convolution, norm, activation, squeeze-and-excitation, projection."
    def __init__(self, act, depthwise=False, scale=torch.nn.Sigmoid):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act
        self.dw = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            if depthwise else nn.Identity())
        self.se = SqueezeExcitation(8, 5, scale_activation=scale)
        self.project, self.head = nn.Conv2d(8, 6, 1), mean_head(6)
    def forward(self, x): return self.head(self.project(self.se(self.dw(self.act(self.bn(self.conv(x)))))))

@pytest.mark.parametrize('act,a,scale',
    [(nn.ReLU(), 2., nn.Sigmoid), (nn.ReLU(), .5, nn.Hardsigmoid), (nn.SiLU(), 1., nn.Sigmoid),
    (nn.Hardswish(), 1., nn.Hardsigmoid)], ids=str)
def test_squeeze_and_excitation(act, a, scale):
    "The gate's row is repeated with its channel, so that both are gated alike."
    model = roughen(Gated(act, scale=scale))
    repeat(model.conv, 6, 2, a, model.bn)
    with torch.no_grad():
        model.se.fc2.weight.mul_(3)
        model.se.fc2.weight[6] = model.se.fc2.weight[2]; model.se.fc2.bias[6] = model.se.fc2.bias[2]
    louder(model.project, 6, 10); louder(model.se.fc1, 6, 5)
    out = check(model, images, 'conv', 6)
    assert out.model.se.fc1.in_channels == out.model.se.fc2.out_channels == out.model.project.in_channels == 7

def test_depthwise_and_gate():
    model = roughen(Gated(nn.ReLU(), depthwise=True))
    plant_depthwise(model.conv, model.bn, model.dw[0], model.dw[1], 6, 2, 2., .5)
    with torch.no_grad(): model.se.fc2.weight[6] = model.se.fc2.weight[2]; model.se.fc2.bias[6] = model.se.fc2.bias[2]
    louder(model.project, 6, 20)
    check(model, images, 'conv', 6)

def test_inside_of_the_gate():
    "The squeezed channels of the gate are a site of their own."
    model = roughen(Gated(nn.ReLU()))
    repeat(model.se.fc1, 3, 1, .05); louder(model.se.fc2, 3, 300); louder(model.se.fc2, 1, 3)
    check(model, images, 'se.fc1', 3, visible=1e-3)


# Grouped convolutions

class Grouped(nn.Module):
    "ResNeXt's middle: conv1 feeds a grouped convolution, which feeds conv3."
    def __init__(self, first=3, act=None, k=3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, k, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, groups=2, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.head, self.act = nn.Conv2d(12, 6, 1), mean_head(6), act or nn.ReLU()
    def forward(self, x): return self.head(self.conv3(F.relu(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))))

def test_grouped_consumer():
    "Each group of the consumer reads its own run of channels, so that the replacement must come from the same run."
    model = roughen(Grouped())
    for j, i in ((4, 1), (9, 11)): repeat(model.conv1, j, i, 2., model.bn1)
    louder(model.conv2, 4, 10); louder(model.conv2, 3, 10) # columns are counted within a group
    out = check(model, images, 'conv1', (4, 9))
    assert out.model.conv2.groups == 2 and out.model.conv2.in_channels == 10 and out.model.conv2.weight.shape[1] == 5

def test_grouped_producer():
    model = roughen(Grouped())
    for j, i in ((2, 5), (10, 6)): repeat(model.conv2, j, i, .5, model.bn2)
    for j in (2, 10): louder(model.conv3, j, 20)
    out = check(model, images, 'conv2', (2, 10))
    assert out.model.conv2.groups == 2 and out.model.conv2.out_channels == 10

def test_grouped_consumer_takes_combinations_from_its_own_group():
    """No activation, and more kept filters than entries: the ones of the other group would do as well, but cannot be
    used."""
    model = roughen(Grouped(act=nn.Identity(), k=1))
    combine(model.conv1, 4, {0: 1., 1: -.5}, model.bn1); combine(model.conv1, 9, {6: .7, 7: .8}, model.bn1)
    louder(model.conv2, 4, 5); louder(model.conv2, 3, 5)
    check(model, images, 'conv1', (4, 9))


# Parameters with one number per channel, gates written with an index, channels last

@pytest.mark.parametrize('same', [True, False])
def test_prelu_with_a_slope_per_channel(same):
    "A multiple with the same slope is exact; with another slope it is another channel."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    with torch.no_grad(): model[2].weight.uniform_(-.5, .8)
    repeat(model[0], 5, 2, 2., model[1]); louder(model[3], 5)
    with torch.no_grad(): model[2].weight[5] = model[2].weight[2]+(0 if same else .7)
    if same:
        out = check(model, images, '0', 5)
        assert out.model[2].num_parameters == len(out.model[2].weight) == 7
    else:
        with pytest.raises(AssertionError, match='the output changed by'): check(model, images, '0', 5)

class Scaled(nn.Module):
    "A factor and a shift for each channel, held by the network itself."
    def __init__(self, act, shape=(8, 1, 1)):
        super().__init__()
        self.conv, self.gamma, self.beta = (nn.Conv2d(3, 8, 3, bias=False), nn.Parameter(torch.rand(shape)+.5),
            nn.Parameter(torch.rand(shape)))
        self.act, self.next, self.head = act, nn.Conv2d(8, 6, 3), mean_head(6)
    def forward(self, x): return self.head(self.next(self.act(self.gamma*self.conv(x)+self.beta)))

@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize('act', [nn.ReLU(), nn.Identity()], ids=str)
def test_factor_and_shift(act, shape):
    model = Scaled(act, shape)
    with torch.no_grad():
        g, b = model.gamma.view(8), model.beta.view(8)
        model.conv.weight[5] = .02*model.conv.weight[2]; g[5] = 2/.02*g[2]; b[5] = 2*b[2]
    louder(model.next, 5)
    out = check(model, images, 'conv', 5)
    assert out.model.gamma.numel() == out.model.beta.numel() == 7 and isinstance(out.model.gamma, nn.Parameter)

INDEXED = dict(none=lambda g: g[:, :, None, None], ellipsis=lambda g: g[..., None, None],
    unsqueeze=lambda g: g.unsqueeze(-1).unsqueeze(-1), view=lambda g: g.view(g.size(0), -1, 1, 1))

class LinearGate(nn.Module):
    "Squeeze-and-excitation with linear layers."
    def __init__(self, form):
        super().__init__()
        self.conv, self.bn, self.form = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), form
        self.squeeze, self.excite, self.project, self.head = (nn.Linear(8, 4), nn.Linear(4, 8), nn.Conv2d(8, 6, 1),
            mean_head(6))
    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.head(self.project(x*self.form(
            self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]))).sigmoid())))

@pytest.mark.parametrize('form', INDEXED)
def test_gate_with_an_index(form):
    model = roughen(LinearGate(INDEXED[form]))
    repeat(model.conv, 6, 2, 2., model.bn)
    with torch.no_grad(): model.excite.weight[6] = model.excite.weight[2]; model.excite.bias[6] = model.excite.bias[2]
    louder(model.project, 6, 20)
    out = check(model, images, 'conv', 6)
    assert out.model.excite.out_features == out.model.squeeze.in_features == out.model.project.in_channels == 7

class ChannelsLast(nn.Module):
    "A convolution, linear layers on its permuted output, and back."
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.down, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 12), nn.Linear(12, 5), mean_head(5)
    def forward(self, x):
        return self.head(self.down(F.gelu(self.up(self.conv(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2))

def test_linear_layers_on_permuted_channels():
    model = ChannelsLast()
    combine(model.conv, 3, {0: .05, 4: -.07, 6: .06}); louder(model.up, 3, 100)
    check(model, images, 'conv', 3)
    model = ChannelsLast()
    with torch.no_grad():
        model.up.weight[4] *= .1
        model.up.weight[9] = model.up.weight[4]
        model.up.bias[9] = model.up.bias[4]
        model.down.weight[:, 9] *= 50
    with torch.no_grad(): y = model(images)
    out = compress(model, images, layer_ratios={'up': 1/12}, recipe='paper')
    assert 9 not in out.kept['up']
    with torch.no_grad(): assert relative(out.model(images), y) <= LIMIT

class SumOfTheSame(nn.Module):
    "A tensor plus its own depthwise convolution: the channels are the same, and nothing is tied."
    def __init__(self):
        super().__init__()
        self.conv, self.dw, self.next, self.head = (nn.Conv2d(3, 8, 3, bias=False),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 6, 1), mean_head(6))
    def forward(self, x): x = F.relu(self.conv(x)); return self.head(self.next(x+self.dw(x)))

def test_sum_of_the_same_channels():
    model = SumOfTheSame()
    with torch.no_grad(): model.conv.weight[5] = .05*model.conv.weight[2]; model.dw.weight[5] = model.dw.weight[2]
    louder(model.next, 5, 300)
    check(model, images, 'conv', 5)

def test_torchvision_mbconv():
    "EfficientNet's block: SiLU and a gate, so the planted channel is a duplicate in all its parts."
    from functools import partial
    from torchvision.models.efficientnet import MBConv, MBConvConfig
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3),
        MBConv(MBConvConfig(2, 3, 1, 8, 8, 1, 1., 1.), 0., partial(nn.BatchNorm2d, eps=1e-3)), mean_head(8)))
    expand, depth, se, project = model[1].block
    plant_depthwise(expand[0], expand[1], depth[0], depth[1], 8, 3, 1., 1.)
    with torch.no_grad(): se.fc2.weight[8] = se.fc2.weight[3]; se.fc2.bias[8] = se.fc2.bias[3]
    louder(project[0], 8, 20)
    check(model, images, '1.block.0.0', 8)

def test_torchvision_inception_module():
    from torchvision.models.googlenet import Inception
    model = roughen(nn.Sequential(nn.Conv2d(3, 6, 3), Inception(6, 5, 4, 6, 3, 5, 4), nn.Conv2d(5+6+5+4, 6, 1),
        mean_head(6)))
    # in front of its branch's second convolution; at an offset behind the concatenation
    inner, outer = model[1].branch2[0], model[1].branch3[1]
    repeat(inner.conv, 2, 0, 2., inner.bn); louder(model[1].branch2[1].conv, 2, 30)
    check(model, images, '1.branch2.0.conv', 2)
    repeat(outer.conv, 3, 1, 2., outer.bn); louder(model[2], 5+6+3, 30)
    check(model, images, '1.branch3.1.conv', 3)


# A whole network at once

@pytest.mark.parametrize('build',
    [lambda: Residual(8, (10, 12)),
    lambda: nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), Bottleneck(24, 6), mean_head(24))],
    ids=['basic', 'bottleneck'])
def test_every_site_at_once(build):
    "A redundant channel in every site of a residual network, all removed in one run."
    model = roughen(build())
    mods = dict(model.named_modules())
    pairs = [(n, n.replace('conv', 'bn')) for n in mods if n.endswith('conv1') or n.endswith('conv2')
        and n.replace('conv2', 'conv3') in mods]
    for c, b in pairs:
        repeat(mods[c], 1, 3, 2., mods[b])
        louder(mods[c.replace('conv1', 'conv2') if c.endswith('conv1') else c.replace('conv2', 'conv3')], 1, 10)
    with torch.no_grad(): y = model(images)
    ratios = {c: 1/mods[c].out_channels for c, _ in pairs}
    out = compress(model, images, layer_ratios=ratios, recipe='paper')
    assert all(1 not in out.kept[c] and len(out.kept[c]) == mods[c].out_channels-1 for c in ratios)
    with torch.no_grad(): assert relative(out.model(images), y) <= LIMIT


# A concatenation with one module, parameter or gate for all of it; other dimensions, other norms

class Together(nn.Module):
    "Two branches side by side, then one thing for all their channels."
    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False), form
        self.slope, self.factor = nn.PReLU(14), nn.Parameter(torch.rand(14, 1, 1)+.5)
        self.ga, self.gb, self.last, self.head = (nn.Conv2d(3, 6, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(14, 6, 1),
            mean_head(6))
    def forward(self, x): return self.head(self.last(self.form(self, torch.cat([self.a(x), self.b(x)], 1), x)))

TOGETHER = dict(slopes=lambda s, y, x: s.slope(y), factor=lambda s, y, x: F.relu(s.factor*y), two_by_two=lambda s, y,
    x: F.relu(y)*torch.cat([s.ga(x), s.gb(x)], 1).sigmoid())

@pytest.mark.parametrize('form', TOGETHER)
def test_one_thing_for_a_whole_concatenation(form):
    "The second branch's entries begin where the first one's end."
    model = Together(TOGETHER[form])
    with torch.no_grad():
        model.slope.weight.uniform_(-.5, .8)
        model.b.weight[5] = .02*model.b.weight[2]
        for p in (model.slope.weight, model.factor, model.gb.weight, model.gb.bias):
            o = 0 if len(p) == 8 else 6
            p[o+5] = p[o+2]
    louder(model.last, 6+5, 300)
    out = check(model, images, 'b', 5)
    assert out.model.last.in_channels == 13 and out.model.a.out_channels == 6
    if form == 'slopes': assert out.model.slope.num_parameters == 13
    if form == 'two_by_two': assert out.model.gb.out_channels == 7 and out.model.ga.out_channels == 6

@pytest.mark.parametrize('conv,bn,shape',
    [(nn.Conv1d, nn.BatchNorm1d, (3, 3, 20)), (nn.Conv3d, nn.BatchNorm3d, (2, 3, 7, 7, 7))], ids=['1d', '3d'])
def test_other_dimensions(conv, bn, shape):
    model = nn.Sequential(conv(3, 8, 3, bias=False), bn(8), nn.ReLU(), conv(8, 6, 3), nn.Flatten(2), Mean(),
        nn.Linear(6, 4)).eval()
    with torch.no_grad():
        model[1].running_mean.normal_(0, .3)
        model[1].running_var.uniform_(.5, 2)
        model[1].weight.uniform_(.5, 1.5)
    repeat(model[0], 5, 2, 2., model[1]); louder(model[3], 5)
    check(model, torch.randn(shape), '0', 5)

class Mean(nn.Module):
    def forward(self, x): return x.mean(2)

@pytest.mark.parametrize('kind', ['sync', 'frozen', 'own', 'two'])
def test_norms_of_other_kinds(kind):
    from torchvision.ops import FrozenBatchNorm2d
    class Own(nn.BatchNorm2d):
        "Norm and activation in one, as timm has it."
        def forward(self, x): return F.relu(super().forward(x))
    norm = dict(sync=nn.SyncBatchNorm, frozen=FrozenBatchNorm2d, own=Own, two=nn.BatchNorm2d)[kind](8)
    second = nn.BatchNorm2d(8) if kind == 'two' else nn.Identity()
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, second, nn.ReLU(), nn.Conv2d(8, 6, 3),
        mean_head(6)))
    with torch.no_grad():
        norm.running_mean.normal_(0, .3); norm.running_var.uniform_(.5, 2); norm.weight.uniform_(.5, 1.5)
        repeat(model[0], 5, 2, 2., norm)
        if kind == 'two':
            c, _ = affine(second, 2)
            tune(second, 2, c, torch.tensor(.3))
            tune(second, 5, c, torch.tensor(.6))
    louder(model[4], 5)
    out = check(model, images, '0', 5)
    assert type(out.model[1]) is type(norm) and len(out.model[1].running_mean) == 7

class Resized(nn.Module):
    "What segmentation heads and modern blocks put between two convolutions."
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.next, self.head, self.drop = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3), mean_head(6), StochasticDepth(.2, 'row'))
    def forward(self, x):
        y = self.drop(F.relu(self.bn(self.conv(x))))
        return self.head(self.next(F.interpolate(F.pad(y, (1, 1, 1, 1)), size=x.shape[-2:], mode='bilinear')[:, :,
            1:-1]))

def test_resized_and_padded():
    model = roughen(Resized())
    repeat(model.conv, 5, 2, 3., model.bn); louder(model.next, 5)
    check(model, images, 'conv', 5)

@pytest.mark.parametrize('recipe', ['best', 'fast'])
def test_among_long_filters(recipe):
    "Where copies are looked for in a sketch first, the one that there is is found, and handed on exactly."
    model = roughen(nn.Sequential(nn.Conv2d(32, 280, 3, bias=False), nn.BatchNorm2d(280), nn.ReLU(), nn.Conv2d(280, 6,
        1), mean_head(6)))
    n, x = model[1], torch.randn(4, 32, 8, 8)
    # what training would have left, with which streams are anchored
    n.running_mean[5], n.running_var[5] = .02*n.running_mean[2], .02**2*n.running_var[2]
    repeat(model[0], 5, 2, 2., n); louder(model[3], 5)
    out = compress(model, x, layer_ratios={'0': 1/280}, recipe=recipe)
    assert out.model[0].out_channels == 279 and relative(model(x), out.model(x)) < 1e-6


class Twice(nn.Module):
    "The reader has every channel twice: as it is, and through a filter and a norm that each channel has for itself."
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.cheap, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 6, 3)
    def forward(self, x):
        y = F.relu(self.bn(self.a(x)))
        return self.b(F.relu(self.norm(torch.cat([y, self.cheap(y)], 1)))).mean((2, 3))


@torch.no_grad()
def planted_twice(both, i=2, j=5):
    "Channel j is half of channel i; at the second place of the reader too, if it has the same filter."
    torch.manual_seed(0)
    net = roughen(Twice()).eval()
    if both: net.cheap.weight[j] = net.cheap.weight[i]
    # what training would have left, with which streams are anchored
    for norm, a, at in ((net.bn, .02, 0), (net.norm, .5, 0), (net.norm, .5, 8)):
        norm.running_mean[at+j] = a*norm.running_mean[at+i]; norm.running_var[at+j] = a*a*norm.running_var[at+i]
    repeat(net.a, j, i, .5, net.bn)
    for at in (0, 8):
        c, b = awake(net.norm, at+i)
        tune(net.norm, at+j, c/.5, b) # each place has an entry of the norm
    louder(net.b, [j, 8+j], 2.)
    return net

@pytest.mark.parametrize('recipe', ['best', 'fast', 'paper'])
def test_copies_at_two_places(recipe):
    net, x = planted_twice(True), torch.randn(16, 3, 8, 8)
    out = compress(net, x, recipe=recipe, layer_ratios={'a': 1/8})
    with torch.no_grad(): assert out.model.a.out_channels == 7 and relative(out.model(x), net(x)) < 1e-6

def test_a_copy_at_one_of_two_places():
    "It is handed on there, and not at the other."
    net, i, j = planted_twice(False), 2, 5
    old = net.b.weight.detach()
    out = compress(net, torch.randn(2, 3, 8, 8), recipe=RECIPES['paper'].but(name='', projection='copies'),
        layer_ratios={'a': 1/8})
    assert 5 not in out.kept['a']; new = out.model.b.weight.detach()
    assert torch.allclose(new[:, i], old[:, i]+old[:, j], atol=1e-5) # the first place: columns are added up
    assert torch.equal(new[:, 7+i], old[:, 8+i]) # the second: as it was


@pytest.mark.parametrize('kind', ['transposed', 'groups', 'ghost', 'functional'])
def test_equalising_changes_nothing(kind):
    "`dfq` balances channels against each other; the function stays."
    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12 if kind == 'ghost' else 6, 6, 1)
            self.t = nn.ConvTranspose2d(6, 6, 3, 2, groups=2 if kind == 'groups' else 1)
            self.cheap, self.c = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
            self.own = nn.Parameter(torch.randn(6, 6, 1, 1))
        def forward(self, x):
            y = F.relu(self.a(x))
            if kind in ('transposed', 'groups'): y = F.relu(self.t(y))
            if kind == 'ghost': y = torch.cat([y, self.cheap(y)], 1)
            if kind == 'functional': y = F.relu(F.conv2d(y, self.own))
            return self.c(F.relu(self.b(y))).mean((2, 3))
    net, x = roughen(Net()).eval(), torch.randn(4, 3, 8, 8)
    dfq = RECIPES['dfq'].but(name='', prepare=('equalise',), repair='none', per_channel=True)
    out = compress(net, x, recipe=dfq, pruning_ratio=0, weight_bits=16)
    with torch.no_grad(): assert relative(out.model(x), net(x)) < 1e-3


@pytest.mark.parametrize('act', [nn.ReLU(), nn.Sigmoid()], ids=str)
def test_multiples_in_a_sum(act):
    "Behind a sigmoid twice as much is not twice as much, also where it stands on the way of what is added."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.z, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
            self.act = act
        def forward(self, x): return self.b(F.relu(self.a(x)+self.act(self.z(x))))
    torch.manual_seed(0)
    net, i, j = Net().eval(), 1, 4
    with torch.no_grad():
        for m in (net.a, net.z): m.weight[j] = .01*m.weight[i]; m.bias[j] = .01*m.bias[i]
    old, copies = net.b.weight.detach(), RECIPES['paper'].but(name='', projection='copies')
    out = compress(net, torch.randn(2, 3, 8, 8), recipe=copies, pruning_ratio=1/6, sites='all')
    (kept,) = out.kept.values(); assert len(kept) == 5 and j not in kept
    handed = isinstance(act, nn.ReLU)
    assert torch.allclose(out.model.b.weight[:, i], old[:, i]+handed*.01*old[:, j], atol=1e-6)


@pytest.mark.parametrize('recipe', ['best', 'fast', 'paper', 'dfq'])
@pytest.mark.parametrize('shape', [(1, 6, 8, 8), (1, 1, 8, 8), (8,)], ids=str)
def test_a_parameter_for_each_pixel(shape, recipe):
    "Positions are added to channels: nothing is handed on through them, and the cut holds."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.p = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Parameter(torch.randn(shape))
        def forward(self, x): return self.b(F.relu(self.a(x)+self.p))
    torch.manual_seed(0)
    out = compress(Net().eval(), torch.randn(2, 3, 8, 8), recipe=recipe, pruning_ratio=.5, weight_bits=6)
    assert out.model.a.out_channels == 3
