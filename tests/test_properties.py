"Properties that hold for every network, tried on networks that hypothesis draws."
import functools, math
import pytest, torch, torch.nn as nn
import udfc_nb
from hypothesis import given, settings, strategies as st
from udfc_nb.paper.error import augmented_gram, pruning_error
from udfc_nb.paper.solution import project
from nets import Chain, Perceptron, Residual, relative, roughen

compress = functools.partial(udfc_nb.compress, recipe='paper')
EXAMPLES = 20
seeds = st.integers(0, 2**31-1)
ratios = st.floats(0, .95)
recipes = st.sampled_from(['paper', 'prune', 'neuron-merging', 'neuron-merging-derived'])


@st.composite
def networks(draw, norm=None):
    "A network, inputs for it, and its sites as (producer, norm or None, consumer, columns per channel)."
    kind = draw(st.sampled_from(['chain', 'residual', 'linear', 'flatten']))
    norm = draw(st.booleans()) if norm is None else norm
    torch.manual_seed(draw(seeds))
    widths = draw(st.lists(st.integers(2, 12), min_size=2, max_size=3))
    x = torch.randn(draw(st.integers(1, 3)), 3, *draw(st.tuples(st.integers(4, 7), st.integers(4, 7))))
    if kind == 'chain':
        m = Chain((3, *widths), norm=norm)
        f = list(m.features)
        convs = [l for l in f if isinstance(l, nn.Conv2d)]
        sites = [(a, f[f.index(a)+1] if norm else None, b, 1) for a, b in zip(convs, [*convs[1:], m.head])]
    elif kind == 'residual':
        m = Residual(draw(st.integers(2, 6)), widths, norm=norm)
        sites = [(b.conv1, b.bn1 if norm else None, b.conv2, 1) for b in m.blocks]
    elif kind == 'linear':
        m = Perceptron((5, *widths, 4)); x = torch.randn(x.shape[0], 5)
        sites = [(a, None, b, 1) for a, b in zip(m.layers, m.layers[1:])]
    else:
        body = [nn.Conv2d(3, widths[0], 3), *([nn.BatchNorm2d(widths[0])] if norm else []), nn.ReLU()]
        m = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4*widths[0], 4))
        sites = [(m[0], m[1] if norm else None, m[-1], 4)]
    return roughen(m), x, sites

def names(model, sites):
    of = {m: n for n, m in model.named_modules()}
    return [of[s[0]] for s in sites]

def outputs(model, x):
    with torch.no_grad(): return model(x)

@torch.no_grad()
def permute(site, order):
    "The site's channels in another order, everywhere: the same function."
    layer, norm, reader, repeat = site
    layer.weight.copy_(layer.weight[order])
    if layer.bias is not None: layer.bias.copy_(layer.bias[order])
    if norm is not None:
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var): t.copy_(t[order])
    columns = (order[:, None]*repeat+torch.arange(repeat)).reshape(-1)
    reader.weight.copy_(reader.weight[:, columns])


@settings(max_examples=EXAMPLES)
@given(networks(), ratios, st.sampled_from([None, 1, 2, 4, 8, 32]), recipes)
def test_finite_and_of_the_right_shape(drawn, ratio, bits, recipe):
    model, x, sites = drawn
    out = compress(model, x, pruning_ratio=ratio, weight_bits=bits, recipe=recipe)
    y = outputs(out.model, x)
    assert y.shape == outputs(model, x).shape and torch.isfinite(y).all()
    assert all(torch.isfinite(p).all() for p in out.model.state_dict().values())
    mods, old = dict(out.model.named_modules()), dict(model.named_modules())
    of = {m: n for n, m in model.named_modules()}
    for layer, norm, reader, repeat in sites:
        C = layer.weight.shape[0]
        kept = max(1, math.floor(C*(1-ratio)+1e-9))
        new = mods[of[layer]]
        assert new.weight.shape[0] == kept == (new.out_features if isinstance(new, nn.Linear) else new.out_channels)
        assert norm is None or len(mods[of[norm]].running_mean) == mods[of[norm]].num_features == kept
        assert mods[of[reader]].weight.shape[1] == kept*repeat
        if bits and bits <= 8:
            for row in new.weight.detach().flatten(1): assert len(row.unique()) <= 2**bits
    for n, m in mods.items(): # everything else has the width that it had
        if isinstance(m, nn.BatchNorm2d) and n not in [of[s[1]] for s in sites if s[1] is not None]:
            assert m.num_features == old[n].num_features


@settings(max_examples=EXAMPLES//2)
@given(networks(), st.floats(0, .8), st.sampled_from([None, 2, 4, 8]))
def test_best_is_finite_and_of_the_size_of_the_uniform_ratio(drawn, ratio, bits):
    "A budget moves channels between sites; the parameters stay within one channel of those of the uniform ratio."
    model, x, sites = drawn
    out, uniform = (compress(model, x, pruning_ratio=ratio, weight_bits=bits, recipe=r) for r in ('best', 'prune'))
    y = outputs(out.model, x)
    assert y.shape == outputs(model, x).shape and torch.isfinite(y).all()
    assert all(torch.isfinite(p).all() for p in out.model.state_dict().values())
    channel = max(layer.weight[0].numel()+reader.weight[:, :repeat].numel()+3 for layer, _, reader, repeat in sites)
    assert abs(out.report.totals['params']-uniform.report.totals['params']) <= channel


@settings(max_examples=EXAMPLES)
@given(networks(), st.sampled_from(['best', 'paper', 'prune', 'neuron-merging']))
def test_nothing_asked_is_nothing_done(drawn, recipe):
    model, x, _ = drawn
    out = compress(model, x, recipe=recipe)
    assert torch.equal(outputs(out.model, x), outputs(model, x))
    mine, its = model.state_dict(), out.model.state_dict()
    assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)


@settings(max_examples=EXAMPLES)
@given(networks(), st.floats(.1, .8), st.sampled_from(['paper', 'prune', 'neuron-merging-derived']), seeds)
def test_permuting_channels_permutes_the_answer(drawn, ratio, recipe, seed):
    model, x, sites = drawn
    y, first = outputs(model, x), compress(model, x, pruning_ratio=ratio, recipe=recipe)
    orders = [torch.randperm(s[0].weight.shape[0], generator=torch.Generator().manual_seed(seed)) for s in sites]
    for s, o in zip(sites, orders): permute(s, o)
    assert relative(outputs(model, x), y) < 1e-4
    second = compress(model, x, pruning_ratio=ratio, recipe=recipe)
    for n, o in zip(names(model, sites), orders):
        assert (n in first.kept) == (n in second.kept)
        if n in first.kept: assert sorted(o[second.kept[n]].tolist()) == first.kept[n].tolist()
    a, b = outputs(first.model, x), outputs(second.model, x)
    assert (a-b).abs().max() <= 1e-3*max(a.abs().max(), y.abs().max())


@settings(max_examples=EXAMPLES)
@given(networks(norm=True), st.floats(.1, .8), st.floats(.3, 2),
    st.sampled_from(['paper', 'prune', 'neuron-merging-derived']))
def test_scaling_a_filter_and_its_norm_together(drawn, ratio, power, recipe):
    "w → s·w, μ → s·μ, σ² → s²σ² with ε = 0 is the same function; s is chosen so that the order of the norms stays."
    model, x, sites = drawn
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.eps = 0.
    y, first = outputs(model, x), compress(model, x, pruning_ratio=ratio, recipe=recipe)
    with torch.no_grad():
        for layer, norm, _, _ in sites:
            if norm is None: continue
            s = layer.weight.flatten(1).norm(dim=1)**(power-1)*1.7
            layer.weight.mul_(s.view(-1, *[1]*(layer.weight.dim()-1)))
            if layer.bias is not None: layer.bias.mul_(s)
            norm.running_mean.mul_(s); norm.running_var.mul_(s**2)
    assert relative(outputs(model, x), y) < 1e-4
    second = compress(model, x, pruning_ratio=ratio, recipe=recipe)
    assert first.kept.keys() == second.kept.keys()
    for n in first.kept: assert torch.equal(first.kept[n], second.kept[n])
    a, b = outputs(first.model, x), outputs(second.model, x)
    assert (a-b).abs().max() <= 1e-3*max(a.abs().max(), y.abs().max())


@st.composite
def layers(draw):
    "Filters, slopes and shifts of a layer, some of them linearly dependent, and a split of the channels."
    torch.manual_seed(draw(seeds))
    C, d = draw(st.integers(3, 14)), draw(st.integers(1, 20))
    rank = draw(st.integers(1, d))
    W = torch.randn(C, rank, dtype=torch.float64)@torch.randn(rank, d, dtype=torch.float64)
    c, b = torch.randn(C, dtype=torch.float64)*2, torch.randn(C, dtype=torch.float64)
    if draw(st.booleans()): W[0] = 0; b[0] = 0
    if draw(st.booleans()): W[1] = W[2]; c[1] = c[2]; b[1] = b[2]
    order, n, m = torch.randperm(C), draw(st.integers(1, C-1)), draw(st.integers(1, C-1))
    n, m = sorted((n, m))
    return W, c, b, draw(st.sampled_from([0., .01, 1.])), order[:n], order[n:], order[:m], order[m:]

@given(layers())
def test_closed_form_is_least_squares(layer):
    "The error of the closed form is the residual that LAPACK finds on the vectors themselves."
    W, c, b, lam, kept, pruned, _, _ = layer
    V = torch.cat([c[:, None]*W, math.sqrt(lam)*b[:, None]], 1)
    G = augmented_gram(W, c, b, lam)
    assert torch.allclose(G, V@V.T)
    T = project(G, kept, pruned)
    assert torch.isfinite(T).all() and T.shape == (len(pruned), len(kept))
    S = torch.linalg.lstsq(V[kept].T, V[pruned].T, driver='gelsd').solution
    best = (V[pruned].T-V[kept].T@S).square().sum(0)
    size = V.square().sum(1).max()
    assert torch.allclose(pruning_error(G, T, kept, pruned), best, rtol=1e-5, atol=1e-8*size.item())
    assert torch.allclose((V[pruned]-T@V[kept]).square().sum(1), best, rtol=1e-5, atol=1e-8*size.item())

@given(layers())
def test_a_superset_never_raises_the_error(layer):
    W, c, b, lam, kept, pruned, more, fewer = layer
    G = augmented_gram(W, c, b, lam)
    error = dict(zip(pruned.tolist(), pruning_error(G, project(G, kept, pruned), kept, pruned)))
    if not len(fewer): return
    for j, e in zip(fewer.tolist(), pruning_error(G, project(G, more, fewer), more, fewer)):
        assert e <= error[j]*(1+1e-6)+1e-8*G.diagonal().max()

@settings(max_examples=EXAMPLES)
@given(networks(), st.floats(.1, .9))
def test_less_pruning_never_has_the_larger_error(drawn, ratio):
    "The same in whole networks, at the first site, whose vectors do not depend on what went before."
    model, x, sites = drawn
    name = names(model, sites)[0]
    layer, norm, _, _ = sites[0]
    c, b = torch.ones(len(layer.weight)), torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    if norm is not None:
        c = (norm.weight/torch.sqrt(norm.running_var+norm.eps)).detach()
        b = (norm.bias+c*(b-norm.running_mean)).detach()
    V = torch.cat([c[:, None]*layer.weight.detach().flatten(1), .1*b[:, None]], 1).double()
    def loss(out):
        K = out.kept.get(name, torch.arange(len(V)))
        P = [j for j in range(len(V)) if j not in K.tolist()]
        S = torch.linalg.lstsq(V[K].T, V[P].T, driver='gelsd').solution
        return (V[P].T-V[K].T@S).square().sum(), V[P].square().sum(), out.report
    more, of, report = loss(compress(model, x, pruning_ratio=ratio))
    less, _, _ = loss(compress(model, x, pruning_ratio=ratio/2))
    assert less <= more*(1+1e-6)+1e-9
    row = next(r for r in report.rows if r['layer'] == name)
    if row['error'] is not None: assert math.isclose(row['error'], more/of, rel_tol=1e-3, abs_tol=1e-6)


@pytest.mark.parametrize('n,d', [(700, 60), (700, 200)])
def test_many_filters_with_few_entries(n, d, monkeypatch):
    "A wide layer of low rank: the minimum-norm solution, and no decomposition larger than the filters need."
    V = torch.randn(n, d, dtype=torch.double); V[3] = 2*V[5]; V[7] = 0; V[11] *= 1e-3
    kept, pruned = torch.arange(0, int(.7*n)), torch.arange(int(.7*n), n)
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, 'eigh', lambda A: (sizes.append(len(A)), eigh(A))[1])
    T = project(V@V.T, kept, pruned)
    assert max(sizes) <= max(d, 64)
    torch.testing.assert_close(T, torch.linalg.lstsq(V[kept].T, V[pruned].T, driver='gelsd').solution.T, rtol=1e-6,
        atol=1e-8)
    torch.testing.assert_close(T@V[kept], V[pruned], rtol=1e-6, atol=1e-8)
