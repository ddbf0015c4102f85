# %%
#| export
import contextlib, difflib, functools, inspect, itertools, math, os, sys
from collections import Counter
from dataclasses import dataclass, field
import numpy as np
import torch, torch.nn as nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from ..errors import ExampleInputError, LayerNameError, UDFCError, UnsupportedError
from .labels import Shadow, always, geometry, pairs, slabs, varying
from .operations import ACT, CROSSED, FIXED, OPERATIONS, OUTPUT, OWN, RETYPED, UNKNOWN, WRITTEN, operation_of

# %%
#| export
@dataclass(eq=False, repr=False)
class Node:
    "One operation that ran, or a tensor that was there before: an input, a parameter, a constant."
    name:str # number and operation
    op:str # name in `OPERATIONS`; 'input', 'parameter', 'constant', 'output', 'part' (of a tuple), 'written' (changed through a view)
    kind:str = 'other' # of its `Operation`
    func:object = None # what torch calls
    args:tuple = () # nodes instead of tensors
    kwargs:dict = field(default_factory=dict)
    shape:tuple = () # of the output
    target:str = '' # name of the parameter; of layers and norms: of the module that holds the weights; else of the module that ran it
    module:str = '' # innermost module that was running
    number:int = 0 # in the order of the run
    line:tuple = None # (file, line) of the network's own code
    live:bool = True # does it depend on an input of the network?
    tokens:bool = False # is it a matrix of which several rows belong to one example?
    value:object = None # constants: the tensor
    axis:int = None # along which the labels vary; None if along none
    channels:np.ndarray = None # labels along that axis
    inputs:list = field(default_factory=list) # nodes that it reads
    users:list = field(default_factory=list) # nodes that read it
    def __repr__(self): return self.name
    @property
    def sources(self): return [n for n in self.inputs if n.live]
    @property
    def alpha(self): return self.kwargs.get('alpha', 1)
    @property
    def place(self): return f'{os.path.basename(self.line[0])}:{self.line[1]}' if self.line else ''

# %%
#| export
def _filled(tree, value): return tree_map(lambda a: value(a) if isinstance(a, Node) else a, tree)

def evaluate(
    node:Node, # that depends on no input
    tensor, # function (name of a parameter or buffer) → its value
)->torch.Tensor:
    "What an operation on parameters and constants gives."
    if node.op == 'parameter': return tensor(node.target)
    if node.op == 'constant': return node.value
    value = lambda n: evaluate(n, tensor)
    if node.op == 'part': return _performed(node.args[0], value)[node.args[1]]
    out = _performed(node, value)
    return out[0] if isinstance(out, tuple) else out

def _performed(node, value):
    "An operation once more; several tensors, where it gives several."
    with torch.no_grad(): return node.func(*_filled(node.args, lambda n: value(n).clone()), **_filled(node.kwargs, value))

def rerun(
    node:Node, # elementwise, with one live input
    x:torch.Tensor, # anything instead of that input
    tensor=None, # function (name) → parameter, where it reads some
)->torch.Tensor:
    "The same operation on another tensor."
    def value(n):
        if n.live: return x.clone()
        t = evaluate(n, tensor) if tensor is not None else n.value
        return t.reshape(()).to(x) if t.numel() == 1 and t.is_floating_point() else t
    out = node.func(*_filled(node.args, value), **_filled(node.kwargs, value))
    return out[0] if isinstance(out, tuple) else out

# %%
#| export
@dataclass(eq=False)
class Layer:
    "A weight that a convolution or a product of matrices reads."
    name:str # of the module that holds it; of the weight itself, where its module holds several
    weight:str # name of the parameter
    plain:bool = True # is the weight read as it is stored?
    calls:list = field(default_factory=list) # nodes
    rows:np.ndarray = None # atoms of its outputs
    columns:np.ndarray = None # atoms of its inputs, (inputs,) or (groups, inputs per group)
    reads:list = field(default_factory=list) # per call: labels of what the columns read
    depthwise:bool = False
    transposed:bool = False
    groups:int = 1

# %%
#| export
class Call:
    "One operation while it runs: what a rule is given."
    def __init__(self, name, func, args, kwargs, node):
        self.name, self.func, self.args, self.kwargs, self.node = name, func, args, kwargs, node
        outs = {a.name for a in getattr(getattr(func, '_schema', None), 'arguments', ()) if a.is_out}
        given = args, {k: v for k, v in kwargs.items() if k not in outs}
        self.tensors = [*_tensors(given)]
        self.planes, self.outs, self.weight, self.plain = [], [], None, False
    def planes_of(self, t): return next((p for u, p in zip(self.tensors, self.planes) if u is t), {})
    def argument(self, name, default=None):
        "An argument by its name in torch's own signature."
        for i, a in enumerate(self.func._schema.arguments):
            if a.name != name: continue
            if i < len(self.args): return self.args[i]
            return self.kwargs.get(name, a.default_value if a.has_default_value() else default)
        return default
    def set_weight(self, t, planes):
        "Notes the parameter that a layer reads."
        self.weight = next((k[0] for k in planes), None)
        self.stored = t

# %%
#| export
HERE = (os.path.dirname(torch.__file__)+os.sep, os.path.dirname(__file__)+os.sep, '<')

def is_own(code): return not code.co_filename.startswith(HERE)

def own_line()->tuple: # (file, line)
    "The line of the network's own code that is running."
    f = sys._getframe(2)
    while f is not None and not is_own(f.f_code): f = f.f_back
    return (f.f_code.co_filename, f.f_lineno) if f is not None else None

# %%
#| export
def is_random(func): return torch.Tag.nondeterministic_seeded in getattr(func, 'tags', ())

@functools.cache
def _drawing(func):
    "The overload of an operation that is given a generator, and the place of that argument; None where there is none."
    signature = lambda f: [(a.name, str(a.type)) for a in f._schema.arguments if a.name != 'generator']
    for f in (func, *(getattr(func.overloadpacket, o) for o in func.overloadpacket.overloads())):
        names = [a.name for a in f._schema.arguments]
        if 'generator' in names and signature(f) == signature(func): return f, names.index('generator')

def drawn(
    func, # an operation
    args:tuple, kwargs:dict,
    seed:int,
):
    "The result of an operation that draws random numbers: the same for the same seed, and no generator moves."
    device = next((t.device for t in tree_leaves(args) if isinstance(t, torch.Tensor)), kwargs.get('device') or 'cpu')
    g = torch.Generator(device).manual_seed(seed)
    if func is torch.ops.aten.native_dropout.default:
        rate = 0. if args[2] is False else args[1]
        keep = torch.rand(args[0].shape, generator=g, device=device) >= rate
        return args[0]*keep/max(1-rate, 1e-9), keep
    if (found := _drawing(func)) is None: return func(*args, **kwargs) # attention: it draws only for dropout
    f, i = found
    return f(*args[:i], g, *args[i+1:], **kwargs) if i < len(args) else f(*args, **{**kwargs, 'generator': g})

def perform(
    func, # an operation
    args:tuple, kwargs:dict,
    seed:int, # of random numbers
    wide:bool=False, # in double precision, whatever type the network asks for
):
    "The result of an operation."
    if wide and kwargs.get('dtype') in NARROW: kwargs = {**kwargs, 'dtype': torch.float64}
    out = drawn(func, args, kwargs, seed) if is_random(func) else func(*args, **kwargs)
    made = wide and isinstance(out, torch.Tensor) and out.dtype in NARROW
    return out.double() if made and not any(isinstance(a, torch.Tensor) for a in tree_leaves(args)) else out

NARROW = (torch.float32, torch.float16, torch.bfloat16)

def _key(t): return t.untyped_storage()._cdata

# %%
#| export
def _noted(tree, refs):
    "Arguments with nodes instead of tensors."
    if isinstance(tree, torch.Tensor): return refs.get(id(tree), tree)
    if isinstance(tree, (list, tuple)): return type(tree)([_noted(a, refs) for a in tree]) if type(tree) in (list, tuple) else tree
    return {k: _noted(a, refs) for k, a in tree.items()} if isinstance(tree, dict) else tree

def _tensors(tree):
    "The tensors among arguments."
    if isinstance(tree, torch.Tensor): yield tree
    elif isinstance(tree, (list, tuple)):
        for a in tree: yield from _tensors(a)
    elif isinstance(tree, dict):
        for a in tree.values(): yield from _tensors(a)

# %%
#| export
class Recorder(TorchDispatchMode):
    "Sees every operation of a run, and gives every element of every tensor the label of the channel with which it lives and dies."
    def __init__(self,
        net:nn.Module, # a private copy: hooks are set on its modules while the run lasts
        wide:bool=False, # in double precision, whatever type the network asks for
        foreign:dict=None, # storage → (name, reference): tensors of the network that it is a copy of
    ):
        super().__init__()
        self.net, self.wide, self.foreign, self.nodes, self.stack = net, wide, foreign or {}, [], []
        self.edges, self.frozen, self.balanced = [], [], [] # (2, m) pairs, kind, node; atoms, reason, node; (groups, n) atoms, strict
        self.layers, self.numbers = {}, [] # weight → Layer; (module, attribute, atoms)
        self.shadows, self.alive, self.fresh = {}, {}, set() # by storage; those that the run itself made of nothing
        self.names, self.atoms, self.parameters, self.n = {}, {}, {}, 1 # storage → names; name → first atom per axis
        self.origin, self.writes, self.read, self.ran = {}, {}, set(), 0
        self.held, self.unseen = {_key(t) for m in net.modules() for t in tensors_of(attributes(m)) if t.layout == torch.strided}, None
        tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        self.every, self.aliases = torch.arange(1+sum(map(sum, (t.shape for _, t in tensors))), device='cpu'), {}
        self.matrices = Counter() # of each module
        for name, t in tensors: self._number(name, t)
    def _number(self, name, t):
        if t.layout != torch.strided or not t.numel(): return
        c = _key(t)
        self.names.setdefault(c, []).append(name); self.aliases[name] = self.names[c]
        if c in self.shadows: self.atoms[name] = self.atoms[self.names[c][0]]; return
        self.shadows[c] = shadow = Shadow(t)
        self.parameters[name], first, at = t, [], geometry(t)
        if sum(n > 1 for n in t.shape) > 1: self.matrices[name.rpartition('.')[0]] += 1
        for d, n in enumerate(t.shape):
            first.append(self.n if n > 1 else 0)
            if n == 1: continue
            labels = self.every[self.n:self.n+n].reshape([-1 if k == d else 1 for k in range(t.dim())])
            shadow.planes[name, d] = (labels, at); self.n += n
        self.atoms[name] = first

    # modules
    def __enter__(self):
        def enter(name): return lambda m, args: self.stack.append(name)
        def leave(m, args, out):
            if sys.exc_info()[0] is not None: self.fell = self.fell or self.stack[-1]
            if self.stack: self.stack.pop()
        self.hooks, self.fell = [], None # modules in which the run ended in an error: the innermost
        for name, m in self.net.named_modules():
            if isinstance(m, torch.jit.ScriptModule): continue
            self.hooks.append(m.register_forward_pre_hook(enter(name), prepend=True))
            self.hooks.append(m.register_forward_hook(leave, always_call=True))
        return super().__enter__()
    def __exit__(self, *exc):
        for h in self.hooks: h.remove()
        return super().__exit__(*exc)

    # labels
    def planes(self, t):
        "Plane → labels of a tensor."
        if t.layout != torch.strided: return {}
        shadow = self.shadows.get(_key(t))
        if shadow is None or not t.numel(): return {}
        if _key(t) in self.names: self.read.add(self.names[_key(t)][0])
        if t.element_size() == shadow.width: return {k: shadow.read(k, t) for k in shadow.planes}
        for k in shadow.planes: self.freeze(shadow.whole(k), RETYPED)
        return {}
    def label(self, t, planes):
        "Gives a tensor its labels."
        c = _key(t)
        if c in self.names:
            for p in planes.values(): self.freeze(p, WRITTEN)
            return
        if c not in self.shadows:
            self.shadows[c], self.alive[c] = Shadow(t), StorageWeakRef(t.untyped_storage())
        for k, p in planes.items(): self.shadows[c].write(k, t, p)
    def forget(self):
        "Storages that are gone."
        for c in [c for c, ref in self.alive.items() if ref.expired()]:
            del self.alive[c]
            for d in (self.shadows, self.origin, self.writes): d.pop(c, None)
            self.fresh.discard(c)
    def names_of(self, name):
        "All names of the tensor of that name."
        return self.aliases[name]
    def is_made(self, t): return _key(t) in self.fresh

    # what rules say
    def tie(self, a, b, kind='with'):
        "These live and die together. Kinds: 'read' (columns), 'with' (parameters), 'gate' (a product), 'sum' (of two activations)."
        self.edges.append((pairs(a, b), kind, self.node))
    def freeze(self, labels, why):
        "These must stay."
        if labels is None: return
        atoms = np.unique(labels.numpy() if isinstance(labels, torch.Tensor) else labels)
        if why is FIXED: why = f'{FIXED}: {self.node.op} at {self.node.place}'
        if len(atoms := atoms[atoms > 0]): self.frozen.append((atoms, why, self.node))
    def freeze_all(self, call, why):
        for planes in call.planes:
            for labels in planes.values(): self.freeze(labels, why)
        return {}
    def place(self, call): return f' at {call.node.place}' if call.node.line else ''
    def along(self, labels, axis, t):
        "Labels along one axis, as a vector; what varies elsewhere as well is tied so that slabs can leave."
        n = t.size(axis)
        if labels is None or labels.numel() == 1: return always(n) if labels is None else labels.reshape(1).expand(n)
        if axis not in varying(labels): self.freeze(labels, CROSSED); return always(n)
        first = labels
        for d in varying(labels):
            if d != axis: first = first.narrow(d, 0, 1)
        if first.shape != labels.shape: self.tie(labels, first)
        return first.reshape(-1)
    def settle(self, labels):
        "Labels that vary along one axis at most; what lies in a slab across it is tied."
        if len(varying(labels)) < 2: return labels
        axis, edges = slabs(labels)
        self.edges.append((edges, 'with', self.node))
        for d in varying(labels):
            if d != axis: labels = labels.narrow(d, 0, 1)
        return labels
    def balance(self, atoms, strict=True):
        "Equally many must stay in every row (not strict: unless one of them must stay whole)."
        self.balanced.append((np.asarray(atoms), strict))

    # layers
    def layer(self, call):
        "The layer that an operation is a call of."
        name = call.weight
        if name not in self.layers:
            owner = name.rpartition('.')[0].split('.parametrizations.')[0]
            stored = call.stored.untyped_storage()._cdata in self.names
            several = self.matrices[owner] > (name.rpartition('.')[0] == owner)
            self.layers[name] = Layer(name if several else owner, name, stored and name == f'{owner}.weight'.lstrip('.'))
        layer, ran = self.layers[name], self.stack[-1] if self.stack else ''
        call.node.target = ran if f'{ran}.weight' in self.names_of(name) else layer.name # two modules may hold one weight
        return layer
    def reads(self, call, read, columns, groups):
        "A layer reads labels through its columns."
        if columns is None:
            if read is not None: self.freeze(read, OWN)
            return
        layer = self.layer(call)
        layer.calls.append(call.node); layer.reads.append(read.numpy()); layer.columns, layer.groups = columns.numpy(), groups
        layer.transposed = call.name in ('convolution', '_convolution') and bool(call.args[6])
        self.tie(read.reshape(columns.shape), columns, 'read')
        if groups > 1: self.balance(columns)
    def makes(self, call, rows, n, groups):
        "A layer's rows are new channels."
        if rows is None: return always(n)
        layer = self.layer(call)
        layer.rows, layer.groups = rows.numpy(), max(groups, layer.groups)
        if call.node not in layer.calls: layer.calls.append(call.node); layer.reads.append(None)
        if groups > 1: self.balance(rows.reshape(groups, -1))
        return rows
    def depthwise(self, call, rows):
        layer = self.layer(call)
        layer.rows, layer.depthwise, layer.groups = rows.numpy(), True, call.args[8]
        layer.calls.append(call.node); layer.reads.append(None)
        self.numbers.append((call.node.target, 'groups', rows.reshape(call.args[8], -1)[:, 0].numpy()))
    def grouped(self, call, w, groups):
        "Atoms for the columns of a grouped convolution: each group reads others."
        name = call.weight
        if (name, 'columns') not in self.atoms: self.atoms[name, 'columns'] = self.n; self.n += groups*w.size(1)
        first = self.atoms[name, 'columns']
        return torch.arange(first, first+groups*w.size(1), device='cpu').reshape(groups, -1)
    def counts(self, call, attribute, labels):
        "A module remembers how many of these there are."
        self.numbers.append((self.stack[-1] if self.stack else '', attribute, labels.numpy()))

    # nodes
    def _new(self, op, **kwargs):
        node = Node(f'{op}_{len(self.nodes)}', op, number=len(self.nodes), **kwargs)
        self.nodes.append(node)
        return node
    def node_of(self, t):
        "The node that made a tensor as it is now."
        if t.layout != torch.strided: return self._new('constant', kind='constant', value=t, live=True)
        c, at = _key(t), (*geometry(t), t.dtype)
        made, count = self.origin.setdefault(c, {}), self.writes.get(c, ())
        held = made.get(at)
        if held is not None and held[1] == len(count): return held[0]
        if held is not None or count or c in self.shadows and c not in self.names and made: # read through a view that did not write it
            old = [held[0]] if held is not None else [next(iter(made.values()))[0]] if made else []
            node = self._new('written', inputs=[*old, *count[held[1] if held else 0:]], shape=tuple(t.shape))
            node.live = any(n.live for n in node.inputs)
        elif c in self.names: node = self._parameter(t, c)
        elif c in self.foreign and not self.foreign[c][1].expired():
            raise UnsupportedError('is read by a forward that belongs to another copy of the network', layer=self.foreign[c][0],
                hint='let the forward read its own `self`: a method of the class, or types.MethodType(function, model)')
        else:
            node = self._new('constant', kind='constant', value=t.detach(), live=ACT in self.planes(t), shape=tuple(t.shape))
            if t.dim() and c not in self.held: self.unseen = self.unseen or self.node
        made[at] = (node, len(count))
        return node
    def _parameter(self, t, c):
        name = self.names[c][0]
        whole = self.parameters[name]
        if geometry(t) == geometry(whole): return self._new('parameter', kind='parameter', target=name, live=False, shape=tuple(t.shape))
        node = self._new('parameter', kind='parameter', target=name, live=False, shape=tuple(t.shape), value=geometry(t))
        return node
    def note(self, node, out, k=0):
        "Says which node an output comes from."
        if out.layout != torch.strided: return
        c = _key(out)
        self.alive.setdefault(c, StorageWeakRef(out.untyped_storage())) if c not in self.names else None
        self.origin.setdefault(c, {})[(*geometry(out), out.dtype)] = (node, len(self.writes.get(c, ())))

    # one operation
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, operation = operation_of(func)
        at = self.stack[-1] if self.stack else ''
        node = Node('', name, operation.kind, func, target=at, module=at, line=own_line())
        call = Call(name, func, args, kwargs, node)
        self.node, node.op = node, name
        refs = {id(t): self.node_of(t) for t in call.tensors}
        node.args, node.kwargs = _noted(tuple(args), refs), _noted(kwargs, refs)
        node.inputs = list(dict.fromkeys(refs.values()))
        call.planes = [self.planes(t) for t in call.tensors] # before anything is overwritten
        self.ran += 1
        out = self.execute(call)
        call.outs = [out] if isinstance(out, torch.Tensor) else [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        node.number = len(self.nodes); node.name = f'{name}_{node.number}'; self.nodes.append(node)
        if call.outs: self.follow(call, operation, isinstance(out, list))
        elif name in OPERATIONS: self.passed(call, operation)
        if len(self.nodes) % 64 == 0: self.forget()
        return out
    def execute(self, call):
        "Runs the operation."
        return perform(call.func, call.args, call.kwargs, self.ran, self.wide)

    def follow(self, call, operation, parts):
        "What becomes of labels and nodes."
        node, outs = call.node, call.outs
        node.shape, node.live = tuple(outs[0].shape), any(n.live for n in node.inputs)
        for n in node.inputs: n.users.append(node)
        plain = [o for o in outs if o.layout == torch.strided]
        stored = {_key(t) for t in call.tensors if t.layout == torch.strided}
        writes = [a for a in call.func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        view = not writes and plain and all(_key(o) in stored for o in plain)
        if not call.tensors or call.name.startswith('new_') or call.name.endswith('_like'):
            for o in plain: self.alive[_key(o)] = StorageWeakRef(o.untyped_storage()); self.fresh.add(_key(o))
            if call.name.endswith('_like') and call.planes: self.label(outs[0], call.planes[0])
        elif view: self._view(call, parts)
        else:
            planes = self.passed(call, operation)
            if not planes and any(ACT in p for p in call.planes): planes = {ACT: always()}
            for o in plain: # further outputs: indices of a pool are like its output
                if not o.numel() or not planes or o.shape != plain[0].shape and self.planes(o): continue
                self.label(o, {k: _fitting(p, o) for k, p in planes.items()})
        if writes:
            for o in plain: self.writes.setdefault(_key(o), []).append(node)
        node.tokens = self._tokens(call)
        self._outputs(node, outs, parts)
    def passed(self, call, operation):
        "What a rule says; where it fails, nothing is known about the operation."
        try: return operation.labels(self, call)
        except (MemoryError, UDFCError): raise
        except Exception as e: return self.freeze_all(call, f'{UNKNOWN}: {call.name}{self.place(call)}: {type(e).__name__}: {e}')
    def _tokens(self, call):
        "Rows of a matrix that several belong to one example: made by a view, passed on until a view back."
        out = call.outs[0]
        if out.dim() != 2: return False
        t, n = (call.tensors[0], call.node.inputs[0]) if call.tensors else (out, call.node)
        if call.node.kind == 'reshape' and t.dim() > 2: return t.size(-1) == out.size(1) and t.size(0) != out.size(0)
        return any(n.tokens and n.shape[0] == out.size(0) for n in call.node.sources)
    def _view(self, call, parts):
        "Labels of a view are those of its storage; whole slabs of them can leave."
        found = [(o, p) for o in call.outs if o.numel() and (p := self.planes(o).get(ACT)) is not None]
        for o, labels in found: self.settle(labels)
        if parts and len(found) == len(call.outs) > 1:
            labels = [p.reshape(-1) for _, p in found if len(varying(p)) == 1]
            if len(labels) == len(found) and len({len(p) for p in labels}) == 1: self.balance(torch.stack(labels).numpy(), False)
    def _outputs(self, node, outs, parts):
        for k, o in enumerate(outs):
            made = node
            if parts or k:
                made = self._new('part', kind='split' if parts else 'other', args=(node, k), inputs=[node], live=node.live,
                    tokens=node.tokens, shape=tuple(o.shape))
                node.users.append(made)
            self.note(made, o)
            if o.layout == torch.strided and o.numel() and (labels := self.planes(o).get(ACT)) is not None and len(axes := varying(labels)) == 1:
                made.axis, made.channels = axes[0], labels.reshape(-1).numpy()

def _fitting(labels, t):
    "Labels of a further output: those of the first, along axes that it shares with it."
    if labels.dim() == t.dim() and all(t.shape[d] == labels.shape[d] for d in varying(labels)): return labels
    return always()

# %%
#| export
def call_args(
    model:nn.Module,
    example_inputs, # tensor, tuple of arguments, or dict (of arguments by name, or itself the one argument)
)->tuple: # (args, kwargs)
    "How to call the network on `example_inputs`. Raises `ExampleInputError`."
    if isinstance(example_inputs, torch.Tensor): return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)): return tuple(example_inputs), {}
    if isinstance(example_inputs, dict):
        named = set(example_inputs) <= set(inspect.signature(model.forward).parameters)
        return ((), dict(example_inputs)) if named else ((example_inputs,), {})
    raise ExampleInputError(f'`example_inputs` is a {type(example_inputs).__name__}', hint='pass a tensor, a tuple or a dict of tensors')

def tensors_of(
    tree, # whatever a network returns: tensors, tuples, dicts, dataclasses, objects with tensors
)->list: # of tensors
    "All tensors of a nested structure, each once."
    found, seen = [], set()
    def walk(o):
        if isinstance(o, torch.Tensor): found.append(o); return
        if id(o) in seen or isinstance(o, (str, bytes, int, float, nn.Module)) or o is None: return
        seen.add(id(o))
        for v in o.values() if isinstance(o, dict) else o if isinstance(o, (list, tuple, set)) else vars(o).values() if hasattr(o, '__dict__') else (): walk(v)
    walk(tree)
    return found

# %%
#| export
def check_names(
    model:nn.Module,
    names, # module names that the caller gave
    what:str, # the argument that they were given in
):
    "Raises `LayerNameError`, with the nearest names, if the network has no such module."
    known = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
    for name in (n for n in names if n not in known):
        near = difflib.get_close_matches(str(name), known, 3)
        raise LayerNameError(f'`{what}` names a module that the network does not have', layer=str(name),
            hint=f'did you mean {", ".join(near)}?' if near else 'see dict(model.named_modules())')

def fresh(
    example, # tensors in tuples and dicts
):
    "The same with tensors of its own: a forward may write into what it is given."
    with torch.inference_mode(False): return tree_map(lambda t: t.detach().clone() if isinstance(t, torch.Tensor) else t, example)

# %%
#| export
def attributes(
    m:nn.Module,
)->dict:
    "What a module holds beside parameters, buffers and modules."
    return {k: v for k, v in vars(m).items() if k not in ('_parameters', '_buffers', '_modules')}

# %%
#| export
@contextlib.contextmanager
def quiet(net, train=False):
    "The network in eval mode (or in training mode, dropout and norms apart), whatever the caller has switched on."
    modes = [(m, m.training) for m in net.modules()]
    for m in net.modules():
        m.training = train and not any(k in type(m).__name__ for k in ('Drop', 'StochasticDepth')) and not hasattr(m, 'running_mean')
    try:
        with contextlib.ExitStack() as off: # a function mode keeps attention from its fast path, which is one operation
            for mode in (torch.inference_mode(False), torch.no_grad(), BaseTorchFunctionMode()): off.enter_context(mode)
            for device in ('cpu', 'cuda'):
                if torch.is_autocast_enabled(device): off.enter_context(torch.autocast(device, enabled=False))
            yield net
    finally:
        for m, t in modes: m.training = t

def failed_at(
    recorder:Recorder, # whose run ended in an error
    e:Exception,
)->UDFCError:
    "The error, with the layer at which it happened."
    if isinstance(e, (UDFCError, MemoryError, torch.OutOfMemoryError)): return e
    return ExampleInputError(f'the network cannot run on `example_inputs`: {type(e).__name__}: {str(e)[:300]}', layer=recorder.fell,
        hint='pass inputs of the shape that the forward takes, e.g. torch.randn(1, 3, 224, 224)')

# %%
#| export
def whole_norms(
    rec:Recorder, # of a run that has ended
):
    "A norm that is written out, as a factor and a shift made of running statistics, is one operation: of kind 'norm'."
    get = lambda name: rec.parameters[name].detach()
    for t in rec.nodes:
        s = t.sources[0] if t.kind == 'shift' and t.op == 'add' and t.alpha == 1 else None
        if s is None or s.kind != 'scale' or s.users != [t] or s.module != t.module: continue
        m = rec.net.get_submodule(t.module)
        if not all(isinstance(getattr(m, k, None), torch.Tensor) for k in ('weight', 'bias', 'running_mean', 'running_var')): continue
        c, b = (evaluate(next(i for i in n.inputs if not i.live), get).flatten() for n in (s, t))
        slope = m.weight/(m.running_var+getattr(m, 'eps', math.nan)).sqrt()
        if slope.shape == c.shape == b.shape and torch.allclose(c, slope) and torch.allclose(b, m.bias-m.running_mean*c, atol=1e-5):
            s.kind, t.kind, t.target = 'same', 'norm', t.module

# %%
#| export
def record(
    net:nn.Module, # a private copy
    example_inputs, # tensor, tuple or dict that the forward takes
    train:bool=False, # in training mode, which reaches auxiliary heads; norms and dropout stay in eval mode
    recorder:type=Recorder, # or one that does more
    **kwargs, # for the recorder
)->Recorder:
    "One run, watched. Raises `ExampleInputError`."
    args, kwargs_ = call_args(net, fresh(example_inputs))
    rec = recorder(net, **kwargs)
    for t in tensors_of((args, kwargs_)):
        rec.label(t, {ACT: always(*(1,)*t.dim())})
        rec.note(rec._new('input', kind='input', shape=tuple(t.shape)), t)
    try:
        with quiet(net, train), rec: rec.result = net(*args, **kwargs_)
    except Exception as e:
        if (new := failed_at(rec, e)) is e: raise
        raise new from e
    rec.node = node = rec._new('output', kind='output')
    outs = tensors_of(rec.result)
    node.inputs = list(dict.fromkeys(rec.node_of(t) for t in outs))
    for n in node.inputs: n.users.append(node)
    for t in outs:
        for labels in rec.planes(t).values(): rec.freeze(labels, OUTPUT)
    rec.nodes.remove(node); rec.nodes.append(node); node.number = len(rec.nodes)
    whole_norms(rec)
    rec.shadows, rec.origin, rec.alive = {c: s for c, s in rec.shadows.items() if c in rec.names}, {}, {}
    return rec
