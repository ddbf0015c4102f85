"Wrong arguments give a typed error that names the culprit and a way out; nothing is changed by success or failure."
import copy, sys
import numpy as np
import pytest, torch, torch.nn as nn
import udfc_nb.errors as E
from udfc_nb import compress
from nets import Chain, Residual, assert_unchanged, roughen, snapshot

x = torch.randn(2, 3, 8, 8)


def refused(kind, *parts, model=None, inputs=x, **kwargs):
    "The error of type `kind`, whose text holds all `parts`; the network is as it was."
    model = roughen(Chain()) if model is None else model
    before = snapshot(model)
    with pytest.raises(kind) as info: compress(model, inputs, **kwargs)
    assert isinstance(info.value, E.UDFCError)
    for p in parts: assert str(p) in str(info.value), f'{p!r} not in {info.value}'
    assert info.value.hint, 'the way out is missing'
    assert_unchanged(model, before)
    return info.value


@pytest.mark.parametrize('ratio', [-.1, 1, 1., 2, float('nan'), float('inf'), '0.5', None, True])
def test_ratio(ratio): refused(E.RatioError, repr(ratio), pruning_ratio=ratio)

@pytest.mark.parametrize('ratio', [-.1, 1, float('nan'), 'half'])
def test_layer_ratio(ratio):
    e = refused(E.RatioError, 'features.0', repr(ratio), layer_ratios={'features.0': ratio})
    assert e.layer == 'features.0'

@pytest.mark.parametrize('bits', [0, 33, '4', -1, float('nan'), .5, True])
def test_bits(bits): refused(E.BitsError, repr(bits), weight_bits=bits)

@pytest.mark.parametrize('bits', [0, 33, '4'])
def test_layer_bits(bits):
    e = refused(E.BitsError, 'features.3', repr(bits), layer_bits={'features.3': bits})
    assert e.layer == 'features.3'

def test_one_bit_on_a_symmetric_grid():
    from udfc_nb.recipes.recipe import get_recipe
    refused(E.BitsError, weight_bits=1, recipe=get_recipe('paper').but(grid='symmetric'))

@pytest.mark.parametrize('recipe', ['papre', '', None, 3])
def test_recipe(recipe): refused(E.RecipeError, repr(recipe), 'paper', recipe=recipe)

@pytest.mark.parametrize('field,value',
    [('criterion', 'l3'), ('projection', 'magic'), ('grid', 'log'), ('scale', 'everywhere'), ('lam1', -1.),
    ('lam1', float('nan')), ('lam2', float('inf'))])
def test_recipe_part(field, value):
    from udfc_nb.recipes.recipe import get_recipe
    with pytest.raises(E.RecipeError, match=field): get_recipe('paper').but(**{field: value})

@pytest.mark.parametrize('argument', ['ignored_layers', 'layer_ratios', 'layer_bits'])
def test_layer_name(argument):
    names = (('features.00',) if argument == 'ignored_layers'
        else {'features.00': .5 if argument == 'layer_ratios' else 4})
    e = refused(E.LayerNameError, 'features.00', argument, 'features.0', **{argument: names})
    assert e.layer == 'features.00'

@pytest.mark.parametrize('name,value',
    [('features.3.weight', float('nan')), ('features.4.running_var', float('nan')), ('head.bias', float('inf'))])
def test_not_finite(name, value):
    model = roughen(Chain())
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.view(-1)[1] = value
    refused_nan = pytest.raises(E.NonFiniteError)
    with refused_nan as info: compress(model, x, pruning_ratio=.3)
    assert name in str(info.value) and info.value.layer == name and info.value.hint


class Branching(Chain):
    "Which way it goes depends on the data."
    def forward(self, x):
        x = self.features(x)
        if x.sum() > 0: x = x + 1 # the culprit
        return self.head(self.pool(x).flatten(1))

def test_control_flow_on_values_is_followed():
    "The branch that the example takes is what is recorded; the channels that decide it stay, and the next are free."
    model = roughen(Branching())
    before = snapshot(model)
    out = compress(model, x, pruning_ratio=.5, recipe='paper')
    assert_unchanged(model, before)
    assert {r['layer']: r['reason'] for r in out.report.rows} == {'features.0': 'pruned', 'features.3': 'pruned',
        'features.6': 'normalised across channels', 'head': 'feeds an output'}
    assert out.model.features[6].weight.shape[:2] == (10, 6) and out.model(x).shape == (2, 5)

@torch.library.custom_op('udfc_tests::rectify', mutates_args=())
def rectify(x:torch.Tensor)->torch.Tensor: return x.clamp(min=0)
@rectify.register_fake
def _(x): return torch.empty_like(x)

class Call(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

def with_middle(f):
    return nn.Sequential(nn.Conv2d(3, 8, 3), Call(f), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3)).eval()

HARD_TO_TRACE = dict(loop=lambda x: torch.stack([i.relu() for i in x]), size=lambda x: x if x.shape[0] > 1 else 2*x,
    vmap=lambda x: torch.vmap(torch.relu)(x))

@pytest.mark.parametrize('case', HARD_TO_TRACE)
def test_python_in_the_forward(case):
    "What a symbolic trace could not follow is as good as the same network with a module: ReLU, nothing, ReLU."
    model = with_middle(HARD_TO_TRACE[case])
    other = copy.deepcopy(model); other[1] = nn.Identity() if case == 'size' else nn.ReLU()
    out, want = (compress(m, x, pruning_ratio=.5, recipe='prune') for m in (model, other))
    assert (out.model[0].out_channels == 4 and out.model[2].out_channels == 3
        and [r['reason'] for r in out.report.rows] == [r['reason'] for r in want.report.rows])
    with torch.no_grad(): assert torch.equal(out.model(x), want.model(x))
    if case == 'size': return # there is nothing in it that could be ignored
    whole = compress(model, x, pruning_ratio=.5, ignored_layers=('1',), recipe='paper') # nothing is to be known of it
    assert (whole.model[0].out_channels == 8 and whole.model[2].out_channels == 3
        and whole.report.rows[0]['reason'] == 'ignored by the caller')

def test_numpy_is_an_operation_without_a_rule_and_named():
    """What leaves torch and comes back has no labels: what was read before stays, with the line that reads what no
    operation made."""
    model = with_middle(lambda x: torch.from_numpy(np.maximum(x.detach().numpy(), 0)))
    out = compress(model, x, pruning_ratio=.5, recipe='paper')
    assert out.model[0].out_channels == 8 and out.model[2].out_channels == 3 and out.model(x).shape == (2, 3)
    line = next(i for i, l in enumerate(open(__file__), 1) if 'torch.from_numpy(np.maximum' in l)
    assert (out.report.rows[0]['reason'] == f'is read by no layer that was seen: lift_fresh at test_errors.py:{line} '
        f'reads a tensor that no operation made')

@pytest.mark.parametrize('op', [torch.ops.udfc_tests.rectify, rectify], ids=['by its name', 'itself'])
def test_a_custom_operation_keeps_its_channels_and_is_named(op):
    model = with_middle(lambda x: op(x))
    out = compress(model, x, pruning_ratio=.5, recipe='paper')
    assert ('rectify' in out.report.rows[0]['reason'] and out.model[0].out_channels == 8
        and out.model[2].out_channels == 3)

class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.tail = Branching(classes=6), nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    def forward(self, x): return self.tail(self.inner(x))

def test_a_part_can_be_left_alone_or_compressed_alone():
    model = roughen(Holder())
    out = compress(model, x, pruning_ratio=.5, recipe='paper')
    assert (out.model.inner.features[0].out_channels == 4 and out.model.tail[0].out_features == 10
        and out.model(x).shape == (2, 4))
    out = compress(model, x, pruning_ratio=.5, ignored_layers=('inner',), recipe='paper')
    assert out.model.tail[0].out_features == 10 and out.model(x).shape == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(out.model.inner.state_dict().values(),
        model.inner.state_dict().values()))
    part = compress(model.tail, torch.randn(2, 6), pruning_ratio=.5, recipe='paper')
    assert part.model[0].out_features == 10


@pytest.mark.parametrize('inputs',
    [torch.randn(2, 4, 8, 8), torch.randn(2, 3), (x, x), (), 'image', None, 3, {'y': x},
    torch.randint(0, 9, (2, 3, 8, 8))],
    ids=['channels', 'rank', 'too many', 'none', 'str', 'None', 'int', 'wrong name', 'integers'])
def test_example_inputs(inputs): refused(E.ExampleInputError, inputs=inputs, pruning_ratio=.3)

def test_example_inputs_name_the_layer():
    assert 'features.0' in str(refused(E.ExampleInputError, inputs=torch.randn(2, 4, 8, 8), pruning_ratio=.3))

def test_meta_device():
    with torch.device('meta'): model = Chain()
    with pytest.raises(E.UDFCError) as info: compress(model, x, pruning_ratio=.3)
    assert 'meta' in str(info.value)

def test_not_a_network():
    with pytest.raises((E.UDFCError, TypeError)): compress('resnet18', x)


# The input network is left alone

def handled():
    "A network with everything that could be lost: mixed modes, a frozen parameter, a gradient, hooks."
    model = roughen(Residual())
    model.train(); model.blocks[0].bn1.eval()
    model.stem.weight.requires_grad_(False)
    model.head(torch.randn(2, 8)).sum().backward()
    calls = []
    model.blocks[1].conv1.register_forward_hook(lambda m, i, o: calls.append('hook'))
    model.head.register_forward_pre_hook(lambda m, i: calls.append('pre'))
    return model, calls

@pytest.mark.parametrize('recipe', ['best', 'paper', 'prune', 'neuron-merging', 'neuron-merging-derived'])
def test_unchanged_after_success(recipe):
    model, _ = handled()
    before, inputs, state = snapshot(model), x.clone(), torch.get_rng_state()
    out = compress(model, inputs, pruning_ratio=.4, weight_bits=4, recipe=recipe)
    assert_unchanged(model, before)
    assert torch.equal(inputs, x) and torch.equal(torch.get_rng_state(), state)
    mine = {t.data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}
    assert not mine & {t.data_ptr() for t in [*out.model.parameters(), *out.model.buffers()]
        if t.numel()}, 'memory is shared'

def test_modes_and_gradients_carry_over():
    model, _ = handled()
    out = compress(model, x, pruning_ratio=.4)
    assert {n: m.training for n, m in out.model.named_modules()} == {n: m.training for n, m in model.named_modules()}
    assert {n: p.requires_grad for n, p in out.model.named_parameters()} == {n: p.requires_grad
        for n, p in model.named_parameters()}

@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('name,call',
    [('merge_into', 2), ('cut_rest', 1), ('cut_inputs', 2), ('set_tensor', 9), ('scale_into', 2), ('Report', 1),
    ('count', 2)])
def test_unchanged_after_an_error_half_way(name, call, verify, monkeypatch):
    calls = []
    for module in [m for n, m in sys.modules.items() if n.startswith('udfc_nb.') and hasattr(m, name)]:
        def broken(*args, old=getattr(module, name), **kwargs):
            calls.append(name)
            if len(calls) == call: raise RuntimeError('half-way')
            return old(*args, **kwargs)
        monkeypatch.setattr(module, name, broken)
    model, _ = handled()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match='half-way'):
        compress(model, x, pruning_ratio=.4, weight_bits=4, recipe='paper', verify=verify)
    assert_unchanged(model, before)

def test_unchanged_when_the_callers_progress_raises():
    model, _ = handled()
    before, seen = snapshot(model), []
    def stop(done, total, layer):
        seen.append((done, total))
        if done == 3: raise E.Cancelled('stopped by the caller')
    with pytest.raises(E.Cancelled): compress(model, x, pruning_ratio=.4, weight_bits=4, progress=stop)
    assert seen[0][0] == 0 and seen[-1][0] == 3
    assert_unchanged(model, before)
