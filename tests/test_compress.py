"What comes out of `compress` is an ordinary, smaller network; how a forward is written and wrapped does not matter."
import copy, functools, shutil, warnings
import pytest, torch, torch.nn as nn, torch.nn.functional as F
import udfc_nb
from torch.nn.utils import parametrizations
from udfc_nb import UDFCError, find_sites
from nets import Block, Chain, Perceptron, Residual, assert_unchanged, first_tensor, relative, roughen, snapshot

# What is tested here does not hang on the recipe; this one is quick, and the same ratio holds at every site.
compress = functools.partial(udfc_nb.compress, recipe='paper')
images = torch.randn(3, 3, 12, 12)


def reasons(out): return {r['layer']: r['reason'] for r in out.report.rows}
def n_params(m): return sum(p.numel() for p in m.parameters())
def run(m, *args):
    with torch.no_grad(): return m(*args)

def sound(model, inputs, out):
    "Runs, is finite, is smaller, is of the same class, and its modules say what their weights are."
    assert type(out.model) is type(model) and n_params(out.model) < n_params(model)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    y, z = first_tensor(run(model, *args)), first_tensor(run(out.model, *args))
    assert y.shape == z.shape and torch.isfinite(z).all()
    assert [n for n, _ in out.model.named_modules()] == [n for n, _ in model.named_modules()]
    for n, m in out.model.named_modules():
        if isinstance(m, nn.Linear): assert m.weight.shape == (m.out_features, m.in_features), n
        elif isinstance(m, nn.Conv2d): assert m.weight.shape[:2] == (m.out_channels, m.in_channels//m.groups), n
        elif isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert m.running_mean.shape == m.running_var.shape == m.weight.shape == (m.num_features,), n
        if getattr(m, 'bias', None) is not None and not isinstance(m, nn.MultiheadAttention):
            assert len(m.bias) == len(m.weight), n
    return out


# An ordinary network

NETS = dict(chain=lambda: (roughen(Chain()), images), residual=lambda: (roughen(Residual()), images),
    linear=lambda: (Perceptron().eval(), torch.randn(5, 6)), no_norm=lambda: (Chain(norm=False).eval(), images))

@pytest.fixture(params=NETS)
def done(request):
    model, x = NETS[request.param]()
    return model, x, compress(model, x, pruning_ratio=.4, weight_bits=6)

def test_class_and_size(done): sound(*done)

def test_kept_and_codes_describe_the_model(done):
    model, x, out = done
    mods, old = dict(out.model.named_modules()), dict(model.named_modules())
    for n, kept in out.kept.items():
        assert (kept.tolist() == sorted(set(kept.tolist()))
            and len(kept) == mods[n].weight.shape[0] < old[n].weight.shape[0])
    layers = [n for n, m in mods.items() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(out.codes) == sorted(layers)
    for n, q in out.codes.items():
        assert q.codes.min() >= 0 and q.codes.max() < 64 and q.bits == 6
        assert torch.equal(q.scale*(q.codes-q.zero), mods[n].weight)

def test_trains_a_step(done):
    _, x, out = done
    net = out.model.train()
    before = copy.deepcopy(net.state_dict())
    opt = torch.optim.SGD(net.parameters(), lr=.1)
    loss = F.cross_entropy(net(x), torch.arange(len(x)) % 4); loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape and torch.isfinite(p.grad).all()
        for p in net.parameters())
    opt.step()
    assert all(not torch.equal(before[n], p) for n, p in net.named_parameters() if p.grad.abs().max() > 0)
    after = F.cross_entropy(net(x), torch.arange(len(x)) % 4)
    assert torch.isfinite(after)

def test_moves(done):
    _, x, out = done
    y = run(out.model, x)
    net = copy.deepcopy(out.model)
    assert relative(run(net.double(), x.double()), y.double()) < 1e-5
    assert relative(run(net.to(torch.bfloat16), x.bfloat16()).float(), y) < .1
    meta = copy.deepcopy(out.model).to('meta')
    assert meta(x.to('meta')).shape == y.shape
    assert all(t.device.type == 'meta' for t in [*meta.parameters(), *meta.buffers()])

def test_state_dict(done, tmp_path):
    model, x, out = done
    torch.save(out.model.state_dict(), tmp_path/'small.pt')
    other = copy.deepcopy(model)
    for p in other.parameters(): p.data.normal_()
    again = compress(other, x, pruning_ratio=.4).model
    assert not torch.equal(run(again, x), run(out.model, x))
    again.load_state_dict(torch.load(tmp_path/'small.pt', weights_only=True))
    assert torch.equal(run(again, x), run(out.model, x))

def test_copies_and_pickles(done):
    _, x, out = done
    assert torch.equal(run(copy.deepcopy(out.model), x), run(out.model, x))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in out.model.modules())

def test_export(done):
    _, x, out = done
    shapes = {0: torch.export.Dim('batch', min=2)}
    program = torch.export.export(out.model.eval(), (x,), dynamic_shapes=(shapes,))
    for n in (2, 5):
        z = torch.randn(n, *x.shape[1:])
        assert relative(run(program.module(), z), run(out.model, z)) < 1e-5

@pytest.mark.skipif(shutil.which('g++') is None and shutil.which('clang++') is None,
    reason='torch.compile needs a C++ compiler')
def test_torch_compile():
    model, x = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))), images
    out = compress(model, x, pruning_ratio=.4)
    try: y = run(torch.compile(out.model), x)
    except Exception as e:
        try: torch.compile(nn.Linear(2, 2))(torch.randn(1, 2))
        except Exception: pytest.skip(f'the compiler does not work here: {type(e).__name__}')
        raise
    assert relative(y, run(out.model, x)) < 1e-4

@pytest.mark.gpu
def test_cuda():
    model, x = NETS['residual']()
    here = compress(model, x, pruning_ratio=.4, weight_bits=6)
    away = compress(model, x, pruning_ratio=.4, weight_bits=6, device='cuda')
    assert next(away.model.parameters()).device.type == 'cpu' and next(model.parameters()).device.type == 'cpu'
    assert relative(run(away.model, x), run(here.model, x)) < 1e-3
    out = compress(copy.deepcopy(model).cuda(), x.cuda(), pruning_ratio=.4, weight_bits=6)
    assert all(t.is_cuda for t in [*out.model.parameters(), *out.model.buffers()])
    assert relative(run(out.model, x.cuda()).cpu(), run(here.model, x)) < 1e-3
    assert all(torch.equal(out.kept[n], here.kept[n]) for n in here.kept)
    assert relative(run(here.model.cuda(), x.cuda()), run(out.model, x.cuda())) < 1e-3

def test_again():
    "The result can be compressed further."
    model, x = NETS['residual']()
    once = compress(model, x, pruning_ratio=.3).model
    sound(once, x, compress(once, x, pruning_ratio=.3))

def test_same_answer_twice(done):
    model, x, out = done
    again = compress(model, torch.randn_like(x), pruning_ratio=.4, weight_bits=6)
    assert all(torch.equal(a, b) for a, b in zip(out.model.state_dict().values(), again.model.state_dict().values()))


# How a model comes is how it goes

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(dtype):
    model, x = NETS['residual']()
    model = model.to(dtype)
    out = compress(model, x.to(dtype), pruning_ratio=.4)
    assert {t.dtype for t in out.model.parameters()} == {dtype}
    assert {n: b.dtype for n, b in out.model.named_buffers()} == {n: b.dtype for n, b in model.named_buffers()}
    reference = compress(copy.deepcopy(model).float(), x, pruning_ratio=.4)
    assert all(torch.equal(out.kept[n], reference.kept[n]) for n in reference.kept)
    for a, b in zip(out.model.parameters(), reference.model.parameters()):
        if dtype == torch.float64: torch.testing.assert_close(a, b.double(), rtol=1e-4, atol=1e-6) # computed in float64
        else: assert torch.equal(a, b.to(dtype)), 'computed in float32, then given back'
    assert torch.isfinite(run(out.model, x.to(dtype))).all()

def test_half_model_with_float_inputs():
    "`example_inputs` only say the shape; their type need not be the model's."
    model, x = NETS['residual']()
    assert next(compress(model.half(), x, pruning_ratio=.4).model.parameters()).dtype == torch.float16

def test_mixed_dtypes():
    model, x = NETS['chain']()
    model.head.half()
    out = compress(model, x, pruning_ratio=.4)
    assert {n: p.dtype for n, p in out.model.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}

def test_float64_weights_are_not_lost():
    "Nothing asked: a float64 network is the same bit for bit."
    model, x = NETS['residual']()
    model, x = model.double(), x.double()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1+1e-12)
    assert torch.equal(run(compress(model, x).model, x), run(model, x))

def test_channels_last():
    model, x = NETS['residual']()
    y = run(compress(model, x, pruning_ratio=.4).model, x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    out = compress(model, x, pruning_ratio=.4, weight_bits=8).model
    for n, p in out.named_parameters():
        if p.dim() == 4: assert p.is_contiguous(memory_format=torch.channels_last), n
    assert relative(run(compress(model, x, pruning_ratio=.4).model, x), y) < 1e-4

@pytest.mark.parametrize('wrap',
    [nn.DataParallel, lambda m: torch.compile(m), lambda m: nn.DataParallel(torch.compile(m))],
    ids=['DataParallel', 'compiled', 'both'])
def test_wrappers_are_looked_through(wrap):
    model, x = NETS['residual']()
    plain, out = (compress(model, x, pruning_ratio=.4, layer_bits={'head': 4}),
        compress(wrap(model), x, pruning_ratio=.4, layer_bits={'head': 4}))
    assert type(out.model) is Residual
    assert all(torch.equal(a, b) for a, b in zip(out.model.state_dict().values(), plain.model.state_dict().values()))
    assert reasons(out) == reasons(plain) and out.report.totals['params_before'] == plain.report.totals['params_before']

def test_scripted_model_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # torch.jit is on its way out
        model = torch.jit.trace(NETS['chain']()[0], images)
        with pytest.raises(UDFCError): compress(model, images, pruning_ratio=.4)


# What goes in and comes out

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Conv2d(3, 8, 3), nn.Conv2d(2, 6, 3), nn.Conv2d(14, 10, 3),
            nn.Linear(10, 4))
    def forward(self, x, depth, scale=1.):
        return self.head(F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(depth))], 1))).mean((2, 3)))

@pytest.mark.parametrize('form', ['tuple', 'list', 'dict', 'dict in another order'])
def test_several_inputs(form):
    model, x, depth = TwoInputs().eval(), torch.randn(2, 3, 9, 9), torch.randn(2, 2, 9, 9)
    inputs = {'tuple': (x, depth), 'list': [x, depth], 'dict': {'x': x, 'depth': depth},
        'dict in another order': {'depth': depth, 'x': x}}[form]
    out = sound(model, (x, depth), compress(model, inputs, pruning_ratio=.5))
    assert {n: len(k) for n, k in out.kept.items()} == {'a': 4, 'b': 3, 'c': 5}

class DictInDictOut(nn.Module):
    def __init__(self): super().__init__(); self.net, self.aux = Chain(), nn.Conv2d(10, 4, 1)
    def forward(self, batch):
        h = self.net.features(batch['image'])
        return {'logits': self.net.head(h.mean((2, 3))), 'map': self.aux(h), 'more': [batch['image'].mean()]}

def test_dict_in_dict_out():
    model = roughen(DictInDictOut())
    batch = {'image': images, 'name': 'kept as it is'}
    out = sound(model, (batch,), compress(model, batch, pruning_ratio=.5))
    assert set(run(out.model, batch)) == {'logits', 'map', 'more'}
    assert (reasons(out)['net.features.6'] == 'pruned'
        and reasons(out)['aux'] == reasons(out)['net.head'] == 'feeds an output')
    again = compress(model, (batch,), pruning_ratio=.5)
    assert all(torch.equal(a, b) for a, b in zip(out.model.state_dict().values(), again.model.state_dict().values()))

class ReturnsFeatures(Residual):
    def forward(self, x):
        a = F.relu(self.stem(x)); b = self.blocks(a)
        return a, [b, self.head(b.mean((2, 3)))]

def test_channels_that_leave_the_network_stay():
    out = compress(roughen(ReturnsFeatures()), images, pruning_ratio=.5)
    assert [t.shape for t in (run(out.model, images)[0], *run(out.model, images)[1])] == [(3, 8, 12, 12),
        (3, 8, 12, 12), (3, 5)]
    assert set(out.kept) == {'blocks.0.conv1', 'blocks.1.conv1'}

def test_a_submodule_alone():
    model = roughen(Residual())
    out = compress(model.blocks, torch.randn(2, 8, 6, 6), pruning_ratio=.5)
    model.blocks = out.model
    assert run(model, images).shape == (3, 5)


# Forms of writing the same forward

class Modules(nn.Module):
    "The forward in modules; subclasses say the same in functions and methods."
    def __init__(self):
        super().__init__()
        self.c1, self.b1, self.c2, self.b2 = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.c3, self.c4, self.fc1, self.fc2 = (nn.Conv2d(6, 9, 1), nn.Conv2d(14, 7, 3), nn.Linear(7*4, 12),
            nn.Linear(12, 5))
        self.relu, self.max, self.mean, self.flat, self.drop = (nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Dropout(.5))
    def forward(self, x):
        a = self.max(self.relu(self.b1(self.c1(x))))
        b = self.b2(self.c2(a))
        a = torch.cat((a, self.relu(b)), dim=1)
        return self.fc2(self.drop(self.relu(self.fc1(self.flat(self.mean(self.relu(self.c4(a))))))))

class Functions(Modules):
    def forward(self, x):
        a = F.max_pool2d(F.relu(self.b1(self.c1(x))), 2)
        b = self.b2(self.c2(a))
        a = torch.concat([a, torch.relu(b)], 1)
        h = F.adaptive_avg_pool2d(F.relu(self.c4(a), inplace=True), (2, 2))
        return self.fc2(F.dropout(F.relu(self.fc1(torch.flatten(h, 1))), .5, self.training))

class Methods(Modules):
    def forward(self, x):
        a = torch.max_pool2d(self.b1(self.c1(x)).relu_(), kernel_size=2, stride=2)
        b = self.b2(self.c2(a)).relu()
        a = torch.cat(tensors=[a, b], dim=-3)
        h = F.adaptive_avg_pool2d(self.c4(a).clamp_(min=0), 2)
        return self.fc2(self.fc1(h.view(h.size(0), -1)).clamp(min=0))

class Views(Modules):
    def forward(self, x):
        a = F.max_pool2d(self.b1(self.c1(x)).relu(), 2)
        a = torch.cat([a, self.b2(self.c2(a)).relu()], axis=1)
        h = F.adaptive_avg_pool2d(self.c4(a).relu(), 2)
        n = h.shape[0]
        return self.fc2(self.fc1(h.contiguous().reshape(n, -1)).relu())

class Flattens(Modules):
    def forward(self, x):
        a = F.max_pool2d(F.relu_(self.b1(self.c1(x))), 2)
        a = torch.cat([a, F.threshold(self.b2(self.c2(a)), 0., 0.)], 1)
        h = F.adaptive_avg_pool2d(torch.clamp(self.c4(a), min=0), 2)
        return self.fc2(F.relu(self.fc1(h.flatten(start_dim=1))))

@pytest.mark.parametrize('form', [Functions, Methods, Views, Flattens])
def test_forms_give_the_sites_of_the_module_form(form):
    model = roughen(Modules())
    other = form().eval(); other.load_state_dict(model.state_dict())
    assert torch.equal(run(other, images), run(model, images))
    a, b = compress(model, images, pruning_ratio=.4), compress(other, images, pruning_ratio=.4)
    assert list(a.kept) == ['c1', 'c2', 'c4', 'fc1'] and reasons(a) == reasons(b)
    assert all(torch.equal(a.kept[n], b.kept[n]) for n in a.kept)
    assert torch.equal(run(a.model, images), run(b.model, images))

class Means(nn.Module):
    def __init__(self, mean, add):
        super().__init__()
        self.stem, self.block, self.last, self.fc, self.mean, self.add = (nn.Conv2d(3, 6, 3), Block(6, 8),
            nn.Conv2d(6, 9, 1), nn.Linear(9, 4), mean, add)
    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.mean(F.relu(self.last(self.add(x, self.block(x))))))

def iadd(a, b): a += b; return a
MEANS = dict(dims=lambda x: x.mean((2, 3)), listed=lambda x: x.mean([2, 3]), negative=lambda x: x.mean(dim=(-2, -1)),
    torch=lambda x: torch.mean(x, dim=[2, 3]),
    twice=lambda x: x.mean(3).mean(2), kept=lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    pool=lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    index=lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], flat=lambda x: x.flatten(2).mean(-1))
ADDS = dict(operator=lambda a, b: a+b, inplace=iadd, torch=torch.add, method=lambda a, b: a.add(b), method_=lambda a,
    b: a.add_(b), minus=lambda a, b: a-(-b))

@pytest.mark.parametrize('mean', MEANS)
def test_forms_of_the_mean(mean):
    model = roughen(Means(MEANS[mean], ADDS['operator']))
    out = sound(model, images, compress(model, images, pruning_ratio=.4))
    assert list(out.kept) == ['block.conv1', 'last'] and out.model.fc.in_features == 5

@pytest.mark.parametrize('add', ADDS)
def test_forms_of_the_add(add):
    model = roughen(Means(MEANS['dims'], ADDS[add]))
    out = sound(model, images, compress(model, images, pruning_ratio=.4))
    assert list(out.kept) == ['block.conv1', 'last']
    assert reasons(out)['stem'] == reasons(out)['block.conv2'] == 'tied by an add'


# Modules with a catch: handled, kept with a reason, or refused by name; never wrong

def kept_back(model, x, *layers, ratio=.5):
    "Runs; the given layers keep all channels, with a reason that is not 'pruned'."
    out = compress(model, x, pruning_ratio=ratio)
    mods, old, why = dict(out.model.named_modules()), dict(model.named_modules()), reasons(out)
    for n in layers:
        assert mods[n].weight.shape[0] == old[n].weight.shape[0] and why[n] not in ('pruned', ''), (n, why[n])
    assert first_tensor(run(out.model, x)).shape == first_tensor(run(model, x)).shape
    zero = compress(model, x)
    assert torch.equal(run(zero.model, x), run(model, x))
    return out, why

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last, self.fc = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 10, 3), nn.Linear(10, 4))
    def forward(self, x):
        x = F.relu(self.first(x))
        for _ in range(3): x = F.relu(self.again(x))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))

def test_shared_convolution():
    _, why = kept_back(Shared().eval(), images, 'first', 'again')
    assert 'shared' in why['again'] and why['last'] == 'pruned'

def test_shared_parameter():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    model[4].weight = model[2].weight
    out, why = kept_back(model, images, '2', '4')
    assert out.model[4].weight is out.model[2].weight

def test_same_module_under_two_names():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3)).eval()
    model.insert(4, model[2])
    kept_back(model, images, '0', '2')

def test_shared_norm():
    bn = nn.BatchNorm2d(8)
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), bn, nn.ReLU(), nn.Conv2d(8, 8, 3), bn, nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)))
    kept_back(model, images, '0', '3')

@pytest.mark.parametrize('how',
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.weight_norm,
    nn.utils.spectral_norm], ids=lambda f: f'{f.__module__.split(".")[-1]}.{f.__name__}')
def test_parametrised(how):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); how(model[4])
    model.eval(); y = run(model, images)
    for kwargs in (dict(), dict(pruning_ratio=.5), dict(pruning_ratio=.5, weight_bits=6)):
        try: out = compress(model, images, **kwargs)
        except UDFCError as e: assert '4' in str(e); continue # refused by name
        z = run(out.model, images)
        assert z.shape == y.shape and torch.isfinite(z).all()
        if not kwargs: assert torch.equal(z, y)
        if 'weight_bits' in kwargs: # what the report calls rounded is rounded
            row = next(r for r in out.report.rows if r['layer'] == '4')
            if row['bits'] == 6:
                assert max(len(f.unique()) for f in dict(out.model.named_modules())['4'].weight.detach().flatten(
                    1)) <= 64
        assert torch.equal(run(model, images), y)

@pytest.mark.parametrize('norm',
    [lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(8, 8), lambda: nn.GroupNorm(1, 8), lambda: nn.InstanceNorm2d(8),
    lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    lambda: nn.LayerNorm([8, 10, 10]), lambda: nn.LocalResponseNorm(3),
    lambda: nn.BatchNorm2d(8, track_running_stats=False), lambda: nn.Softmax2d(), lambda: nn.PReLU(8)],
    ids=['group2', 'group8', 'group1', 'instance', 'instance-tracked', 'layer', 'lrn', 'batch-untracked', 'softmax',
    'prelu'])
def test_other_norms(norm):
    "Channels that another normalisation mixes or holds parameters for: kept with a reason, or cut together with it."
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    out = compress(model, images, pruning_ratio=.5)
    why = reasons(out)
    assert why['3'] == 'pruned' and run(out.model, images).shape == (3, 3)
    if out.model[0].out_channels == 8: assert why['0'] not in ('pruned', '')
    assert torch.equal(run(compress(model, images).model, images), run(model, images))

WHY = dict(group=(lambda: nn.GroupNorm(2, 8), 'pruned'),
    group1=(lambda: nn.GroupNorm(1, 8), 'normalised across channels'),
    layer=(lambda: nn.LayerNorm([8, 10, 10]), 'normalised across channels'),
    instance=(lambda: nn.InstanceNorm2d(8), 'pruned'),
    untracked=(lambda: nn.BatchNorm2d(8, track_running_stats=False), 'pruned'),
    softmax=(nn.Softmax2d, 'normalised across channels'),
    glu=(lambda: nn.Sequential(nn.GLU(1), nn.Conv2d(4, 8, 1)), 'pruned'),
    cumsum=(lambda: Call(lambda x: torch.cumsum(x, 1)), 'normalised across channels'),
    slice=(lambda: Call(lambda x: torch.cat([x[:, 4:], x[:, :4]], 1)), 'has a hard-coded channel count: slice at'),
    constant=(lambda: Call(lambda x: x*torch.arange(8.)[:, None, None]), 'has a hard-coded channel count: mul at'),
    rule=(lambda: Call(lambda x: torch.special.erfcx(torch.linalg.matrix_exp(x))),
    'passes an operation without a rule: linalg_matrix_exp at'),
    chunk=(lambda: Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), 'pruned'))

class Call(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

@pytest.mark.parametrize('case', WHY)
def test_the_reason_names_what_is_in_the_way(case):
    "A reason that is an operation's comes with its file and line."
    make, reason = WHY[case]
    if reason.endswith(' at'):
        line = next(i for i, l in enumerate(open(__file__), 1) if l.startswith(f'    {case}='))
        reason += f' test_compress.py:{line}'
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), make(), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    before = set(vars(model))
    g = find_sites(model, images)
    assert g.reasons['0'] == reason and g.reasons['3'] == 'pruned' and set(vars(model)) == before

class Learned(nn.Module):
    "Slopes, a factor and a shift for each channel; a factor for all; a gate over a concatenation."
    def __init__(self):
        super().__init__()
        self.a, self.act, self.gamma, self.beta, self.one = (nn.Conv2d(3, 8, 3), nn.PReLU(8),
            nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.tensor(2.)))
        self.b, self.c, self.d, self.excite, self.head = (nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1),
            nn.Linear(9, 9), nn.Linear(9, 3))
    def forward(self, x):
        x = self.b(self.gamma*self.act(self.a(x))+self.beta)*self.one
        y = torch.cat([self.c(x), self.d(x)], 1)
        return self.head((y*self.excite(y.mean((2, 3))).sigmoid()[..., None, None]).mean((2, 3)))

@pytest.mark.parametrize('recipe', ['best', 'paper', 'prune', 'neuron-merging'])
def test_learned_numbers_per_channel(recipe, tmp_path):
    from udfc_nb import load
    model = Learned().eval()
    before = snapshot(model)
    out = compress(model, images, pruning_ratio=.5, weight_bits=6, recipe=recipe,
        **({'budget': 'uniform'} if recipe == 'best' else {}))
    assert_unchanged(model, before)
    why, net = reasons(out), out.model
    assert why['a'] == why['b'] == why['c'] == why['d'] == why['excite'] == 'pruned'
    assert (net.c.out_channels, net.d.out_channels, net.excite.in_features, net.excite.out_features,
        net.head.in_features) == (2, 2, 4, 4, 4)
    assert (net.act.num_parameters == net.gamma.numel() == net.beta.numel() == net.b.in_channels == 4
        and net.one.numel() == 1)
    y = run(net, images)
    assert torch.isfinite(y).all() and y.shape == (3, 3)
    out.save(tmp_path/'small.safetensors')
    again = load(tmp_path/'small.safetensors', model)
    assert torch.equal(run(again, images), y) and again.act.num_parameters == 4

class SamePadding(nn.Conv2d):
    "Pads by what it sees, as timm's does."
    def forward(self, x):
        k = self.kernel_size[0]//2
        return F.conv2d(F.pad(x, [k]*4), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None,
            training=True).reshape_as(self.weight), self.bias, padding=1)

class DropPath(nn.Module):
    def forward(self, x):
        if not self.training: return x
        return x*x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(.9)

class Effective(nn.Module):
    "A gate of one layer."
    def __init__(self): super().__init__(); self.fc = nn.Conv2d(8, 8, 1)
    def forward(self, x): return x*F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))

class Neighbours(nn.Module):
    "A gate from neighbouring channels (ECA)."
    def __init__(self): super().__init__(); self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    def forward(self, x):
        return x*self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1).sigmoid()

class Where(nn.Module):
    "A gate for each position (CBAM)."
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(2, 1, 3, padding=1)
    def forward(self, x): return x*self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

class Norm2d(nn.LayerNorm):
    def __init__(self): super().__init__(8)
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0,
            3, 1, 2)

class Blur(nn.Module):
    def __init__(self): super().__init__(); self.register_buffer('filt', torch.ones(8, 1, 3, 3)/9)
    def forward(self, x): return F.conv2d(F.pad(x, (1, 1, 1, 1), 'reflect'), self.filt, stride=2, groups=x.shape[1])

class Response(nn.Module):
    "Global response normalisation (ConvNeXt V2)."
    def __init__(self): super().__init__(); self.g = nn.Parameter(torch.rand(1, 8, 1, 1))
    def forward(self, x):
        n = x.norm(2, dim=(2, 3), keepdim=True)
        return x+self.g*(x*(n/(n.mean(1, keepdim=True)+1e-6)))

OWN_WAY, OF_A_KIND, ACROSS = ('holds its weights in its own way', 'is of a kind that is not pruned',
    'normalised across channels')
LIKE_TIMM = dict(same_padding=(lambda: SamePadding(8, 8, 3), {'0': 'pruned', '3': 'pruned'}),
    standardised=(lambda: Standardised(8, 8, 3), {'0': OWN_WAY, '3': 'pruned'}),
    drop_path=(DropPath, {'0': 'pruned'}), effective=(Effective, {'0': 'pruned', '3.fc': 'pruned'}),
    neighbours=(Neighbours, {'0': 'meets other channels in a product', '3.conv': OF_A_KIND}),
    where=(Where, {'0': ACROSS, '3.conv': 'has one channel'}), norm2d=(Norm2d, {'0': ACROSS}),
    blur=(Blur, {'0': 'pruned'}), response=(Response, {'0': ACROSS}))

@pytest.mark.parametrize('case', LIKE_TIMM)
def test_timm_like(case):
    """The blocks of the large model collections: pruned, or kept with what is in the way; weights that stay float
    are reported so."""
    make, want = LIKE_TIMM[case]
    model = roughen(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), make(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    assert torch.equal(run(compress(model, images).model, images), run(model, images))
    out = compress(model, images, pruning_ratio=.5, weight_bits=6)
    why = reasons(out)
    assert why == {**want, '4': 'pruned', '8': 'feeds an output'} and run(out.model, images).shape == (3, 3)
    for r in out.report.rows:
        new, old = (m.get_submodule(r['layer']).weight for m in (out.model, model))
        levels = max(len(f.unique()) for f in new.flatten(1))
        assert levels <= 64 if r['bits'] == 6 else torch.equal(new, old[out.kept.get(r['layer'], slice(None))])

def test_a_parameter_that_is_used_twice_keeps_its_channels():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.p = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1),
                nn.Parameter(torch.rand(8, 1, 1)))
        def forward(self, x): return self.c(self.p*self.b(self.p*self.a(x))).mean((2, 3))
    _, why = kept_back(Twice().eval(), images, 'a', 'b')
    assert why['a'] == why['b'] == 'shared by several calls'

class NormAct(nn.BatchNorm2d):
    "A batch norm that holds its activation, by calling its parent or the function."
    def __init__(self, n, act, direct): super().__init__(n); self.act, self.direct = act, direct
    def forward(self, x):
        if self.direct:
            return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                0., self.eps))
        return self.act(super().forward(x))

@pytest.mark.parametrize('direct', [False, True], ids=['parent', 'function'])
@pytest.mark.parametrize('recipe', ['best', 'paper'])
def test_norm_that_holds_its_activation(direct, recipe):
    "The same network with norm and activation apart says what is right."
    def net(norm):
        return nn.Sequential(nn.Conv2d(3, 8, 3), *norm(8), nn.Conv2d(8, 6, 3), *norm(6), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(6, 3))
    apart, joint = (roughen(net(lambda n: (nn.BatchNorm2d(n), nn.ReLU()))),
        net(lambda n: (NormAct(n, nn.ReLU(), direct),)).eval())
    joint.load_state_dict(dict(zip(joint.state_dict(), apart.state_dict().values())))
    before = snapshot(joint)
    a, b = (compress(m, images, pruning_ratio=.5, weight_bits=6, recipe=recipe) for m in (apart, joint))
    assert_unchanged(joint, before)
    assert (b.model[1].num_features == a.model[1].num_features < 8 and reasons(b)['0'] == reasons(b)['2'] == 'pruned'
        and not b.report.notes)
    assert relative(run(b.model, images), run(a.model, images)) < 1e-5

class TwoOutputs(nn.Module):
    "Two images in, a dict of a tuple and a tensor out."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 8, 3), nn.Conv2d(1, 6, 3), nn.Conv2d(14, 10, 1),
            nn.Conv2d(10, 4, 1))
    def forward(self, image, depth):
        y = F.relu(self.c(torch.cat([F.relu(self.a(image)), F.relu(self.b(depth))], 1)))
        return dict(all=(self.d(y), y.mean((2, 3))), low=self.d.weight.sum())

@pytest.mark.parametrize('form', ['tuple', 'dict'])
def test_several_outputs(form):
    model, depth = TwoOutputs().eval(), torch.randn(3, 1, 12, 12)
    inputs = (images, depth) if form == 'tuple' else dict(depth=depth, image=images)
    out = compress(model, inputs, pruning_ratio=.5, recipe='paper')
    # by the sum of d's weights
    assert reasons(out) == dict(a='pruned', b='pruned', c='normalised across channels', d='normalised across channels')
    with torch.no_grad(): got, want = out.model(images, depth), model(images, depth)
    assert got['all'][0].shape == want['all'][0].shape and got['all'][1].shape == want['all'][1].shape

def test_sync_and_frozen_batch_norm():
    from torchvision.ops import FrozenBatchNorm2d
    plain = roughen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    want = run(compress(plain, images, pruning_ratio=.5).model, images)
    sync, frozen = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)).eval(), copy.deepcopy(plain)
    frozen[1] = FrozenBatchNorm2d(8); frozen[1].load_state_dict(plain[1].state_dict())
    for model in (sync, frozen):
        out = compress(model, images, pruning_ratio=.5)
        assert type(out.model[1]) is type(model[1]) and len(out.model[1].running_mean) == 4
        assert relative(run(out.model, images), want) < 1e-4

class HardView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mid, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6*4, 5)
    def forward(self, x): return self.fc(F.adaptive_avg_pool2d(F.relu(self.mid(F.relu(self.conv(x)))), 2).view(-1, 24))

def test_hard_coded_view():
    out, why = kept_back(HardView().eval(), images, 'mid')
    assert 'hard-coded' in why['mid'] and why['conv'] == 'pruned'

class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c//2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))

def test_channel_shuffle():
    "Equally many of each half go, and what the next layer then reads is what it read, the removed channels at zero."
    model = Shuffle().eval()
    out = compress(model, images, layer_ratios={'a': .5}, recipe='prune')
    kept, silent = out.kept['a'].tolist(), copy.deepcopy(model)
    assert reasons(out)['a'] == 'pruned' and sum(k < 4 for k in kept) == sum(k >= 4 for k in kept) == 2
    with torch.no_grad(): silent.b.weight[:, [2*(k % 4)+k//4 for k in range(8) if k not in kept]] = 0
    assert relative(run(out.model, images), run(silent, images)) < 1e-5
    assert set(reasons(compress(model, images, pruning_ratio=.5)).values()) == {'pruned', 'feeds an output'}

class OddOps(nn.Module):
    "Operations across channels, for which nothing but keeping is right."
    def __init__(self, op):
        super().__init__()
        self.a, self.c, self.fc, self.op = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3), op
    def forward(self, x): return self.fc(F.relu(self.c(self.op(F.relu(self.a(x))))).mean((2, 3)))

ODD = dict(softmax=lambda x: F.softmax(x, 1), normalize=lambda x: F.normalize(x, dim=1), flip=lambda x: x.flip(1),
    roll=lambda x: x.roll(1, 1), chunk=lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    split=lambda x: torch.cat(torch.split(x, 4, 1), 1), mean=lambda x: x-x.mean(1, keepdim=True),
    minus_one=lambda x: x*torch.arange(8.)[:, None, None], index=lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
    cumsum=lambda x: x.cumsum(1), matmul=lambda x: torch.einsum('nchw,cd->ndhw', x, torch.eye(8)),
    glu=lambda x: torch.cat([F.glu(x, 1)]*2, 1), unsqueeze=lambda x: x.unsqueeze(1).squeeze(1),
    transpose=lambda x: x.transpose(2, 3), permute=lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    power=lambda x: x**2, rsub=lambda x: 1-x, divide=lambda x: 2/(x+1), maximum=lambda x: torch.maximum(x, x*.5),
    where=lambda x: torch.where(x > .1, x, torch.zeros_like(x)), pad=lambda x: F.pad(x, (1, 1, 1, 1), value=.5),
    pad_channels=lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))[:, 2:10], shuffle=lambda x: F.channel_shuffle(x, 2),
    pixel=lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), sum=lambda x: x+x.sum((2, 3), keepdim=True),
    group_norm=lambda x: F.group_norm(x, 4), layer_norm=lambda x: F.layer_norm(x, x.shape[1:]),
    instance_norm=lambda x: F.instance_norm(x), expand=lambda x: x[:, :, None].expand(-1, -1, 1, -1, -1)[:, :, 0],
    one_channel=lambda x: x*x[:, :1])

@pytest.mark.parametrize('last', [5, 7])
@pytest.mark.parametrize('op', ODD)
def test_unusual_operations(op, last):
    """Whatever stands between two convolutions: what comes out runs, and a channel that is gone had no other effect
    than by itself."""
    model = OddOps(ODD[op]).eval()
    with torch.no_grad(): model.a.weight[last] = .001*model.a.weight[last]; model.a.bias[last] = 0 # the one that goes
    y = run(model, images)
    out = compress(model, images, layer_ratios={'a': 1/8}, recipe='prune')
    z = run(out.model, images)
    assert z.shape == y.shape
    # some were removed: the network with all that comes of them, where `c` reads it, set to zero says what is right
    if out.model.a.out_channels < 8:
        gone = [k for k in range(8) if k not in out.kept['a'].tolist()]
        assert last in gone and reasons(out)['a'] == 'pruned'
        with torch.no_grad():
            h = F.relu(model.a(images)); other = h.clone(); other[:, gone] += torch.rand(len(gone), *h.shape[2:])
            moved = (model.op(h)-model.op(other)).abs().amax((0, 2, 3)) > 0
            silent = copy.deepcopy(model); silent.c.weight[:, moved] = 0
        assert moved.sum() == 8-out.model.c.in_channels
        assert relative(z, run(silent, images)) < 1e-5
    else: assert reasons(out)['a'] not in ('pruned', '')
    assert torch.equal(run(compress(model, images).model, images), y)
    heavy = compress(model, images, pruning_ratio=.5)
    assert run(heavy.model, images).shape == y.shape and reasons(heavy)['c'] == 'pruned'

@pytest.mark.parametrize('layer',
    [nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(8, 6, 3, padding=1, padding_mode='reflect'),
    nn.Conv2d(8, 6, 3, dilation=2, padding='same'), nn.LazyConv2d(6, 3)],
    ids=lambda l: type(l).__name__+str(getattr(l, 'groups', '')))
def test_other_convolutions(layer):
    last = nn.Conv2d(16 if layer.groups == 8 else 6, 5, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, nn.ReLU(), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 3)).eval()
    y = run(model, images)
    out = compress(model, images, pruning_ratio=.4, weight_bits=8)
    assert run(out.model, images).shape == y.shape and reasons(out)['4'] == 'pruned'
    assert type(out.model[2]) is type(layer)
    assert torch.equal(run(compress(model, images).model, images), y)

@pytest.mark.parametrize('conv,bn,shape',
    [(nn.Conv1d, nn.BatchNorm1d, (2, 3, 20)), (nn.Conv3d, nn.BatchNorm3d, (2, 3, 6, 6, 6))])
def test_other_dimensions(conv, bn, shape):
    model = nn.Sequential(conv(3, 8, 3), bn(8), nn.ReLU(), conv(8, 6, 3), nn.ReLU(), nn.Flatten(2)).eval()
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body, self.fc = model, nn.Linear(6, 3)
        def forward(self, x): return self.fc(self.body(x).mean(2))
    net, x = Net().eval(), torch.randn(*shape)
    out = compress(net, x, pruning_ratio=.5, weight_bits=8)
    assert run(out.model, x).shape == (2, 3) and torch.equal(run(compress(net, x).model, x), run(net, x))

class Attention(nn.Module):
    "A transformer block behind a patch convolution."
    def __init__(self):
        super().__init__()
        self.patch, self.att, self.norm = (nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8))
        self.fc1, self.fc2, self.head = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 3)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norm(x); x = x + self.att(y, y, y)[0]
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))

def test_transformer_like():
    model = Attention().eval()
    out, why = kept_back(model, images, 'patch', 'fc2', 'head')
    assert why['fc1'] == 'pruned' and out.model.fc1.out_features == 10
    assert run(compress(model, images, pruning_ratio=.5, weight_bits=8).model, images).shape == (3, 3)

def test_linear_on_sequences():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 7, 6)
    out = sound(model, x, compress(model, x, pruning_ratio=.5))
    assert [out.model[i].in_features for i in (0, 2, 4)] == [6, 6, 4]

class Dead(Chain):
    def __init__(self): super().__init__(); self.never, self.unread = nn.Conv2d(3, 9, 3), nn.Conv2d(3, 7, 3)
    def forward(self, x): self.unread(x); return super().forward(x)

def test_layers_that_are_not_used_are_reported():
    out, why = kept_back(roughen(Dead()), images, 'never', 'unread')
    assert 'not reached' in why['never'] and 'read by no layer' in why['unread']

class Subclassed(nn.Conv2d):
    def forward(self, x): return super().forward(x)*2

def test_overridden_forward_is_not_taken_for_the_stock_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Subclassed(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    kept_back(model, images)

@pytest.mark.parametrize('act', [nn.ReLU, nn.SiLU])
def test_a_forward_hook_that_changes_the_output(act):
    """A hook is not in the trace: the layer that carries one may not be taken for linear without it, or the hook
    stays and works."""
    model = roughen(Chain(act=act))
    model.features[0].register_forward_hook(lambda m, i, o: o*2)
    y = run(model, images)
    out = compress(model, images)
    assert torch.equal(run(out.model, images), y)

def test_gamma_zero_everywhere():
    model = roughen(Residual())
    with torch.no_grad(): model.blocks[0].bn1.weight.zero_(); model.blocks[1].conv1.weight.zero_()
    for recipe in ('best', 'paper', 'prune', 'neuron-merging', 'neuron-merging-derived'):
        assert torch.isfinite(run(compress(model, images, pruning_ratio=.5, weight_bits=4, recipe=recipe).model,
            images)).all()


# What the caller may say

def test_ignored_layers():
    model = roughen(Residual())
    out = compress(model, images, pruning_ratio=.5, weight_bits=4, ignored_layers=['blocks.0.conv1', 'head'])
    assert (set(out.kept) == {'blocks.1.conv1'}
        and reasons(out)['blocks.0.conv1'] == reasons(out)['head'] == 'ignored by the caller')
    for n in ('blocks.0.conv1.weight', 'head.weight', 'head.bias'):
        assert torch.equal(out.model.get_parameter(n), model.get_parameter(n)), n
    assert not {'blocks.0.conv1', 'head'} & set(out.codes) and {'stem', 'blocks.0.conv2'} <= set(out.codes)

def test_ignored_container():
    model = roughen(Residual())
    out = compress(model, images, pruning_ratio=.5, weight_bits=4, ignored_layers=['blocks.0'])
    assert set(out.kept) == {'blocks.1.conv1'}
    for a, b in zip(out.model.blocks[0].state_dict().values(), model.blocks[0].state_dict().values()):
        assert torch.equal(a, b)
    assert reasons(out)['blocks.0.conv1'] == reasons(out)['blocks.0.conv2'] == 'ignored by the caller'

def test_ignored_consumer_still_gets_fewer_inputs_or_its_producer_stays():
    model = roughen(Chain())
    out = compress(model, images, pruning_ratio=.5, ignored_layers=['features.3'])
    assert out.model.features[3].out_channels == 12 and run(out.model, images).shape == (3, 5)

def test_layer_ratios():
    model = roughen(Chain())
    out = compress(model, images, pruning_ratio=.5, layer_ratios={'features.0': 0, 'features.3': .75})
    assert [m.out_channels for m in out.model.features if isinstance(m, nn.Conv2d)] == [8, 3, 5]
    row = {r['layer']: r for r in out.report.rows}
    assert row['features.0']['out'] == row['features.0']['out_before'] == 8 and row['features.0']['reason'] != 'pruned'
    assert row['features.3']['out'] == 3 and row['features.3']['reason'] == 'pruned' and row['features.3']['error'] > 0

def test_layer_bits():
    model = roughen(Chain())
    out = compress(model, images, weight_bits=4, layer_bits={'features.0': 8, 'features.3': None, 'head': 2})
    levels = {n: max(len(f.unique()) for f in m.weight.flatten(1)) for n, m in out.model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert (16 < levels['features.0'] <= 256 and levels['features.3'] > 64 and levels['features.6'] <= 16
        and levels['head'] <= 4)
    assert {r['layer']: r['bits'] for r in out.report.rows} == {'features.0': 8, 'features.3': 32, 'features.6': 4,
        'head': 2}

@pytest.mark.parametrize('bits', [1, 2, 3, 4, 6, 8, 16])
def test_grid_of_the_weights(bits):
    """Eq. 3, written out: every weight of a row lies at M·(2q/(2ᵏ−1) − 1) for a whole q, within half a step of where
    it was."""
    model = roughen(Residual())
    out = compress(model, images, weight_bits=bits, recipe='prune') # without s̃, so that rows can be compared
    for n, m in out.model.named_modules():
        if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
        W, Q = dict(model.named_modules())[n].weight.detach().flatten(1).double(), m.weight.detach().flatten(1).double()
        M = W.abs().amax(1, keepdim=True)
        q = (Q/M+1)*(2**bits-1)/2
        assert (q-q.round()).abs().max() < 2e-2 and q.round().min() >= 0 and q.round().max() <= 2**bits-1
        assert ((W-Q).abs() <= M/(2**bits-1)*(1+1e-3)+1e-7).all()

def test_progress_is_told():
    seen = []
    compress(roughen(Chain()), images, pruning_ratio=.5, progress=lambda done, total,
        layer: seen.append((done, total, layer)))
    assert ([s[0] for s in seen] == sorted(s[0] for s in seen) and seen[-1][0] == seen[-1][1]
        and {s[1] for s in seen} == {seen[0][1]})
    assert {'features.0', 'head'} <= {s[2] for s in seen}

def test_quiet(capsys):
    compress(roughen(Chain()), images, pruning_ratio=.5, weight_bits=4)
    said = capsys.readouterr()
    assert said.out == said.err == ''

def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compress(roughen(Residual()), images, pruning_ratio=.5, weight_bits=4)

def test_info_agrees_with_compress():
    model = roughen(Residual())
    g = find_sites(model, images)
    out = compress(model, images, pruning_ratio=.5)
    assert [s.name for s in g.sites] == list(out.kept) and {n: r for n, r in g.reasons.items()} == reasons(out)
