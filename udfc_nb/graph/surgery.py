# %%
#| export
import numpy as np
import torch, torch.nn as nn
from ..notation import affine
from ..reconstruction import merge_columns, scale_columns

# %%
#| export
def set_tensor(
    net:nn.Module, # is changed
    names:list, # under which it holds one tensor
    value:torch.Tensor, # the new one
):
    "A new tensor instead of a parameter or buffer, as what it was, under all of its names."
    for k, name in enumerate(names):
        owner, _, field = name.rpartition('.')
        m = net.get_submodule(owner)
        if k == 0:
            old = getattr(m, field)
            last = old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous()
            new = value.detach().clone(memory_format=torch.channels_last if last else torch.contiguous_format)
            if isinstance(old, nn.Parameter): new = nn.Parameter(new, requires_grad=old.requires_grad)
        if isinstance(m, torch.jit.ScriptModule): setattr(m, field, new)
        else: (m._parameters if field in m._parameters else m._buffers)[field] = new

# %%
#| export
def kept_along(
    record, # a `Recorder`
    removed:np.ndarray, # of bool, one for each label
    name:str, # of a parameter or buffer
    axis:int,
)->torch.Tensor: # indices, or None if all stay
    "What stays along one axis of a tensor."
    first, n = record.atoms[name][axis], record.parameters[name].shape[axis]
    gone = removed[first:first+n] if first else np.zeros(n, bool)
    return torch.from_numpy(np.flatnonzero(~gone)) if gone.any() else None

def kept_columns(
    record, removed:np.ndarray,
    layer, # a `Layer`
)->torch.Tensor: # indices among all inputs, or None if all stay
    "What stays of the inputs of a layer, group after group."
    if layer.columns is None or not removed[layer.columns].any(): return None
    return torch.from_numpy(np.flatnonzero(~removed[layer.columns.ravel()]))

# %%
#| export
def in_groups(
    w:torch.Tensor, # weight of a grouped convolution, (O, I/groups, …)
    columns:torch.Tensor, # inputs that stay, among all, equally many per group
    groups:int,
)->torch.Tensor: # (O, I′/groups, …)
    "The columns of each group that stay."
    local = columns.reshape(groups, -1)-torch.arange(groups, device=columns.device)[:, None]*w.shape[1]
    return torch.cat([part[:, c] for part, c in zip(w.chunk(groups), local)])

def cut_axis(net, record, removed, name, axis):
    "Slices a tensor along one axis."
    index = kept_along(record, removed, name, axis)
    if index is None: return
    names = record.names_of(name)
    owner, _, field = name.rpartition('.')
    old = getattr(net.get_submodule(owner), field)
    set_tensor(net, names, old.detach().index_select(axis, index.to(old.device)))

def axis_of(
    record,
    layer, # one of its `Layer`s
    labels:np.ndarray, # its rows or columns
)->int:
    "Along which axis of a layer's weight they stand: convolutions, linear layers and products have them in different places."
    return next(d for d, (first, n) in enumerate(zip(record.atoms[layer.weight], record.parameters[layer.weight].shape)) if first <= labels.flat[0] < first+n)

# %%
#| export
def cut_inputs(net, record, removed, layer):
    "Slices a layer to the inputs that stay."
    columns = kept_columns(record, removed, layer)
    if columns is None: return
    if layer.groups > 1:
        w = net.get_parameter(layer.weight)
        set_tensor(net, record.names_of(layer.weight), in_groups(w, columns.to(w.device), layer.groups))
    else: cut_axis(net, record, removed, layer.weight, axis_of(record, layer, layer.columns))
    if layer.plain: remember(net, record, removed, layer.name)

def cut_outputs(net, record, removed, layer):
    "Slices a layer, its bias too, to the outputs that stay."
    cut_axis(net, record, removed, layer.weight, axis_of(record, layer, layer.rows))
    bias = f'{layer.name}.bias'.lstrip('.')
    if bias in record.parameters: cut_axis(net, record, removed, bias, 0)
    if layer.plain: remember(net, record, removed, layer.name)

# %%
#| export
def remember(net, record, removed, name):
    "The numbers that a module keeps about itself."
    try: m = net.get_submodule(name)
    except AttributeError: return # a weight that has the name of no module
    if isinstance(m, torch.jit.ScriptModule): return
    for module, attribute, atoms in record.numbers:
        if module == name and hasattr(m, attribute): setattr(m, attribute, int((~removed[atoms]).sum()))
    w = next((t for k in ('weight', 'weight_v', 'running_mean') if isinstance(t := getattr(m, k, None), torch.Tensor)), None)
    if isinstance(m, nn.RNNBase): m._flat_weights, m.input_size = [getattr(m, k) for k in m._flat_weights_names], m.weight_ih_l0.shape[1]
    if w is None: return
    if isinstance(m, nn.modules.conv._ConvNd):
        out, inn = (w.shape[1]*m.groups, w.shape[0]) if m.transposed else (w.shape[0], w.shape[1]*m.groups)
        m.out_channels, m.in_channels = out, inn
    elif isinstance(m, nn.Linear): m.out_features, m.in_features = w.shape
    else:
        for k in ('num_features', 'num_channels', 'num_parameters'):
            if isinstance(getattr(m, k, None), int): setattr(m, k, len(w))

def cut_rest(net, record, removed, done=()):
    "Slices all tensors but the weights and biases of some `Layer`s, which are cut already."
    skip = {l.weight for l in done} | {f'{l.name}.bias'.lstrip('.') for l in done}
    names = [n for n in record.parameters if n not in skip]
    for name in names:
        for d in range(record.parameters[name].dim()): cut_axis(net, record, removed, name, d)
    for owner in dict.fromkeys([n.rpartition('.')[0] for n in names]+[l.name for l in record.layers.values()]): remember(net, record, removed, owner) # when all parts of a computed weight fit together

def cut(
    net:nn.Module, # is changed
    record, # its `Recorder`
    removed:np.ndarray, # of bool, one for each label
)->nn.Module: # the same
    "Takes the labels out of every tensor of a network."
    plain = [l for l in record.layers.values()]
    for l in plain:
        if l.columns is not None and l.groups > 1: cut_inputs(net, record, removed, l)
    cut_rest(net, record, removed)
    for module, *_ in record.numbers: remember(net, record, removed, module)
    return net

# %%
#| export
def out_first(
    layer:nn.Module, # convolution or linear
)->torch.Tensor: # (out, in/groups, …), a view
    "A layer's weight, outputs first; a transposed convolution holds it inputs first."
    w = layer.weight
    return w.transpose(0, 1) if getattr(layer, 'transposed', False) and layer.groups == 1 else w

def matrix(
    layer:nn.Module, # convolution or linear
)->torch.Tensor: # (out, in/groups · taps)
    "A layer's filters as rows."
    return out_first(layer).detach().flatten(1)

def norm_affine(
    norm:nn.Module, # batch norm with running statistics
    index:torch.Tensor=None, # channels asked for; None for all
)->tuple: # (c, b), each (channels,), float64
    "c and b of a batch-norm module."
    get = lambda t: None if t is None else (t.detach() if index is None else t.detach()[index]).double()
    return affine(get(norm.weight), get(norm.bias), get(norm.running_mean), get(norm.running_var), norm.eps)

# %%
#| export
def columns_of(
    layer:nn.Module, # the consumer, without groups
    use, # its `Use`
)->torch.Tensor: # (out, channels, entries of each)
    "A site's columns of a layer."
    w = out_first(layer).detach()
    return w[:, torch.as_tensor(use.index.ravel(), device=w.device)].reshape(len(w), len(use.channels), -1)

def _parts(layer, use):
    "A site's columns of a layer, group by group: (the group's weights, entries of its channels, which channels)."
    w, g = out_first(layer), getattr(layer, 'groups', 1)
    index, channels = (torch.as_tensor(a, device=w.device) for a in (use.index, use.channels))
    if g == 1: return [(w, index, channels)]
    n = w.shape[1]
    return [(part, index[mine]-q*n, channels[mine]) for q, part in enumerate(w.chunk(g)) if (mine := index[:, 0]//n == q).any()]

@torch.no_grad()
def merge_into(
    layer:nn.Module, # the consumer; is changed, its pruned columns become zero
    use, # its `Use`: where the site's channels stand among its columns
    T:torch.Tensor, # (|P|, |K|)
    kept:torch.Tensor, # K
    pruned:torch.Tensor, # P
):
    "Eqs. 7 and 8 on a module."
    for w, index, channels in _parts(layer, use):
        place = torch.full((len(kept)+len(pruned),), -1, device=w.device)
        place[channels] = torch.arange(len(channels), device=w.device)
        K, P = (place[i] >= 0 for i in (kept, pruned))
        new = merge_columns(w[:, index.flatten()], T[P][:, K], place[kept[K]], place[pruned[P]], len(channels))
        w[:, index.flatten()] = new.to(w.dtype)

@torch.no_grad()
def scale_into(
    layer:nn.Module, # the consumer; is changed
    use, # its `Use`
    scale:torch.Tensor, # s̃, (C,)
):
    "Eq. 9 on a module."
    for w, index, channels in _parts(layer, use):
        w[:, index.flatten()] = scale_columns(w[:, index.flatten()], scale[channels]).to(w.dtype)
