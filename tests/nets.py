"Small networks and helpers that several tests share."
import torch, torch.nn as nn, torch.nn.functional as F

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def roughen(model):
    """Batch norms (and group norms) whose parameters and statistics are all different, as in a trained network; eval
    mode."""
    for m in model.modules():
        if isinstance(m, NORMS) and m.running_mean is not None:
            m.running_mean.normal_(0, .3); m.running_var.uniform_(.5, 2)
        if isinstance(m, (*NORMS, nn.GroupNorm, nn.LayerNorm)) and m.weight is not None:
            m.weight.uniform_(.5, 1.5); m.bias.normal_(0, .3)
    return model.eval()


@torch.no_grad()
def settle(model, *shape, batches=3):
    "Running statistics from a few random batches; eval mode."
    bns = [m for m in model.modules() if isinstance(m, NORMS)]
    old = [m.momentum for m in bns]
    model.eval()
    for m in bns: m.reset_running_stats(); m.momentum = None; m.train()
    for _ in range(batches): model(torch.randn(*shape))
    for m, o in zip(bns, old): m.momentum = o
    return model.eval()


def relative(a, b):
    "Largest difference in units of the largest value."
    return ((a-b).abs().max()/b.abs().max()).item()


def first_tensor(out):
    "The tensor in whatever a network returns."
    if isinstance(out, torch.Tensor): return out
    return first_tensor(next(iter(out.values())) if isinstance(out, dict) else out[0])


def snapshot(model):
    "Everything about a network that compressing it must not change."
    return dict(
        params={n: (p.detach().clone(), p.requires_grad, id(p), p.grad) for n, p in model.named_parameters()},
        buffers={n: (b.clone(), id(b)) for n, b in model.named_buffers()},
        modes={n: m.training for n, m in model.named_modules()},
        hooks={n: [list(getattr(m, k))
        for k in ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks',
        '_state_dict_hooks')]
               for n, m in model.named_modules()},
        attributes={n: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, bool, tuple))}
        for n, m in model.named_modules()})


def assert_unchanged(model, before):
    now = snapshot(model)
    assert now['params'].keys() == before['params'].keys() and now['buffers'].keys() == before['buffers'].keys()
    for n, (p, grad, i, g) in before['params'].items():
        q, qgrad, k, qg = now['params'][n]
        assert torch.equal(p, q) and (p.dtype, p.stride(), grad, i) == (q.dtype, q.stride(), qgrad, k) and g is qg, n
    for n, (b, i) in before['buffers'].items():
        assert torch.equal(b, now['buffers'][n][0]) and i == now['buffers'][n][1], n
    for key in ('modes', 'hooks', 'attributes'): assert now[key] == before[key], key


class Chain(nn.Module):
    "Convolution, norm, activation, repeated; mean over the image; linear head."
    def __init__(self, widths=(3, 8, 12, 10), classes=5, norm=True, act=nn.ReLU, bias=None):
        super().__init__()
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers.append(nn.Conv2d(a, b, 3, padding=1, bias=not norm if bias is None else bias))
            if norm: layers.append(nn.BatchNorm2d(b))
            layers.append(act())
        self.features, self.pool, self.head = (nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1),
            nn.Linear(widths[-1], classes))
    def forward(self, x): return self.head(torch.flatten(self.pool(self.features(x)), 1))


class Block(nn.Module):
    "relu(bn2(conv2(relu(bn1(conv1(x))))) + x)."
    def __init__(self, width, inner, norm=True):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=not norm)
        self.bn1, self.bn2 = (nn.BatchNorm2d(inner), nn.BatchNorm2d(width)) if norm else (nn.Identity(), nn.Identity())
    def forward(self, x): return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Residual(nn.Module):
    "A stem, some blocks, mean, head."
    def __init__(self, width=8, inner=(10, 12), classes=5, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width, i, norm) for i in inner])
        self.head = nn.Linear(width, classes)
    def forward(self, x): return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Perceptron(nn.Module):
    "Linear layers with ReLU between them."
    def __init__(self, widths=(6, 12, 10, 4)):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths, widths[1:])])
    def forward(self, x):
        for l in self.layers[:-1]: x = F.relu(l(x))
        return self.layers[-1](x)
