# %%
#| export
import copy, math, os, traceback, types, weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
import numpy as np
import torch, torch.nn as nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from ..errors import UDFCError, UnsupportedError
from .labels import varying
from .operations import ACT, BRANCHED, COUNTED, FIXED, PRODUCTS, convolution, OPERATIONS, operation_of
from .record import Recorder, attributes, call_args, check_names, fresh, is_own, is_random, perform, quiet, record, tensors_of
from .sites import Graph, POLICIES, graph_of
from .surgery import cut

# %%
#| export
READERS = {**{k: (0,) for k, o in OPERATIONS.items() if o.labels is convolution}, # which arguments are read
    **{k: v[:2] for k, v in PRODUCTS.items()}}

class Masked(Recorder):
    "A record of the original in which every reader sees the removed channels as zeros; it keeps what the others must be."
    def __init__(self,
        *args,
        removed:np.ndarray, # of bool, one for each label
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.removed, self.values = torch.from_numpy(removed), [] # per operation: its node, and values or number of each output
    def execute(self, call):
        args = list(call.args)
        for i in READERS.get(call.name, ()):
            labels = call.planes_of(args[i]).get(ACT)
            if labels is not None and (gone := self.removed[labels]).any(): args[i] = args[i].masked_fill(gone.to(args[i].device), 0)
        return perform(call.func, tuple(args), call.kwargs, self.ran, self.wide)
    def tie(self, a, b, kind='with'): pass # all that is said of the structure is known
    def freeze(self, labels, why): pass
    def balance(self, atoms, strict=True): pass
    def _view(self, call, parts): pass
    def follow(self, call, operation, parts):
        super().follow(call, operation, parts)
        changed = any(a.alias_info is not None and a.alias_info.is_write for a in call.func._schema.arguments)
        stored = {} if changed else {t.untyped_storage()._cdata for t in call.tensors if t.layout == torch.strided}
        self.values.append((call.node, [self._kept(o, stored) for o in call.outs]))
    def _kept(self, o, stored):
        if o.layout != torch.strided: return None
        planes = self.planes(o)
        if not planes: return None if self.is_made(o) else o.detach().clone()
        keep = torch.ones((), dtype=torch.bool, device='cpu')
        for labels in planes.values():
            if labels.dim() == o.dim(): keep = keep & ~self.removed[labels]
        if o.untyped_storage()._cdata in stored: return int(keep.sum())*(o.numel()//keep.numel()) # a view: its size
        axes = varying(keep)
        if len(axes) == 1: return o.detach().index_select(axes[0], keep.reshape(-1).nonzero()[:, 0].to(o.device))
        if keep.all(): return o.detach().clone()
        return o.detach()[keep.expand(o.shape).to(o.device)]

# %%
#| export
class Differs(Exception):
    "The cut network does something else: why, the kind of reason for it, and in which output of an operation."
    def __init__(self, why, kind=FIXED, output=None):
        super().__init__(why)
        self.kind, self.output = kind, output

def difference(
    a:torch.Tensor, b:torch.Tensor, # equally many numbers
)->float:
    "Largest difference in units of the largest value."
    if a.is_complex(): a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.numel() == 0 or not a.is_floating_point(): return 0.
    a, b = a.reshape(-1), b.reshape(-1)
    size, worst = (torch.linalg.vector_norm(t, torch.inf).item() for t in (a, a-b))
    if not np.isfinite(size+worst): # infinite where the original is
        a, b = a.nan_to_num(), b.nan_to_num()
        size, worst = a.abs().max().item(), (a-b).abs().max().item()
    return worst/max(size, 1e-12)

class Follow(TorchDispatchMode):
    "Runs beside the values of a `Masked` record, and stops at the first operation that differs."
    def __init__(self,
        masked:Masked, # whose values are given back one after the other
        tolerance:float,
    ):
        super().__init__()
        self.masked, self.tolerance, self.at, self.worst, self.calls = masked, tolerance, 0, 0., 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.name = operation_of(func)[0]
        out = perform(func, args, kwargs or {}, self.calls, self.masked.wide)
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if not outs: return out
        if self.at >= len(self.masked.values): raise Differs('one operation more', BRANCHED)
        node, expected = self.masked.values[self.at]
        if self.name != node.op: raise Differs(f'{self.name} instead of {node.op}', BRANCHED)
        made = is_random(func) or self.name.startswith(('empty', 'new_empty')) # the same numbers, not others of the same kind
        for k, (a, b) in enumerate(zip(expected, outs)): self.compare(a, b, made, k)
        self.masked.values[self.at] = node, None
        self.at += 1
        return out
    def compare(self, a, b, made, k):
        if a is None: return
        count = a if isinstance(a, int) else a.numel()
        if count != b.numel(): raise Differs(f'{self.name} gives {b.numel()} numbers instead of {count}', output=k)
        if isinstance(a, int): return
        if made: b.copy_(a.reshape(b.shape)); return
        worst = difference(a, b)
        if not worst <= self.tolerance: raise Differs(f'{self.name} differs by {worst:.1e}', COUNTED)
        self.worst = max(self.worst, worst)

# %%
#| export
@dataclass
class Proof:
    "What running the cut network beside the original found."
    difference:float = 0. # largest, over all operations, in units of each one's largest value
    runs:int = 0 # pairs of runs
    share:float = 0. # of all parameters that the cut removed
    held:list = field(default_factory=list) # (labels, reason): what had to stay
    inputs:list = field(default_factory=list) # shapes on which it was run

@dataclass
class Failure:
    "Where a cut network did not follow the original."
    example:int # number of the input
    at:int # number of the operation
    output:int = field(compare=False) # number of the operation's output whose size differs, if it is that
    masked:Masked = field(compare=False) # the original's run
    reason:str = field(compare=False)

def _reason(e, node, name):
    "Why a cut network is another one: what happened, at which operation, in which line."
    if isinstance(e, Differs): return f'{e.kind}: {node.op} at {node.place or e}'
    frames = [(f.f_code, n) for f, n in traceback.walk_tb(e.__traceback__)]
    if not any(c is Follow.__torch_dispatch__.__code__ for c, _ in frames): name = f'{type(e).__name__} ({str(e)[:80]})'
    code, n = next(((c, n) for c, n in reversed(frames) if is_own(c)), (None, 0))
    return f'{FIXED}: {name} at {os.path.basename(code.co_filename)}:{n}' if code else f'{FIXED}: {name}'

def _like(t, generator, shape):
    "Noise of a tensor's kind and range; integers shuffled."
    if t.is_complex() or t.layout != torch.strided or t.is_quantized or not t.numel(): return t
    if not t.is_floating_point():
        flat = t.flatten()[torch.randperm(t.numel(), generator=generator, device='cpu').to(t.device)]
        return flat.reshape(t.shape)
    low, high = t.min().item(), t.max().item()
    draw = torch.rand if high > low else torch.randn
    x = draw(shape, generator=generator, dtype=torch.float64, device='cpu')
    return (x*(high-low)+low if high > low else x).to(t.device, t.dtype)

# %%
#| export
SMALL = 64 # pixels along an axis that a proof uses where the network takes so few

def resized(
    example, # tensors in tuples and dicts
    size:Callable=None, # function (pixels along an axis) → pixels
    batch:int=0, # so many more
    generator:torch.Generator=None, # for noise; None: the example itself, cropped
):
    "The example with other images, or noise of its kind."
    def one(t):
        if not isinstance(t, torch.Tensor) or not t.dim(): return t
        image = t.dim() > 2 and t.is_floating_point()
        shape = [t.shape[0]+batch, *t.shape[1:2], *(size(n) if size is not None and image else n for n in t.shape[2:])]
        if generator is not None: return _like(t, generator, shape)
        for d, n in enumerate(shape):
            if n < t.shape[d]: t = t.narrow(d, 0, n)
        return t
    return tree_map(one, example)

def _cropped(example): return resized(example, lambda n: min(n, SMALL))

def _as(tree, dtype): return tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t, tree)

def _noises(example):
    "Noise at a second size and batch, at a second size, with a second batch, and like the example."
    g, grown = lambda: torch.Generator().manual_seed(0), lambda n: n+32 if n >= 32 else n+8
    for kw in (dict(size=grown, batch=1), dict(size=grown), dict(batch=1), {}): yield resized(example, generator=g(), **kw)

# %%
#| export
def deepcopied(
    model:nn.Module,
    memo:dict, # as `copy.deepcopy` takes it
)->nn.Module:
    "A deep copy whose functions (a forward set on the instance, hooks) mean the copy's modules as well."
    out = copy.deepcopy(model, memo)
    for m in out.modules():
        for d in (m.__dict__, *(v for k, v in m.__dict__.items() if k.endswith('_hooks') and isinstance(v, dict))):
            for k, f in [*d.items()]:
                if isinstance(f, types.FunctionType): d[k] = _rebound(f, memo)
    return out

def _swapped(held, memo, depth=3):
    "A module's copy, or a function or list that means copies; anything else as it is."
    if isinstance(held, nn.Module): return memo.get(id(held), held)
    if isinstance(held, types.FunctionType) and depth: return _rebound(held, memo, depth-1)
    if type(held) in (list, tuple) and any(isinstance(h, nn.Module) for h in held): return type(held)(memo.get(id(h), h) for h in held)
    return held

def _rebound(f, memo, depth=3):
    "A function that closes over modules, has them as defaults or reaches them by a global name, and now means their copies."
    cells, defaults = [c.cell_contents for c in f.__closure__ or ()], f.__defaults__ or ()
    named = {k: f.__globals__[k] for k in f.__code__.co_names if isinstance(f.__globals__.get(k), nn.Module)}
    swap = lambda held: [_swapped(h, memo, depth) for h in held]
    new = swap(cells), swap(defaults), swap(named.values())
    if all(a is b for old, now in zip((cells, defaults, named.values()), new) for a, b in zip(old, now)): return f
    space = {**f.__globals__, **dict(zip(named, new[2]))} if named else f.__globals__
    g = types.FunctionType(f.__code__, space, f.__name__, tuple(new[1]) or None, tuple(map(types.CellType, new[0])) or None)
    g.__kwdefaults__ = f.__kwdefaults__
    return g

def twin(
    net:nn.Module, # is not changed
    dtype:torch.dtype=None, # of its floating tensors; None: as they are
)->nn.Module:
    "Another network of the same parameters, shared where they are of that type, and of equal other tensors: a run may write into those."
    def new(t): return t.detach().to(dtype, copy=True) if dtype is not None and t.is_floating_point() else t.detach().clone()
    memo = {id(p): p if dtype is None else nn.Parameter(new(p), p.requires_grad) for p in net.parameters()}
    for m in net.modules():
        for t in (*m.buffers(False), *tensors_of(attributes(m))): memo.setdefault(id(t), new(t))
    with torch.inference_mode(False): out = deepcopied(net, memo)
    for m in out.modules():
        if dtype is not None and isinstance(m, torch.jit.ScriptModule): m.to(dtype)
    return out

# %%
#| export
class Prover:
    "A copy in double precision, and the inputs on which a cut is tried."
    def __init__(self,
        net:nn.Module, # a private copy
        rec:Recorder, # of its run on the example
        example, # tensor, tuple or dict
        more:tuple=(), # further examples
        train:bool=False, # try it in training mode too
    ):
        self.plain, self.ops, self.train = (net, example, more), [n.op for n in rec.nodes], train
        self.whole = sum(p.numel() for p in net.parameters())
        self._set(twin(net, torch.float64), _as(example, torch.float64), _as(more, torch.float64), True, 1e-7)
    def _set(self, net, example, more, wide, tolerance):
        self.net, self.wide, self.tolerance = net, wide, tolerance
        crop = _cropped(example)
        same = all(a.shape == b.shape for a, b in zip(tensors_of(crop), tensors_of(example)))
        self.inputs = [([example] if same else [crop, example], False), *(([e], False) for e in more)]
        self.settled = False
    def _masked(self, i, rec, removed):
        "The original's run on an input, or on the first of its alternatives on which it runs; None if on none."
        (alternatives, train), first, error = self.inputs[i], i == 0 and not self.settled, None
        for e in alternatives:
            try: masked = record(twin(self.net), e, train, Masked, removed=removed, wide=self.wide)
            except UDFCError as failed: error = failed; continue
            if first and len(alternatives) > 1 and e is alternatives[0] and [n.op for n in masked.nodes] != self.ops: continue
            self.inputs[i] = [e], train
            if first: self.settled = True; self.inputs += [(_noises(e), False)]+[([e], True)]*self.train
            return masked
        if first and self.wide: self._set(*self.plain, False, 1e-3); return self._masked(i, rec, removed)
        if first: raise error
        del self.inputs[i]
    def differs(self,
        rec:Recorder,
        removed:np.ndarray, # of bool, one for each label
        proof:Proof, # takes note
        inputs:int=10**9, # on so many at most
    )->Failure: # or None
        "Cuts, and runs the cut network beside the original on every input."
        small, i, worst = None, 0, 0.
        while i < min(len(self.inputs), inputs):
            masked = self._masked(i, rec, removed)
            if masked is None: continue
            if small is None:
                small = cut(twin(self.net), rec, removed)
                proof.share = 1-sum(p.numel() for p in small.parameters())/max(self.whole, 1)
            example, train = self.inputs[i][0][0], self.inputs[i][1]
            proof.runs += 1
            follow, error = Follow(masked, self.tolerance), None
            net = twin(small)
            args, kwargs = call_args(net, fresh(example))
            try:
                with quiet(net, train), follow: out = net(*args, **kwargs)
                if follow.at < len(masked.values): raise Differs('operations less', BRANCHED)
                if [t.shape for t in tensors_of(out)] != [t.shape for t in tensors_of(masked.result)]: raise Differs('outputs of other shapes')
            except (MemoryError, torch.OutOfMemoryError): raise
            except Exception as e: error = e
            if error is not None:
                at = min(follow.at, len(masked.values)-1)
                return Failure(i, at, getattr(error, 'output', None), masked, _reason(error, masked.values[at][0], follow.name))
            worst, i = max(worst, follow.worst), i+1
        if inputs < len(self.inputs): return
        proof.difference = worst
        proof.inputs = [[tuple(t.shape) for t in tensors_of(e[0])] for e, _ in self.inputs]

# %%
#| export
def _labels(record, node):
    "Labels of a tensor: along its one axis of channels, or those of the parameters that it comes from."
    if node.channels is not None: return [node.channels]
    if node.op == 'parameter':
        shape = record.parameters[node.target].shape
        return [np.arange(a, a+n) for a, n in zip(record.atoms[node.target], shape) if a]
    return [] if node.live else [l for n in node.inputs for l in _labels(record, n)]

def suspects(
    graph:Graph,
    failure:Failure,
)->list: # of arrays of labels, the likeliest first
    "Channels that may have to stay: of a part that is taken by a number; of what the operation reads; all that meets there."
    of, values = graph.classes.of, failure.masked.values
    free = np.zeros(of.max()+1, bool)
    for s in graph.sites: free[s.classes] = True
    def those(nodes):
        labels = np.unique(np.concatenate([np.zeros(0, int), *(l for n in nodes for l in _labels(graph.record, n))]))
        return labels[free[of[labels]]]
    node = values[failure.at][0]
    part = next((n for n in node.users if n.op == 'part' and n.args[1] == failure.output), node)
    own = not type(graph.record.net.get_submodule(node.module)).__module__.startswith('torch.') # a line of the network's own code
    alike = [n for n, _ in values if n.line == node.line and n.op == node.op] if own else [node]
    taken = failure.output is not None and node.kind in ('slice', 'split')
    found = [those([part] if taken else []), those(s for n in alike for s in n.sources), those(m for n in alike for m in (n, *n.inputs))]
    if not any(map(len, found)): # the nearest before it
        before = (those((n, *n.inputs)) for n, _ in values[failure.at::-1])
        found.append(next(filter(len, before), []))
    return [f for f in found if len(f)]

# %%
#| export
def choose(
    sites:list,
    ratio:float=.3, # of the units of each site, rounded up
    seed:int=0,
)->dict: # site name → (K, P)
    "Channels at random, at least one unit of every site; of sites of one size not equally many, so that no count is another's."
    rng, kept, sizes = np.random.default_rng(seed), {}, Counter()
    for s in sites:
        n = len(s.units)//s.groups
        go = n-max(1, math.floor(n*(1-ratio)+1e-9))+(0, -1, 1, -2, 2)[sizes[n] % 5]
        go, sizes[n] = min(max(go, 1), n-1), sizes[n]+1
        gone = np.concatenate([s.units[q*n+rng.permutation(n)[:go]].ravel() for q in range(s.groups)]) if go else np.zeros(0, int)
        mask = np.zeros(s.size, bool); mask[gone] = True
        if len(gone): kept[s.name] = torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))
    return kept

# %%
#| export
def culprits(
    sites:list,
    helps:Callable, # function (sites) → does the failure go away if they stay whole?
)->list: # of sites
    "The fewest that must stay, found by halving: the last one that is needed, then the last one before it …"
    needed = []
    while sites:
        low, high = 0, len(sites)-1
        while low < high:
            mid = (low+high)//2
            low, high = (low, mid) if helps([*needed, *sites[:mid+1]]) else (mid+1, high)
        needed.append(sites[low]); sites = sites[:low]
        if sites and helps(needed): break
    return needed

def prove(
    graph:Graph,
    rebuild:Callable, # function (held) → Graph
    prover:Callable, # function () → `Prover`
    select:Callable=None, # function (Graph) → site name → (K, P); None: by chance
    runs:int=100, # pairs of runs at most, after which everything is left whole
)->Graph: # with sites whose cut was followed, and a `Proof`
    "Cuts, compares, and leaves whole what differs, until nothing does."
    proof, held, start = Proof(), list(graph.held), graph
    chance = lambda graph: choose(graph.sites)
    if not (select or chance)(graph): graph.proof = proof; return graph
    judge = prover()
    for choice, inputs in [(chance, 1), (select, 10**9)] if select else [(chance, 10**9)]: # first: does a count hang on another one?
        def attempt(held):
            graph = rebuild(held) if held else start
            kept = choice(graph)
            return graph, judge.differs(graph.record, graph.removed(kept), proof, inputs) if kept else None
        graph, failure = attempt(held)
        while failure is not None:
            found, graph, failure = _mended(graph, failure, attempt, held, proof.runs < runs)
            held += found
    proof.held, graph.proof = held, proof
    if not graph.sites: proof.share = 0.
    return graph

def _mended(graph, failure, attempt, held, patient):
    "What must stay so that a failure goes away, and the next graph and failure."
    of, reason, last = graph.classes.of, failure.reason, None
    def stay(labels): return [(np.flatnonzero(np.isin(of, of[labels])), reason)]
    def whole(sites): return [stay(np.flatnonzero(np.isin(of, s.classes)))[0] for s in sites]
    for labels in suspects(graph, failure):
        part = failure.output is not None and last is None # of a site; else all of it
        guess = stay(labels) if part else whole(s for s in graph.sites if np.isin(s.classes, of[labels]).any())
        size = sum(len(l) for l, _ in guess)
        if size == last: continue # the same again
        last, after = size, attempt([*held, *guess])
        if after[1] != failure: return guess, *after
    helps = lambda sites: attempt([*held, *whole(sites)])[1] != failure # the operation does not tell
    guess = whole(culprits(graph.sites, helps) if patient else graph.sites)
    return guess, *attempt([*held, *guess])

# %%
#| export
def sites_of(
    net:nn.Module, # a private copy
    example_inputs, # tensor, tuple or dict
    ignored:tuple=(), # as `ignored_layers` of `find_sites`
    policy:str='own', # as `sites` of `find_sites`
    more_examples:tuple=(),
)->tuple: # Graph, function (held) → Graph, function () → `Prover`
    "Sites that the records leave, without a proof; and what a proof needs."
    if policy not in POLICIES: raise UnsupportedError(f'sites={policy!r}', layer='sites', hint=f'choose from {", ".join(POLICIES)}')
    check_names(net, ignored, 'ignored_layers')
    records = [record(twin(net), example, foreign=ORIGINS.get(net)) for example in (example_inputs, *more_examples)]
    train = _auxiliary(net, example_inputs, records)
    if train is not None: records.append(train)
    rebuild = lambda held: graph_of(net, records, tuple(ignored), policy, held)
    return rebuild([]), rebuild, lambda: Prover(net, records[0], example_inputs, more_examples, train is not None)

def find_sites(
    model:nn.Module, # is not changed
    example_inputs, # tensor, tuple or dict that the forward takes
    ignored_layers:tuple=(), # names of layers to leave whole, or of modules not to look into
    *,
    sites:str='own', # 'own': channels that one layer makes; 'all': of layers that meet in a sum as well
    verify:bool=True, # cut, run beside the original, and leave whole what differs
    more_examples:tuple=(), # further inputs that take other branches; what is seen there adds up
)->Graph:
    "Every place where channels can be removed, and why not elsewhere. Raises `ExampleInputError`, `LayerNameError`, `UnsupportedError`."
    graph, *proof = sites_of(copied(model), example_inputs, tuple(ignored_layers), sites, more_examples)
    return prove(graph, *proof) if verify else graph

ORIGINS = weakref.WeakKeyDictionary() # private copy → {storage: (name, reference)} of the network that it is a copy of

def copied(
    model:nn.Module,
)->nn.Module:
    "A private copy. Raises `UnsupportedError`, which names the module that cannot be copied or has no numbers."
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, t in tensors:
        at = name.rpartition('.')[0] or name
        if is_lazy(t): raise UnsupportedError('a lazy module has no weights yet', layer=at,
            hint='run the network once: model(example_inputs)')
        if t.is_meta: raise UnsupportedError('its weights are on the meta device, without numbers', layer=at,
            hint="give it numbers: model.to_empty(device='cpu'), then model.load_state_dict(...)")
    with torch.inference_mode(False), torch.no_grad():
        memo = {id(t): t.detach().clone() for m in model.modules() for t in tensors_of(attributes(m)) if not t.is_leaf}
        try: net = deepcopied(model, memo)
        except (MemoryError, torch.OutOfMemoryError): raise
        except Exception as e: raise UnsupportedError(f'the network cannot be copied: {type(e).__name__}: {str(e)[:200]}', layer=_uncopied(model),
            hint='set this attribute to None before, or give its class a `__deepcopy__`') from e
    stored = ((n, t.untyped_storage()) for n, t in tensors if t.layout == torch.strided)
    ORIGINS[net] = {s._cdata: (n, StorageWeakRef(s)) for n, s in stored}
    return net

def _uncopied(model):
    "Module and attribute that cannot be copied."
    for name, m in model.named_modules():
        for k, v in attributes(m).items():
            try: copy.deepcopy(v)
            except Exception: return f'{name}.{k}'.lstrip('.')

def _auxiliary(net, example, records):
    "A record in training mode, if there are parameters that eval mode does not read."
    read = set().union(*(r.read for r in records))
    if all(n in read for n, p in records[0].parameters.items() if isinstance(p, nn.Parameter)): return None
    try: rec = record(twin(net), example, train=True)
    except UDFCError: return None
    return rec if rec.read-read else None
