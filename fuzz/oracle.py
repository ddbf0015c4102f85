"""What a cut network must give, found without the package's own proof.

With recipe 'prune' at no bits nothing is computed anew: every tensor of the cut network is a part of one of the
original. So the
inputs that a layer has lost are read off its numbers, and the original runs in float64 with exactly those inputs at
zero, set
by hooks at the layers that read them, behind every norm and activation. Both must give the same."""
import dataclasses
import numpy as np
import torch, torch.nn as nn

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
WEIGHTS = ('weight', 'weight_v', 'weight_orig', 'parametrizations.weight.original', 'parametrizations.weight.original1')


class Fault(AssertionError):
    "Something that must not be."


def demand(holds, what):
    if not holds: raise Fault(what)

def tensors(out):
    "The tensors that a network returns, in order."
    if isinstance(out, torch.Tensor): return [out]
    if dataclasses.is_dataclass(out): out = vars(out)
    if isinstance(out, dict): out = [out[k] for k in out]
    return [t for o in out for t in tensors(o)] if isinstance(out, (list, tuple)) else []

def call(net, example):
    "Its outputs, without gradients."
    with torch.no_grad():
        named = isinstance(example, dict)
        example = ({k: v.clone() for k, v in example.items()} if named
            else [t.clone() if isinstance(t, torch.Tensor) else t
            for t in (example if isinstance(example, tuple) else (example,))])
        return tensors(net(**example) if named else net(*example))

def cast(example, dtype):
    "The same with floating tensors of that type."
    if isinstance(example, torch.Tensor): return example.to(dtype) if example.is_floating_point() else example
    if isinstance(example, dict): return {k: cast(v, dtype) for k, v in example.items()}
    return tuple(cast(e, dtype) for e in example)

def distance(a, b):
    "Largest difference of two lists of tensors, in units of each one's largest value."
    demand([t.shape for t in a] == [t.shape for t in b],
        f'shapes {[tuple(t.shape) for t in a]} instead of {[tuple(t.shape) for t in b]}')
    worst = 0.
    for x, y in zip(a, b):
        if not y.numel() or not y.is_floating_point(): continue
        demand(bool(torch.isfinite(x).all()), 'numbers that are not finite')
        worst = max(worst, ((x-y).abs().max()/y.abs().max().clamp_min(1e-9)).item())
    return worst


# ---- which entries are left

def entries(whole, part):
    "For each axis, which entries of a tensor form its part; None where it is no such part."
    if part.dim() != whole.dim(): return None
    flat, at, times = np.unique(whole.numpy().ravel(), return_inverse=True, return_counts=True)
    first = np.empty(len(flat), int); first[at] = np.arange(at.size)
    values = part.numpy().ravel()
    found = np.minimum(np.searchsorted(flat, values), len(flat)-1)
    if not (flat[found] == values).all(): return None
    known = (times[found] == 1).reshape(part.shape)
    places = [p.reshape(part.shape) for p in np.unravel_index(first[found], whole.shape)]
    out = []
    for d, p in enumerate(places):
        if part.shape[d] == whole.shape[d]: out.append(np.arange(whole.shape[d])); continue
        rows = [np.unique(q[k]) for q, k in zip(np.moveaxis(p, d, 0), np.moveaxis(known, d, 0))]
        if any(len(r) != 1 for r in rows): return None
        out.append(np.array([r[0] for r in rows]))
    return out if np.array_equal(whole.numpy()[np.ix_(*out)], part.numpy()) else None

def _holder(m):
    "The tensor that a layer reads its filters from."
    named = dict(m.named_parameters())
    return next((named[n] for n in WEIGHTS if n in named), None)

def inputs_left(m, w, v):
    "Which inputs of a layer are left, by its weight `w` and what became of it; and which outputs."
    groups, across = getattr(m, 'groups', 1), getattr(m, 'transposed', False)
    demand(len(v) % groups == 0, f'{len(v)} rows in {groups} groups')
    sides = [], []
    for q, (a, b) in enumerate(zip(w.chunk(groups), v.chunk(groups))):
        found = entries(a, b)
        demand(found is not None, 'the weight is no part of the original one')
        for side, f, n in zip(sides, found, a.shape): side.append(f+q*n)
    rows, columns = map(np.concatenate, sides)
    return (rows, columns) if across else (columns, rows)

def axis_of(m, x):
    "Of the channels of what a layer reads."
    return x.dim()-1 if isinstance(m, nn.Linear) else x.dim()-1-len(m.kernel_size)


# ---- the original with removed inputs at zero

def _zeroed(left):
    def hook(m, args):
        x, axis = args[0], axis_of(m, args[0])
        gone = torch.ones(x.shape[axis], dtype=torch.bool); gone[left] = False
        return (x.masked_fill(gone.reshape([-1 if d == axis else 1 for d in range(x.dim())]), 0), *args[1:])
    return hook

def mask(net, cut):
    """Sets, in a double-precision original, the inputs of every layer to zero that its like in the cut network has
    lost; returns outputs left by layer."""
    mods, small, left, seen = dict(net.named_modules()), dict(cut.named_modules()), {}, set()
    scripts = [n for n, m in mods.items() if isinstance(m, torch.jit.ScriptModule)]
    for name, m in mods.items():
        if not isinstance(m, LAYERS) or (w := _holder(m)) is None: continue
        if any(name == s or name.startswith(f'{s}.') for s in scripts): continue
        v = _holder(small[name])
        w, v = w.detach().double(), v.detach().double()
        seen.add(id(_holder(m)))
        depthwise = getattr(m, 'groups', 1) > 1 and w.shape[1] == 1
        if depthwise:
            found = entries(w, v)
            demand(found is not None, f'{name}: the weight is no part of the original one')
            left[name] = found[0]; continue # as wide as what it reads
        try: inner, left[name] = inputs_left(m, w, v)
        except Fault as e: raise Fault(f'{name}: {e}') from None
        n = len(w) if getattr(m, 'transposed', False) else w.shape[1]*getattr(m, 'groups', 1)
        if len(inner) < n: m.register_forward_pre_hook(_zeroed(torch.from_numpy(inner)))
    theirs = dict(cut.named_parameters())
    for name, p in net.named_parameters(): # weights of functions: their entries instead of what they meet
        if id(p) in seen or sum(n > 1 for n in p.shape) < 2 or p.shape == theirs[name].shape: continue
        found = entries(p.detach().double(), theirs[name].detach().double())
        demand(found is not None, f'{name} is no part of the original one')
        keep = torch.zeros(p.shape, dtype=torch.bool); keep[np.ix_(*found)] = True
        p.data.masked_fill_(~keep, 0)
    return left

def doubled(net):
    "In double precision, complex numbers too; observers keep theirs."
    net.double()
    for m in net.modules():
        for held in (m._parameters, m._buffers):
            for k, t in held.items():
                if t is not None and t.is_complex(): t.data = t.data.to(torch.complex128)
        if type(m).__name__ == 'FakeQuantize': m.float()
    return net

def consistent(cut):
    "Modules remember the sizes of their tensors."
    for name, m in cut.named_modules():
        if isinstance(m, torch.jit.ScriptModule): continue
        w = _holder(m) if isinstance(m, LAYERS) else None # what a hook computes is that of the last run
        if w is not None and isinstance(m, nn.modules.conv._ConvNd):
            o, i = (w.shape[1]*m.groups, w.shape[0]) if m.transposed else (w.shape[0], w.shape[1]*m.groups)
            demand((m.out_channels, m.in_channels) == (o, i),
                f'{name}: says {m.in_channels} → {m.out_channels}, has {i} → {o}')
        if w is not None and isinstance(m, nn.Linear):
            demand((m.out_features, m.in_features) == tuple(w.shape), f'{name}: its sizes are not those of its weight')
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None:
            demand(m.num_features == len(m.running_mean), f'{name}: num_features')
        if isinstance(m, nn.GroupNorm) and m.weight is not None:
            demand(m.num_channels == len(m.weight) and m.num_channels % m.num_groups == 0,
                f'{name}: num_channels, num_groups')

def same_numbers(net, cut):
    "What is whole is as it was."
    its = net.state_dict()
    for n, t in cut.state_dict().items():
        if isinstance(t, torch.Tensor) and t.shape == its[n].shape:
            demand(torch.equal(t, its[n]), f'{n} has other numbers')

def compare(original, out, examples, tolerance=1e-6):
    "Demands that a cut network gives what the original gives; both are made double, the original is masked."
    cut = out.model.eval()
    consistent(cut)
    doubled(original); doubled(cut)
    left = mask(original, cut)
    for name, kept in out.kept.items():
        if kept is not None and name in left:
            demand(np.array_equal(left[name], kept.numpy()), f'{name}: other outputs than it is said')
    for r in out.report.rows:
        if r['layer'] in left:
            demand(r['out'] == len(left[r['layer']]),
                f"{r['layer']}: {r['out']} outputs are reported, {len(left[r['layer']])} are there")
    worst = 0.
    for example in (cast(e, torch.float64) for e in examples):
        want, got = call(original, example), call(cut, example)
        found = distance(got, want)
        demand(found <= tolerance, f'differs by {found:.1e} from the original with those inputs at zero')
        worst = max(worst, found)
    return worst
