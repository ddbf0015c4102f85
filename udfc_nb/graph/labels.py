# %%
#| export
import math
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# %%
#| export
def always(
    *shape:int,
)->torch.Tensor:
    "Labels of what is always there: zeros, in the memory of the CPU."
    return torch.zeros(shape, dtype=torch.int64, device='cpu')

def core(
    labels:torch.Tensor, # one label per element
)->torch.Tensor: # of the same number of axes
    "Every axis along which the labels do not vary, narrowed to one."
    for d in [0, *range(labels.dim()-1, 0, -1)] if labels.dim() and labels.numel() else []:
        if labels.size(d) == 1: continue
        one = labels.narrow(d, 0, 1)
        if labels.stride(d) == 0 or torch.equal(one.expand_as(labels), labels): labels = one
    return labels

def varying(
    labels:torch.Tensor, # a core
)->tuple: # axes
    "The axes along which labels vary."
    return tuple(d for d, n in enumerate(labels.shape) if n > 1)

def lift(
    labels:torch.Tensor,
    dims:int, # as many axes as asked for, or fewer of size one in front
)->torch.Tensor:
    "The same labels with so many axes, as broadcasting adds them."
    while labels.dim() > dims: labels = labels[0]
    return labels.reshape((1,)*(dims-labels.dim())+tuple(labels.shape))

# %%
#| export
def geometry(
    t:torch.Tensor,
)->tuple: # size, stride, offset
    "Where a tensor's elements lie in its storage."
    return tuple(t.shape), tuple(t.stride()), t.storage_offset()

def _starts(offset, base):
    "At which index of each axis of a tensor an element of its storage lies; None if at none."
    starts = {}
    for d in sorted(range(len(base[0])), key=lambda d: -base[1][d]):
        if base[0][d] == 1: continue
        starts[d], offset = divmod(offset, max(base[1][d], 1))
        if starts[d] >= base[0][d]: return None
    return starts if offset == 0 else None

def seen_by(
    labels:torch.Tensor, # core of a tensor
    base:tuple, # geometry of that tensor, dense
    view:tuple, # geometry of another tensor on the same storage
)->torch.Tensor: # core of the other one, or None where the axes do not correspond
    "Labels of a view that takes, leaves out, permutes or narrows axes."
    starts = _starts(view[2]-base[2], base)
    if starts is None: return None
    axes = {base[1][d]: d for d, n in enumerate(base[0]) if n > 1}
    order = []
    for n, s in zip(view[0], view[1]):
        if n == 1 or s == 0: order.append(None); continue
        d = axes.pop(s, None)
        if d is None or starts[d]+n > base[0][d]: return None
        if labels.size(d) > 1: labels = labels.narrow(d, starts[d], n)
        order.append(d)
    for d in axes.values():
        if labels.size(d) > 1: labels = labels.narrow(d, starts[d], 1)
    taken = [d for d in order if d is not None]
    rest = [d for d in range(labels.dim()) if d not in taken]
    labels = labels.permute(*taken, *rest).reshape([labels.size(d) for d in taken])
    for i, d in enumerate(order):
        if d is None: labels = labels.unsqueeze(i)
    return labels

def seen_along(
    labels:torch.Tensor, # core of a tensor that fills its storage; it varies along one axis
    base:tuple, # geometry of that tensor
    view:tuple, # geometry of another tensor on the same storage
)->torch.Tensor: # core of the other one, or None where an axis of it is the labels' and a further one in one
    "Labels of a view that splits axes as well."
    d, = varying(labels)
    step, n = base[1][d], base[0][d]
    index, inside = torch.tensor(view[2]//step, device='cpu').reshape((1,)*len(view[0])), view[2] % step
    for k, (m, s) in enumerate(zip(*view[:2])):
        if m == 1 or s % (step*n) == 0: continue
        if s % step: inside += (m-1)*s
        else: index = index+torch.arange(0, m*(s//step), s//step, device='cpu').reshape((-1,)+(1,)*(len(view[0])-k-1))
    return core(labels.reshape(-1)[index % n]) if inside < step else None

# %%
#| export
class Shadow:
    "The labels of one storage, plane by plane; written out element by element only when a view needs it."
    def __init__(self,
        t:torch.Tensor, # on that storage
    ):
        self.width = max(t.element_size(), 1) # bytes of an element
        self.size = t.untyped_storage().nbytes()//self.width
        self.planes, self.seen = {}, {} # plane → (core, geometry), or a label per element; (plane, geometry) → what was read
    def read(self,
        plane, # a key
        t:torch.Tensor, # any tensor on the storage
    )->torch.Tensor: # core
        "Labels of a tensor on this storage."
        key = plane, geometry(t)
        if key not in self.seen: self.seen[key] = self._read(plane, t)
        return self.seen[key]
    def _read(self, plane, t):
        "As `read`, not yet known."
        held, view = self.planes[plane], geometry(t)
        if not isinstance(held, tuple): return core(held.as_strided(*view)).clone()
        labels, base = held
        if base == view: return labels
        axes, fills = varying(labels), base[2] == 0 and math.prod(base[0]) == self.size
        if not axes: return labels.reshape((1,)*t.dim())
        seen = seen_along(labels, base, view) if len(axes) == 1 and fills else None
        if seen is None: seen = seen_by(labels, base, view)
        return core(self.whole(plane).as_strided(*view)).clone() if seen is None else seen
    def write(self, plane, t:torch.Tensor, labels:torch.Tensor):
        "Sets the labels of a tensor on this storage."
        labels = lift(labels, t.dim())
        self.seen.clear()
        if _dense(t, self.size): self.planes[plane] = (labels, geometry(t))
        else: self.whole(plane).as_strided(*geometry(t)).copy_(labels.expand(t.shape))
    def whole(self, plane):
        "A label per element of the storage."
        held = self.planes.get(plane)
        if held is None or isinstance(held, tuple):
            full = always(self.size)
            if held is not None: full.as_strided(*held[1]).copy_(held[0].expand(held[1][0]))
            self.planes[plane] = held = full
        return held

def _dense(t, size):
    "Does a tensor cover a storage, each element once?"
    if t.numel() != size or t.storage_offset(): return False
    at = 1
    for n, s in sorted(zip(t.shape, t.stride()), key=lambda ns: ns[1]):
        if n == 1: continue
        if s != at: return False
        at *= n
    return True

# %%
#| export
def pairs(
    a:torch.Tensor, b:torch.Tensor, # labels that broadcast
)->np.ndarray: # (2, n)
    "Which labels stand together."
    a, b = torch.broadcast_tensors(a, b)
    a, b = a.reshape(-1), b.reshape(-1)
    if a.numel() > 4096: # by one number for each pair
        n = int(max(a.max(), b.max()))+1
        both = torch.unique(a*n+b)
        a, b = both//n, both % n
    return torch.stack([a, b]).numpy()

def components(
    n:int, # labels 0 … n−1
    edges:list, # of (2, m) arrays
)->np.ndarray: # (n,): the number of each label's component
    "Labels that hang together."
    if not edges: return np.arange(n)
    e = np.concatenate(edges, 1)
    graph = coo_matrix((np.ones(e.shape[1], bool), (e[0], e[1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]

# %%
#| export
def count_components(
    edges:np.ndarray, # (2, m)
)->int:
    "How many components the labels of some edges form."
    labels, at = np.unique(edges, return_inverse=True)
    return int(components(len(labels), [at.reshape(2, -1)]).max())+1 if len(labels) else 0

def slabs(
    labels:torch.Tensor, # a core that varies along several axes
)->tuple: # axis, (2, m) edges
    "The axis along which whole slabs can leave so that most can be chosen, with what must be tied for it."
    found = []
    for d in varying(labels):
        rows = labels.movedim(d, 0).reshape(labels.size(d), -1)
        edges = pairs(rows, rows[:, :1])
        found.append((count_components(edges), -d, d, edges))
    return max(found, key=lambda f: f[:2])[2:]
