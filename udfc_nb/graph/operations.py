# %%
#| export
import math, re
from collections.abc import Callable
from dataclasses import dataclass
import torch
from torch.utils._pytree import tree_map
from .labels import always, core, lift, varying

# %%
#| export
OUTPUT, INPUT, UNUSED = 'feeds an output', 'is the input', 'is read by no layer'
TIED, SHARED = 'tied by an add', 'shared by several calls'
GROUPED, FIXED = 'grouped', 'has a hard-coded channel count'
MIXED, CROSSED = 'normalised across channels', 'meets other channels in a product'
UNKNOWN, OWN = 'passes an operation without a rule', 'holds its weights in its own way'
VALUE, WRITTEN, RETYPED = 'its values steer Python', 'is written into a buffer', 'is seen as numbers of another type'
COUNTED, BRANCHED = 'its channel count enters a number', 'its channel count steers Python'

# %%
#| export
ACT = 'channels' # the plane of what depends on the network's input; those of parameters are (name, axis)

@dataclass(frozen=True)
class Operation:
    "One record per operation: how labels pass it, what it is called, and how ranges pass it."
    labels:Callable # (recorder, call) → planes of the output: {plane: labels}
    kind:str = 'other' # what the readers of a record know it as
    bounds:Callable = None # (node, bounds of what it reads, the operation as a function) → (low, high); None: nothing is known

# %%
#| export
def axes_of(call, name='dim', default=None):
    "The axes that an argument of that name lists, counted from the front."
    dims, rank = call.argument(name, default), call.tensors[0].dim()
    if dims is None or dims == []: return set(range(rank))
    return {d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)}

def drop(rec, planes, axes, keep, why):
    "An operation along some axes: labels that vary there are frozen; the others pass."
    out = {}
    for plane, labels in planes.items():
        if set(varying(labels)) & set(axes): rec.freeze(labels, why); continue
        if not keep:
            for d in sorted(axes, reverse=True): labels = labels.squeeze(d)
        out[plane] = labels
    return out

def reduced(rec, call):
    "A sum, mean, maximum … over axes."
    if len(call.tensors) > 1: return pointwise(rec, call) # max and min of two tensors
    keep = bool(call.argument('keepdim', False))
    return drop(rec, call.planes[0], axes_of(call), keep, MIXED)

def along(rec, call):
    "What mixes the entries of one axis and keeps its length (softmax, cumulative sums, sorting)."
    return drop(rec, call.planes[0], axes_of(call, default=-1), True, MIXED)

def layer_norm(rec, call):
    "Statistics over the last axes."
    rank, last = call.tensors[0].dim(), len(call.args[1])
    return drop(rec, call.planes[0], range(rank-last, rank), True, MIXED)

def spatial(rec, call):
    "Pools, interpolations and paddings: on each channel's image by itself."
    rank = call.tensors[0].dim()
    axes = {'1d': 1, '2d': 2, '3d': 3, 'linear1d': 1}.get((re.search(r'\dd', call.name) or ['2d'])[0], 2)
    return drop(rec, call.planes[0], range(rank-axes, rank), True, MIXED)

# %%
#| export
def broadcast(rec, a, b, kind):
    "Two operands of which both have labels: what stands together is tied; what is spread over the other's channels must stay."
    (la, sa), (lb, sb) = a, b
    if any(sb[d] == 1 < sa[d] for d in varying(la)): rec.freeze(lb, f'{CROSSED}'); return la
    if any(sa[d] == 1 < sb[d] for d in varying(lb)): rec.freeze(la, f'{CROSSED}'); return lb
    rec.tie(la, lb, kind)
    return torch.broadcast_tensors(la, lb)[0] if len(varying(la)) >= len(varying(lb)) else torch.broadcast_tensors(lb, la)[0]

def meet_parameter(rec, labels, planes, shape):
    "An activation and a parameter: entries along the axis of the channels live with them."
    mine = set(varying(labels))
    hits = [p for p in planes.values() if set(varying(p)) == mine]
    if mine and hits: rec.tie(labels, hits[0], 'with'); return labels
    if mine and any(shape[d] > 1 for d in mine): rec.freeze(labels, FIXED); return labels
    return labels

# %%
#| export
def pointwise(rec, call):
    "Element by element, with broadcasting."
    rank = call.outs[0].dim()
    shape = lambda t: (1,)*(rank-t.dim())+tuple(t.shape)
    ops = [({k: lift(p, rank) for k, p in planes.items()}, shape(t), t) for planes, t in zip(call.planes, call.tensors) if t.dim() <= rank]
    acts = [(p[ACT], s) for p, s, _ in ops if ACT in p]
    fixed = [(p, s) for p, s, _ in ops if p and ACT not in p]
    plain = [s for p, s, t in ops if not p and math.prod(s) > 1 and not rec.is_made(t)]
    call.node.kind = kind = _kind(call, len(acts), bool(fixed or plain))
    if not acts: return _fixed_pointwise(rec, fixed, plain)
    labels, size = acts[0]
    for other in acts[1:]:
        labels = broadcast(rec, (labels, size), other, 'gate' if kind == 'mul' else 'sum')
        size = tuple(map(max, size, other[1]))
    for planes, s in fixed: labels = meet_parameter(rec, labels, planes, s)
    for s in plain:
        if any(s[d] > 1 for d in varying(labels)): rec.freeze(labels, FIXED)
    return {ACT: labels}

def _kind(call, acts, fixed):
    "What the readers of a record know an elementwise operation as."
    name = {'rsub': 'sub'}.get(call.name, call.name)
    if acts == 1 and not fixed: return 'act'
    if acts == 1: return {'add': 'shift', 'mul': 'scale', '_prelu_kernel': 'slopes'}.get(name, 'fixed')
    return name if name in ('add', 'sub', 'mul', 'div') else 'join' if acts else 'weight'

def _fixed_pointwise(rec, fixed, plain):
    "Parameters among themselves: each keeps its planes; along one axis they are tied."
    out = {}
    for planes, _ in fixed:
        for k, p in planes.items():
            for k2, p2 in out.items():
                if (k2 != k or not torch.equal(p, p2)) and varying(p) == varying(p2): rec.tie(p, p2, 'with')
            out.setdefault(k, p)
    for s in plain:
        for p in out.values():
            if any(s[d] > 1 for d in varying(p)): rec.freeze(p, FIXED)
    return out

# %%
#| export
def convolution(rec, call):
    "The channels that a filter reads meet its columns; its rows are new channels."
    x, w, bias = call.args[:3]
    transposed, groups = (call.args[6], call.args[8]) if len(call.args) > 8 else (False, 1)
    rank, weight = x.dim(), dict(call.planes_of(w))
    read = rec.along(call.planes_of(x).get(ACT), 1, x)
    if ACT in weight: rec.freeze(weight.pop(ACT), CROSSED)
    call.set_weight(w, weight)
    pick = lambda d: next((p.reshape(-1) for p in weight.values() if varying(p) == (d,)), None)
    made = _depthwise if groups > 1 and w.size(1) == 1 else _transposed if transposed else _filters
    out = made(rec, call, read, pick, w, groups)
    if bias is not None: _bias(rec, out, call.planes_of(bias), bias)
    return {ACT: out.reshape([-1 if d == 1 else 1 for d in range(rank)])}

def _bias(rec, out, planes, bias):
    own = [p for k, p in planes.items() if k != ACT]
    if own: rec.tie(out, own[0].reshape(-1), 'with')
    elif bias.numel() > 1: rec.freeze(out, FIXED)

def _filters(rec, call, read, pick, w, groups):
    rows, columns = pick(0), pick(1)
    if groups > 1 and columns is not None: columns = rec.grouped(call, w, groups)
    rec.reads(call, read, columns, groups)
    return rec.makes(call, rows, w.size(0), groups)

def _transposed(rec, call, read, pick, w, groups):
    if groups > 1: rec.freeze(pick(1), GROUPED); rec.freeze(read, GROUPED); return always(w.size(1)*groups)
    rec.reads(call, read, pick(0), 1)
    return rec.makes(call, pick(1), w.size(1), 1)

def _depthwise(rec, call, read, pick, w, groups):
    rows = pick(0)
    call.node.kind = 'depthwise'
    if rows is None: rec.freeze(read, OWN); return always(w.size(0))
    rec.tie(read[:, None], rows.reshape(groups, -1), 'with')
    rec.depthwise(call, rows)
    return rows

# %%
#| export
PRODUCTS = {'mm': (0, 1, None), 'bmm': (0, 1, None), 'mv': (0, 1, None), 'addmm': (1, 2, 0), 'baddbmm': (1, 2, 0), 'addmv': (1, 2, 0)}

def product(rec, call):
    "A product of matrices: with a parameter it is a linear layer; two activations meet in it channel by channel."
    a, b, c = (None if i is None else call.args[i] for i in PRODUCTS[call.name])
    pa, pb, rank = call.planes_of(a), call.planes_of(b), call.outs[0].dim()
    if ACT in pa and ACT in pb: return _meeting(rec, call, pa[ACT], pb[ACT])
    if ACT not in pa and ACT not in pb: return _lost(rec, pa, pb)
    if ACT in pb: return _weight_first(rec, call, pa, pb[ACT])
    call.set_weight(b, pb)
    out = _linear(rec, call, pa[ACT], pb, a, b, rank)
    if c is not None: _shift(rec, out, call.planes_of(c), c, rank)
    return {ACT: out}

def _lost(rec, *planes):
    for p in planes:
        for labels in p.values(): rec.freeze(labels, CROSSED)
    return {}

def _meeting(rec, call, a, b):
    "Two activations: the rows of the one, or the columns of the other, pass."
    call.node.kind = 'product'
    if varying(a) == (a.dim()-2,) and not varying(b): rec.freeze(b, CROSSED); return {ACT: a}
    if varying(b) == (b.dim()-1,) and not varying(a): rec.freeze(a, CROSSED); return {ACT: b}
    return _lost(rec, {ACT: a}, {ACT: b})

def _along(labels, axis): # labels that vary along no other axis than this one, as a vector; else None
    return labels.reshape(-1) if varying(labels) == (axis % labels.dim(),) else None

def _linear(rec, call, labels, planes, a, b, rank):
    "x·w, w of a parameter: its columns are read, its rows made."
    last = labels.dim()-1
    rows, columns = (next((v for p in planes.values() if (v := _along(p, d)) is not None), None) for d in (-1, -2))
    read = labels.reshape(-1) if varying(labels) == (last,) else None
    if read is None and last in varying(labels): read = rec.along(labels, last, a)
    if read is None: # channels along another axis stay: those along this one are new
        rec.freeze(labels, CROSSED)
        read = always(a.size(-1))
    rec.reads(call, read, columns, 1)
    out = rec.makes(call, rows, b.size(-1), 1)
    return out.reshape([-1 if d == rank-1 else 1 for d in range(rank)])

def _weight_first(rec, call, planes, labels):
    "w·x, as an einsum writes it: the second axis from behind is read."
    axis = labels.dim()-2
    rows, columns = (next((v for p in planes.values() if (v := _along(p, d)) is not None), None) for d in (-2, -1))
    call.node.kind = 'product'
    if rows is not None: rec.freeze(rows, CROSSED)
    if varying(labels) == (axis,) and columns is not None: rec.tie(labels.reshape(-1), columns, 'with')
    elif axis in varying(labels): rec.freeze(labels, CROSSED)
    else: return {ACT: labels}
    return {ACT: labels.narrow(axis, 0, 1)*0}

def _shift(rec, out, planes, c, rank):
    if ACT in planes: rec.tie(out, lift(planes[ACT], rank), 'sum'); return
    own = [lift(p, rank) for p in planes.values()]
    hit = [p for p in own if varying(p) == varying(out)]
    if varying(out) and hit: rec.tie(out, hit[0], 'with')
    elif varying(out) and c.numel() > 1: rec.freeze(out, FIXED)

# %%
#| export
def batch_norm(rec, call):
    "Channel by channel, with the statistics of training or with those of this batch."
    x, labels = call.args[0], call.planes[0].get(ACT)
    call.node.kind = 'norm' if call.args[3] is not None and not call.args[5] else 'own statistics'
    if labels is None or call.node.kind == 'norm' and 1 not in varying(labels): return {} if labels is None else {ACT: labels}
    labels = rec.along(labels, 1, x)
    for t in call.tensors[1:]: _bias(rec, labels, call.planes_of(t), t)
    for o in call.outs[1:]:
        if o.numel() == len(labels): rec.label(o, {ACT: labels}) # the statistics
    return {ACT: labels.reshape([-1 if d == 1 else 1 for d in range(x.dim())])}

def group_norm(rec, call):
    "Groups of channels are normalised together: a group leaves as a whole."
    x, groups = call.args[0], call.args[6]
    labels = rec.along(call.planes[0].get(ACT), 1, x)
    if groups == 1 and labels.numel() > 1: rec.freeze(labels, MIXED)
    elif groups > 1:
        rec.tie(labels.reshape(groups, -1), labels.reshape(groups, -1)[:, :1], 'with')
        rec.counts(call, 'num_groups', labels.reshape(groups, -1)[:, 0])
        for o in call.outs[1:]: rec.label(o, {ACT: labels.reshape(groups, -1)[None, :, 0]}) # the statistics
    for t in call.tensors[1:]: _bias(rec, labels, call.planes_of(t), t)
    return {ACT: labels.reshape([-1 if d == 1 else 1 for d in range(x.dim())])}

def weight_norm(rec, call):
    "v·g/‖v‖: the norm is taken over all axes but one, whose entries alone can leave."
    axis = call.argument('dim', 0)
    keep = [{k: p for k, p in planes.items() if set(varying(p)) <= {axis % call.tensors[0].dim()}} for planes in call.planes]
    for planes, kept in zip(call.planes, keep):
        for k, p in planes.items():
            if k not in kept: rec.freeze(p, OWN)
    return _fixed_pointwise(rec, [(k, None) for k in keep], [])

# %%
#| export
def moved(rec, call):
    "Elements change their places: the operation itself, run on the labels, says where they go."
    planes = list(dict.fromkeys(k for p in call.planes for k in p))
    if ACT in planes: planes = [ACT]
    data = call.tensors if call.name in MANY else call.tensors[:1]
    for t, p in zip(call.tensors[len(data):], call.planes[len(data):]):
        for labels in p.values(): rec.freeze(labels, VALUE) # an index
    out = {}
    for plane in planes:
        label = {id(t): _of(p, plane) for t, p in zip(data, call.planes)}
        args = call.name in MANY and call.args or call.args[:1]
        swap = lambda a: label[id(a)].expand(a.shape).double() if isinstance(a, torch.Tensor) else a
        here = lambda a: a.cpu() if isinstance(a, torch.Tensor) else a # an index
        new = tree_map(swap, tuple(args))+tree_map(here, tuple(call.args[len(args):]))
        if call.name == 'constant_pad_nd': new = (*new[:2], 0)
        out[plane] = rec.settle(core(call.func(*new, **call.kwargs).long()))
    return out

MANY = ('cat', 'stack', 'slice_scatter', 'select_scatter') # all of their tensors are data

def _of(planes, plane):
    "Labels of a tensor in a plane; where an activation is asked for, a parameter's do."
    if plane in planes: return planes[plane]
    if plane == ACT and planes: return max(planes.values(), key=lambda p: p.numel())
    return always()

def concatenated(rec, call):
    "As `moved`, along the axes that matter only."
    axis, rank = call.argument('dim', 0), call.outs[0].dim()
    tensors = [(t, p) for t, p in zip(call.tensors, call.planes) if t.dim() == rank]
    plane = ACT if any(ACT in p for _, p in tensors) else next((k for _, p in tensors for k in p), None)
    if plane is None: return {}
    labels = [(t, lift(_of(p, plane), rank)) for t, p in tensors]
    wide = {axis % rank}.union(*(varying(l) for _, l in labels))
    parts = [l.expand([n if d in wide else 1 for d, n in enumerate(t.shape)]) for t, l in labels]
    return {plane: rec.settle(core(torch.cat(parts, axis)))}

def padded(rec, call):
    "Zeros around: new entries, always there, if they stand among the channels."
    pads, t = call.args[1], call.tensors[0]
    axes = {t.dim()-1-i//2 for i, n in enumerate(pads) if n}
    labels = call.planes[0].get(ACT)
    if labels is None or not axes & set(varying(labels)): return dict(call.planes[0])
    return moved(rec, call)

def sampled(rec, call):
    "An image read at other places; the places themselves have no channels."
    for labels in call.planes[1].values(): rec.freeze(labels, CROSSED)
    return spatial(rec, call)

# %%
#| export
def same(rec, call):
    "A copy: a change of type, of memory, of device."
    return dict(call.planes[0])

def copied(rec, call):
    "`a.copy_(b)`: the first becomes the second."
    rank = call.outs[0].dim()
    return {k: lift(p, rank) for k, p in call.planes[-1].items()} if len(call.planes) > 1 else {}

def embedding(rec, call):
    "Rows of a table."
    columns = next((p for p in call.planes[0].values() if varying(p) == (1,)), None)
    return {} if columns is None else {ACT: lift(columns.reshape(-1), call.outs[0].dim())}

def nothing(rec, call):
    "No label passes, and none is held."
    return {}

def by_value(rec, call):
    "Python looks at a number."
    return rec.freeze_all(call, VALUE)

def crossed(rec, call):
    "Attention: every channel meets every other."
    return rec.freeze_all(call, CROSSED)

def unknown(rec, call):
    "Nothing is known about the operation: what it reads must stay."
    return rec.freeze_all(call, f'{UNKNOWN}: {call.name}{rec.place(call)}')

def glu(rec, call):
    "The first half of the channels, gated by the second."
    axis, labels = call.argument('dim', -1) % call.tensors[0].dim(), call.planes[0].get(ACT)
    if labels is None: return {}
    if axis not in varying(labels): return {ACT: labels}
    a, b = labels.chunk(2, axis)
    rec.tie(a, b, 'gate')
    return {ACT: a}

# %%
#| export
EVERYTHING = (-math.inf, math.inf)

def image(
    f:Callable, # elementwise function
    low:float, high:float, # an interval
)->tuple: # (low, high)
    "What values f takes on an interval; an end that still moves at ±50 is infinite."
    x = torch.linspace(max(low, -50), min(high, 50), 4001)
    y = f(x).double()
    open_ = lambda at, near, inf: math.isinf(at) and inf*(y[near]-y[1 if near == 0 else -2]).item() > 0
    grows = [any(open_(e, i, s) for e, i in ((low, 0), (high, -1))) for s in (-1, 1)]
    return (-math.inf if grows[0] else y.min().item()), (math.inf if grows[1] else y.max().item())

# %%
#| export
def _products(ends): return [0. if 0 in (a, b) else a*b for a in ends[0] for b in ends[1]]

def _elementwise(node, ends, run):
    "Bounds of what is computed element by element."
    if node.kind in ('act', 'slopes', 'scale', 'shift'):
        try: return image(run, *ends[0])
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError): return EVERYTHING # not a function of one number
    if len(ends) != 2: return EVERYTHING
    if node.kind in ('add', 'sub'):
        a = node.alpha if node.kind == 'add' else -node.alpha
        other = sorted(0. if a == 0 else a*e for e in ends[1])
        return ends[0][0]+other[0], ends[0][1]+other[1]
    if node.kind == 'mul': p = _products(ends); return min(p), max(p)
    return EVERYTHING

def _first(node, ends, run): return ends[0]
def _union(node, ends, run): return min(e[0] for e in ends), max(e[1] for e in ends)
def _with_zero(node, ends, run): return min(ends[0][0], 0.), max(ends[0][1], 0.)
def _non_negative(node, ends, run): return (0. if ends[0][0] >= 0 else -math.inf), math.inf

# %%
#| export
def _entries(names, *record): return dict.fromkeys(names.split(), Operation(*record))

OPERATIONS = { # name without namespace and underscore (of others than torch's own: 'namespace::name') → its record
    **_entries('''convolution _convolution convolution_overrideable _slow_conv2d_forward thnn_conv2d mkldnn_convolution
        cudnn_convolution''', convolution, 'layer'),
    **_entries(' '.join(PRODUCTS), product, 'layer'),
    **_entries('''native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        miopen_batch_norm _batch_norm_with_update _batch_norm_no_update''', batch_norm, 'norm'),
    **_entries('native_group_norm', group_norm, 'own statistics'),
    **_entries('native_layer_norm _fused_rms_norm', layer_norm, 'own statistics'),
    **_entries('_softmax _log_softmax cumsum cumprod logcumsumexp sort topk argsort', along, 'own statistics'),
    **_entries('sum', reduced, 'reduce', _non_negative),
    **_entries('mean amax amin max min', reduced, 'reduce', _with_zero),
    **_entries('''var std var_mean std_mean norm linalg_vector_norm logsumexp argmax argmin any all prod median nanmedian nansum
        aminmax''', reduced, 'statistic'),
    **_entries('''avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d mkldnn_max_pool2d
        adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        fractional_max_pool2d fractional_max_pool3d mkldnn_adaptive_avg_pool2d max_unpool2d max_unpool3d''', spatial, 'spatial', _with_zero),
    **_entries('''upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d''', spatial, 'spatial', _with_zero),
    **_entries('grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler', sampled, 'other'),
    **_entries('constant_pad_nd', padded, 'pad', _with_zero),
    **_entries('cat', concatenated, 'cat', _union),
    **_entries('''stack index_select index gather repeat flip roll pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col tril triu
        slice_scatter select_scatter take_along_dim repeat_interleave rot90''', moved),
    **_entries('''clone _to_copy contiguous detach alias expand lift lift_fresh lift_fresh_copy view_as_real_copy
        native_dropout dropout''', same, 'same', _first),
    **_entries('uniform normal exponential log_normal cauchy geometric random', same),
    **_entries('''view _unsafe_view reshape _reshape_alias _reshape_copy view_copy squeeze unsqueeze flatten
        unflatten''', same, 'reshape', _first),
    **_entries('permute transpose t movedim', same, 'permute', _first),
    **_entries('slice select narrow diagonal unfold as_strided', same, 'slice', _first),
    **_entries('split split_with_sizes unbind chunk unsafe_split unsafe_chunk unsafe_split_with_sizes getitem', same, 'split', _first),
    **_entries('copy', copied), **_entries('embedding', embedding), **_entries('glu', glu), **_entries('_weight_norm_interface', weight_norm, 'weight'),
    **_entries('''_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_attention_math _scaled_dot_product_cudnn_attention _fused_sdp_choice''', crossed),
    **_entries('_local_scalar_dense item equal is_nonzero', by_value),
    **_entries('empty_like full_like rand_like randn_like zeros_like ones_like new_empty new_zeros new_ones new_full new_empty_strided', nothing),
    **_entries('''hardswish celu _prelu_kernel prelu hardtanh relu6 leaky_relu threshold rrelu_with_noise bernoulli masked_fill where clamp
        log_sigmoid_forward softplus hardshrink softshrink elu add sub mul div rsub pow nan_to_num isnan isinf lerp addcmul addcdiv''',
        pointwise, 'act', _elementwise)}

def operation_of(
    func, # an operation of torch
)->tuple: # (name, its `Operation`)
    "The record of an operation: from the table, or, where torch itself says that it is elementwise, the common one."
    space, _, name = getattr(getattr(func, '_schema', None), 'name', str(func)).rpartition('::')
    name = name[:-1] if name.endswith('_') and not name.endswith('__') else name
    if space != 'aten': name = f'{space}::{name}'
    if name in OPERATIONS: return name, OPERATIONS[name]
    elementwise = torch.Tag.pointwise in getattr(func, 'tags', ())
    return name, Operation(pointwise, 'act', _elementwise) if elementwise else Operation(unknown)
