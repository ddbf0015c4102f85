"""Every classifier of torchvision: really smaller, still a network, and unchanged when nothing is asked.

Random weights; the batch norms' statistics come from a few random batches. The smallest member of each family is in
the default
run, the others are marked slow; above 150 million parameters only the trace is made."""
import gc
import pytest, torch, torch.nn as nn, torch.nn.functional as F
from torchvision import models
from udfc_nb import UDFCError, compress, find_sites
from nets import first_tensor, settle

# Layers of 4,096 filters take long to solve; the default run leaves them whole, and the slow one prunes them too.
WIDE = {'alexnet': ('classifier.1', 'classifier.4'), 'vgg11': ('classifier.0', 'classifier.3')}
TRAIN_SIZE = {'inception_v3': 299} # where an auxiliary head needs more than the other sizes
# family: its members, the smallest first; the two sizes of input; how it is built
FAMILIES = dict(
    alexnet=(['alexnet'], 64, 96), densenet=(['densenet121', 'densenet161', 'densenet169', 'densenet201'], 32, 64),
    convnext=(['convnext_tiny', 'convnext_small', 'convnext_base', 'convnext_large'], 32, 64),
    efficientnet=([f'efficientnet_b{i}' for i in range(8)], 32, 64),
    efficientnet_v2=(['efficientnet_v2_s', 'efficientnet_v2_m', 'efficientnet_v2_l'], 32, 64),
    googlenet=(['googlenet'], 64, 96), inception=(['inception_v3'], 96, 299),
    mnasnet=(['mnasnet0_5', 'mnasnet0_75', 'mnasnet1_0', 'mnasnet1_3'], 32, 64),
    mobilenet_v2=(['mobilenet_v2'], 32, 64), mobilenet_v3=(['mobilenet_v3_small', 'mobilenet_v3_large'], 32, 64),
    regnet_x=([f'regnet_x_{s}' for s in ('400mf', '800mf', '1_6gf', '3_2gf', '8gf', '16gf', '32gf')], 32, 64),
    regnet_y=([f'regnet_y_{s}' for s in ('400mf', '800mf', '1_6gf', '3_2gf', '8gf', '16gf', '32gf', '128gf')], 32, 64),
    resnet=(['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'], 64, 96),
    resnext=(['resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d'], 32, 64),
    wide_resnet=(['wide_resnet50_2', 'wide_resnet101_2'], 32, 64),
    shufflenet=([f'shufflenet_v2_x{s}' for s in ('0_5', '1_0', '1_5', '2_0')], 32, 64),
    squeezenet=(['squeezenet1_1', 'squeezenet1_0'], 64, 96), vgg=(['vgg11', 'vgg13', 'vgg16', 'vgg19'], 32, 64),
    vgg_bn=(['vgg11_bn', 'vgg13_bn', 'vgg16_bn', 'vgg19_bn'], 32, 64))
TRANSFORMERS = ['vit_b_16', 'vit_b_32', 'vit_l_16', 'vit_l_32', 'vit_h_14', 'swin_t', 'swin_s', 'swin_b', 'swin_v2_t',
    'swin_v2_s', 'swin_v2_b', 'maxvit_t']
HEAVY = {'convnext_large', 'regnet_y_128gf', 'vit_l_16', 'vit_l_32', 'vit_h_14'} # above 150 million parameters
# not in the default run although smallest: its family is large, and what is special about it stands in a smaller family
# as well
LARGE = {'vgg11_bn', 'wide_resnet50_2', 'efficientnet_v2_s'}

def build(name, **kwargs):
    if name in ('googlenet', 'inception_v3'): kwargs['init_weights'] = False # its truncated normals take a minute
    return getattr(models, name)(weights=None, **kwargs)

def n_params(m): return sum(p.numel() for p in m.parameters())

def cases():
    for names, small, large in FAMILIES.values():
        for i, n in enumerate(names):
            yield pytest.param(n, small, large, WIDE.get(n, ()), 'paper', id=n, marks=[pytest.mark.slow] if i
                or n in LARGE else [])
            if n in WIDE: yield pytest.param(n, small, large, (), 'paper', id=f'{n}-wide', marks=[pytest.mark.slow])
            if not i:
                yield pytest.param(n, small, large, WIDE.get(n, ()), 'best', id=f'{n}-best', marks=[]
                    if n == 'squeezenet1_1' else [pytest.mark.slow])

def test_the_list_is_complete():
    "A builder that a new torchvision brings is missed here."
    known = {n for names, *_ in FAMILIES.values() for n in names} | set(TRANSFORMERS)
    missing = set(models.list_models(module=models))-known
    assert not missing, f'torchvision classifiers that no test sees: {sorted(missing)}'

def trace_only(name, large):
    "Above 150 million parameters: what would be done."
    g = find_sites(build(name).eval(), torch.randn(1, 3, large, large))
    assert len(g.sites) > 10 and all(g.reasons.values())

@pytest.mark.parametrize('name,small,large,whole,recipe', list(cases()))
def test_classifier(name, small, large, whole, recipe):
    if name in HEAVY: return trace_only(name, large)
    model = settle(build(name), 4, 3, large, large, batches=2)
    x, z = torch.randn(2, 3, large, large), torch.randn(3, 3, small, small)
    with torch.no_grad(): y = model(x)
    assert torch.isfinite(y).all() and y.std() > 0

    same = compress(model, x, recipe=recipe).model
    with torch.no_grad(): assert torch.equal(same(x), y), 'ratio 0 changed the outputs'
    del same

    out = compress(model, x, pruning_ratio=.3, layer_ratios={n: 0 for n in whole}, recipe=recipe)
    net, rows = out.model, {r['layer']: r for r in out.report.rows}
    assert (type(net) is type(model) and n_params(net) < .9*n_params(model)
        and out.report.totals['macs'] < out.report.totals['macs_before'])
    assert out.report.totals['params'] == n_params(net)
    for n, m in net.named_modules(): # tensors really cut, and the report says so, with a reason for the rest
        if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
        r, old = rows[n], model.get_submodule(n)
        assert (r['out'], r['out_before']) == (m.weight.shape[0], old.weight.shape[0]) and r['reason']
        assert (r['reason'] == 'pruned') == (m.weight.shape[0] < old.weight.shape[0]), (n, r['reason'])
    with torch.no_grad():
        for i in (x, z): o = net(i); assert o.shape == (len(i), 1000) and torch.isfinite(o).all()

    program = torch.export.export(net, (x,))
    with torch.no_grad(): torch.testing.assert_close(program.module()(x), net(x), rtol=1e-3, atol=1e-3)
    del program

    net.train()
    t = torch.randn(2, 3, TRAIN_SIZE.get(name, large), TRAIN_SIZE.get(name, large))
    loss = F.cross_entropy(first_tensor(net(t)), torch.tensor([1, 2])); loss.backward()
    graded = [p for p in net.parameters() if p.grad is not None]
    assert len(graded) > .8*len(list(net.parameters())) and all(torch.isfinite(p.grad).all() for p in graded)
    torch.optim.SGD(graded, lr=1e-4).step()
    net.eval()
    with torch.no_grad(): assert torch.isfinite(net(x)).all()
    del model, out, net; gc.collect()

def next_layers(model):
    "Layer → the layers that read its output, directly or through norms, sums and the like; by PyTorch's own trace."
    gm = torch.fx.symbolic_trace(model)
    layers = {n: n.target for n in gm.graph.nodes if n.op == 'call_module'
        and isinstance(gm.get_submodule(n.target), (nn.Conv2d, nn.Linear))}
    def walk(node, seen):
        for u in node.users:
            if u in seen: continue
            seen.add(u)
            if u in layers: yield layers[u]
            else: yield from walk(u, seen)
    return {name: set(walk(n, set())) for n, name in layers.items()}

@pytest.mark.parametrize('name,cut',
    [('resnet50', .88), ('vgg16_bn', .99), ('mobilenet_v2', .99), ('densenet121', .99), ('efficientnet_b0', .99)])
def test_nine_tenths_are_reached(name, cut):
    """At least 90 % of the convolution parameters lie in layers that are pruned or feed a pruned site, and `cut` in
    layers that
    lose channels on one side themselves (in ResNet-50 the shortcuts' convolutions, 12 %, stand between two residual
    sums)."""
    model = build(name).eval()
    g = find_sites(model, torch.randn(1, 3, 64, 64))
    pruned, smaller = {u.module for s in g.sites for u in s.producers}, {u.module for s in g.sites for u in s.uses}
    convs, after = ({n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)},
        next_layers(model))
    total = sum(convs.values())
    assert sum(v for n, v in convs.items() if n in pruned or after[n] & pruned) >= .9*total
    assert sum(v for n, v in convs.items() if n in smaller) >= cut*total

@pytest.mark.slow
@pytest.mark.parametrize('name', TRANSFORMERS)
def test_transformer(name):
    "Not what this package is for: compressed where it can be, or refused with a typed error; never wrong."
    if name in HEAVY: pytest.skip("more than 150 million parameters")
    model, x = build(name).eval(), torch.randn(1, 3, 224, 224)
    try: out = compress(model, x, recipe='paper')
    except UDFCError as e: assert e.hint; return
    with torch.no_grad():
        y = model(x)
        assert torch.equal(out.model(x), y)
        small = compress(model, x, pruning_ratio=.3, recipe='prune').model
        assert small(x).shape == y.shape and n_params(small) <= n_params(model)

@pytest.mark.parametrize('name',
    [pytest.param('lraspp_mobilenet_v3_large', id='lraspp'), pytest.param('fcn_resnet50', marks=pytest.mark.slow),
    pytest.param('deeplabv3_resnet50', marks=pytest.mark.slow)])
def test_segmentation(name):
    model = settle(getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5), 2, 3, 64,
        64, batches=1)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        assert all(torch.equal(a, b) for a, b in zip(compress(model, x, recipe='paper').model(x).values(), y.values()))
        out = compress(model, x, pruning_ratio=.3, recipe='paper')
        got = out.model(x)
    assert got.keys() == y.keys() and all(got[k].shape == y[k].shape and torch.isfinite(got[k]).all() for k in y)
    assert n_params(out.model) < .9*n_params(model)

@pytest.mark.slow
def test_feature_pyramid():
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    model = resnet_fpn_backbone(backbone_name='resnet18', weights=None, norm_layer=nn.BatchNorm2d).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y, out = model(x), compress(model, x, pruning_ratio=.3, recipe='paper')
        got = out.model(x)
    assert list(got) == list(y) and all(got[k].shape == y[k].shape for k in y) and n_params(out.model) < n_params(model)
