# %%
#| export
import html
from collections import defaultdict
from dataclasses import dataclass, field
import numpy as np
import torch, torch.nn as nn
from fastcore.basics import patch
from .labels import components
from .operations import FIXED, GROUPED, INPUT, SHARED, TIED, UNUSED
from .record import Node

# %%
#| export
PRUNED, SINGLE = 'pruned', 'all kept at this ratio'
IGNORED, UNREACHED, KIND = 'ignored by the caller', 'is not reached by the run', 'is of a kind that is not pruned'
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POLICIES = ('own', 'all')
PROOF = -2 # in the place of an operation's number: it is the proof that says so

def layer_names(
    model:nn.Module,
)->list: # of str, in the order of the modules
    "Names of all convolution and linear layers."
    return [n for n, m in model.named_modules() if isinstance(m, LAYERS)]

def is_under(
    name:str, # of a module
    names:tuple, # of modules
)->bool:
    "Is the module one of these, or inside one of these?"
    return any(name == i or name.startswith(f'{i}.') for i in names)

# %%
#| export
@dataclass(eq=False)
class Use:
    "A place where a tensor is indexed by the channels of a site."
    module:str # name of the layer or norm; role 'entries': of the parameter
    role:str # 'out', 'in', 'depthwise', 'norm', or 'entries' of any other parameter or buffer
    channels:np.ndarray # which of the site's channels stand here
    index:np.ndarray # (channels, repeat): their entries along the axis (role 'in': among all inputs of the layer)
    node:Node = None # role 'in': the call that reads them
    coarse:bool = False # does an entry stand for several channels at once?
    @property
    def repeat(self): return self.index.shape[1]

@dataclass(eq=False)
class Site:
    "A place where channels can be removed."
    name:str # the layer that makes them
    rows:np.ndarray # its rows, one for each channel
    units:np.ndarray # (units, channels in one): what goes together
    groups:int = 1 # equally many units must stay in each of so many equal runs
    uses:list = field(default_factory=list) # of `Use`s
    classes:np.ndarray = None # of the units
    @property
    def size(self): return len(self.rows)
    def role(self, role): return [u for u in self.uses if u.role == role]
    @property
    def producers(self): return self.role('out')
    @property
    def consumers(self): return self.role('in')

# %%
#| export
class Classes:
    "Labels that live and die together, and why some of them must stay."
    def __init__(self,
        records:list, # of `Recorder`s of one network: their edges add up
        policy:str='own', # 'own': channels of one producer; 'all': of several that meet in a sum as well
        held:tuple=(), # (labels, reason) that must stay besides
    ):
        self.n = records[0].n
        edges = [e for r in records for e in r.edges]
        of = lambda *kinds: [e for e, kind, _ in edges if kind in kinds]
        self.of = components(self.n, of('read', 'with', 'gate') if policy == 'own' else of('read', 'with', 'gate', 'sum'))
        self.reason = {} # class → (number of the operation, reason)
        for labels, why in held: self.hold(labels, why, -1 if why == IGNORED else PROOF)
        for r in records:
            for labels, why, node in r.frozen: self.hold(labels, why, node.number)
        if policy == 'own': self._own(records, edges, of('read', 'with'))
        zero = self.of[0]
        for e, kind, node in edges:
            at = (self.of[e] == zero).any(0) & (e == 0).any(0) & (kind != 'read')
            if at.any(): self.hold(e[:, at].ravel(), TIED if kind == 'sum' else f'{FIXED}: {node.op} at {node.place}', node.number)
        self.reason.setdefault(zero, (0, INPUT))
    def hold(self, labels, why, number):
        for c in np.unique(self.of[labels]): self.reason[c] = min(self.reason.get(c, (number+1, '')), (number, why))
    def _own(self, records, edges, alone):
        "Channels that meet others in a sum stay; so do those of layers that are called more than once."
        for e, kind, node in edges:
            if kind == 'sum' and (apart := self.of[e[0]] != self.of[e[1]]).any(): self.hold(e[:, apart].ravel(), TIED, node.number)
        single, makers = components(self.n, alone), defaultdict(set)
        for r in records:
            for name, layer in r.layers.items():
                if layer.rows is not None and not layer.depthwise:
                    for c in np.unique(single[layer.rows]): makers[c].add(name)
                if len(layer.calls) > 1:
                    for atoms in (layer.rows, layer.columns):
                        if atoms is not None: self.hold(atoms.ravel(), SHARED, layer.calls[0].number)
        several = [c for c, names in makers.items() if len(names) > 1]
        if several: self.hold(np.flatnonzero(np.isin(single, several)), SHARED, len(records[0].nodes))

# %%
#| export
@dataclass(eq=False)
class Graph:
    "A recorded network: its sites in the order of the run, and a reason for every layer."
    records:list # of `Recorder`s; the first is that of eval mode on the first example
    sites:list # of `Site`s
    reasons:dict # layer name → PRUNED, or why its output channels stay
    classes:Classes
    channels:dict # layer name → number of output channels
    policy:str = 'own'
    held:list = field(default_factory=list) # (labels, reason) that the proof left whole
    proof:object = None # what the proof found, where it was asked for
    @property
    def record(self): return self.records[0]
    @property
    def nodes(self): return self.record.nodes
    @property
    def layers(self): # by every name under which a module holds the weight
        held = lambda r, l: [n.removesuffix('.weight') for n in r.names_of(l.weight) if n.endswith('.weight')]
        return {name: l for r in reversed(self.records) for l in r.layers.values() for name in {l.name, *held(r, l)}}
    @property
    def order(self): # as the run calls them
        return list(dict.fromkeys(n.target for r in self.records for n in r.nodes if n.kind in ('layer', 'depthwise') and n.target in self.layers))
    def site(self, name): return next((s for s in self.sites if s.name == name), None)
    def removed(self,
        kept:dict, # site name → (K, P), channels
    )->np.ndarray: # of bool, one for each label
        "Which labels go."
        gone = np.zeros(self.classes.of.max()+1, bool)
        rows = {s.name: self.classes.of[self.layers[s.name].rows[s.rows]] for s in self.sites}
        for name, (_, pruned) in kept.items(): gone[rows[name][torch.as_tensor(pruned).cpu().numpy()]] = True
        return gone[self.classes.of]

# %%
#| export
def _units(classes):
    "Channels by class: (units, channels in one), in the order of the first; None if they are not all of one size."
    _, first, at, counts = np.unique(classes, return_index=True, return_inverse=True, return_counts=True)
    if len(set(counts)) > 1: return None
    by_class = np.argsort(at, kind='stable').reshape(len(counts), -1)
    return by_class[np.argsort(first)]

def _cells(units, balanced):
    "The cell of each unit in which equally many must stay: (cells in order, units sorted by cell); None if that cannot be."
    key = np.zeros((len(units), 0), int)
    for rows in balanced: # (groups, n) of units
        counts = np.stack([np.bincount(r, minlength=len(units)) for r in rows])
        if (counts == counts[:1]).all(): continue # the same ones in every row
        if ((counts > 0).sum(0) > 1).any(): return None
        key = np.concatenate([key, np.where(counts.any(0), counts.argmax(0), -1)[:, None]], 1)
    _, cell, sizes = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    if len(set(sizes)) > 1: return None
    return len(sizes), np.argsort(cell.ravel(), kind='stable')

# %%
#| export
def _site(name, layer, classes, balanced, partial):
    "The site that a layer's rows form, or why they form none."
    of, free = classes.of[layer.rows], np.array([c not in classes.reason for c in classes.of[layer.rows]])
    partial = partial or all(classes.reason[c][0] == PROOF for c in of[~free])
    if not free.any() or not (free.all() or partial): return min(classes.reason[c] for c in of[~free])[1]
    rows = np.flatnonzero(free)
    units = _units(of[rows])
    if units is None: return GROUPED
    mine = of[rows][units[:, 0]]
    if len(mine) < 2: return next(iter({classes.reason.get(c, (0, ''))[1] for c in of})) or (FIXED if len(of) > 1 else SINGLE)
    at = {c: i for i, c in enumerate(mine)}
    touching = [np.array([[at.get(c, -1) for c in r] for r in classes.of[b]]) for b in balanced if np.isin(classes.of[b], mine).any()]
    if any((b < 0).any() for b in touching): return GROUPED
    cells = _cells(units, touching)
    if cells is None: return GROUPED
    groups, order = cells
    return Site(name, rows, units[order], groups, classes=mine[order])

# %%
#| export
def _use(site, name, role, atoms, classes, node=None):
    "The entries of one axis of a tensor that a site's channels index."
    at = {c: i for i, c in enumerate(site.classes)}
    entries = defaultdict(list)
    for i, c in enumerate(classes.of[atoms]):
        if c in at: entries[at[c]].append(i)
    if not entries: return None
    k = site.units.shape[1]
    coarse = any(len(e) % k for e in entries.values())
    if coarse: channels, index = [site.units[u, 0] for u in entries], list(entries.values())
    else:
        pairs = [(c, e) for u, all_ in entries.items() for c, e in zip(site.units[u], np.array(all_).reshape(k, -1))]
        channels, index = [c for c, _ in pairs], [list(e) for _, e in pairs]
    if len({len(e) for e in index}) > 1: # as many for each: what stands here more often is coarse
        index, coarse = [e[:min(map(len, index))] for e in index], True
    order = np.argsort(channels, kind='stable')
    return Use(name, role, np.array(channels)[order], np.array(index)[order], node, coarse)

# %%
#| export
def _uses(graph):
    "Every place where a site's channels index a tensor."
    record, layers = graph.record, graph.layers
    owner = {c: s for s in graph.sites for c in s.classes}
    sites_at = lambda atoms: list(dict.fromkeys(owner[c] for c in graph.classes.of[atoms] if c in owner))
    norms = {n.target: p.target.rpartition('.')[0] for n in record.nodes if n.kind == 'norm' for p in n.inputs if p.op == 'parameter'}
    owners = {p.target.rpartition('.')[0] for n in record.nodes if n.kind == 'norm' for p in n.inputs if p.op == 'parameter'}
    seen, weights = set(), {l.weight: l for l in layers.values()}
    for l in layers.values():
        for role, atoms in (('depthwise' if l.depthwise else 'out', l.rows), ('in', l.columns)):
            if atoms is None or l.depthwise and role == 'in': continue
            for s in sites_at(atoms.ravel()): s.uses.append(_use(s, l.name, role, atoms.ravel(), graph.classes, l.calls[0]))
    for name, t in record.parameters.items():
        holder = name.rpartition('.')[0]
        if name in weights or holder in layers and name == f'{holder}.bias': continue
        for d, first in enumerate(record.atoms[name]):
            atoms = np.arange(first, first+t.shape[d])
            for s in sites_at(atoms) if first else ():
                role, module = ('norm', holder) if holder in owners else ('entries', name)
                if (s.name, role, module) in seen: continue
                seen.add((s.name, role, module))
                s.uses.append(_use(s, module, role, atoms, graph.classes))
    at = {n: i for i, n in enumerate(graph.order)}
    for s in graph.sites: s.uses.sort(key=lambda u: at.get(u.module, len(at)))

# %%
#| export
def _reasons(model, graph, ignored):
    "One reason per layer."
    layers, made, out = graph.layers, {c for s in graph.sites for c in s.classes}, {}
    reason = graph.classes.reason
    for name in layer_names(model):
        l = layers.get(name)
        if l is None or l.rows is None: out[name] = _unseen(graph, name)
        elif made & set(graph.classes.of[l.rows]): out[name] = PRUNED
        else: out[name] = graph.failed.get(name) or min((reason[c] for c in graph.classes.of[l.rows] if c in reason), default=(0, KIND))[1]
    return {n: IGNORED if is_under(n, ignored) else r for n, r in out.items()}

def _unseen(graph, name):
    "Why a layer that no convolution or product of the record reads stays."
    for r in graph.records:
        atoms = {a for p, first in r.atoms.items() if isinstance(p, str) and is_under(p, (name,)) for a in first if a}
        for labels, why, _ in r.frozen:
            if atoms & set(labels[:1]): return why
        if any(is_under(p, (name,)) for p in r.read): return KIND
    return UNREACHED

# %%
#| export
def graph_of(
    model:nn.Module, # the network of the records
    records:list, # of `Recorder`s
    ignored:tuple=(), # names of layers whose outputs stay, and of modules about which nothing is to be known
    policy:str='own', # 'own': channels that one layer makes; 'all': of layers that meet in a sum as well
    held:list=(), # (labels, reason) that must stay besides
)->Graph:
    "The sites that records leave."
    classes = Classes(records, policy, [*held, *_ignored(model, records, ignored)])
    graph = Graph(records, [], {}, classes, {n: _channels(m) for n, m in model.named_modules() if isinstance(m, LAYERS)}, policy, list(held))
    graph.failed, layers = {}, graph.layers
    whole = [c for c, (number, _) in classes.reason.items() if number == PROOF]
    balanced = [b for r in records for b, strict in r.balanced if strict or not np.isin(classes.of[b], whole).any()]
    read = np.zeros(classes.of.max()+1, bool)
    for l in layers.values():
        if l.columns is not None: read[classes.of[l.columns.ravel()]] = True
    unseen = next((r.unseen for r in records if r.unseen), None)
    unread = f'{UNUSED} that was seen: {unseen.op} at {unseen.place} reads a tensor that no operation made' if unseen else UNUSED
    for c in np.flatnonzero(~read): classes.reason.setdefault(c, (len(records[0].nodes), unread))
    taken = set()
    for name in graph.order:
        l = layers[name]
        if l.rows is None or l.depthwise or name not in graph.channels or taken & set(classes.of[l.rows]): continue
        made = _site(name, l, classes, balanced, policy == 'all')
        if isinstance(made, str): graph.failed[name] = made; continue
        graph.sites.append(made); taken |= set(made.classes)
    _uses(graph)
    graph.reasons = _reasons(model, graph, ignored)
    return graph

def _channels(m): return m.out_features if isinstance(m, nn.Linear) else m.out_channels

def _ignored(model, records, ignored):
    "Labels that an ignored layer makes; all that an ignored module reads, makes or holds."
    mods = dict(model.named_modules(remove_duplicate=False))
    layers = [n for n in ignored if isinstance(mods[n], LAYERS)]
    whole = tuple(n for n in ignored if n not in layers)
    for r in records:
        for l in r.layers.values():
            if l.rows is not None and is_under(l.name, ignored): yield l.rows, IGNORED
        for name, first in r.atoms.items():
            if whole and isinstance(name, str) and is_under(name, whole):
                for f, n in zip(first, r.parameters[name].shape if name in r.parameters else ()):
                    if f: yield np.arange(f, f+n), IGNORED
        for node in r.nodes if whole else ():
            if is_under(node.module, whole):
                for n in (node, *node.inputs):
                    if n.channels is not None: yield n.channels, IGNORED

# %%
#| export
def verdict(
    graph:Graph,
    name:str, # of a layer
)->str:
    "In a few words: a site, a layer that loses channels together with a site, or why its channels stay."
    why = graph.reasons[name]
    if why != PRUNED: return f'kept: {why}'
    if graph.site(name): return 'prunable'
    return 'goes with '+', '.join(s.name for s in graph.sites if any(u.module == name for u in s.uses if u.role in ('out', 'depthwise')))

def _lines(g):
    "One row per layer: its channels, where they go, and what keeps them."
    for name in g.reasons:
        s = g.site(name)
        yield name, str(g.channels[name]), ', '.join(dict.fromkeys(u.module for u in s.consumers)) if s else '', verdict(g, name)

# %%
#| export
@patch
def __str__(self:Graph):
    rows = [('layer', 'channels', 'read by', ''), *_lines(self)]
    wide = [max(len(r[i]) for r in rows) for i in range(4)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(r, wide)).rstrip() for r in rows)

@patch
def _repr_html_(self:Graph):
    row = lambda r, tag: '<tr>'+''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in r)+'</tr>'
    return '<table>'+row(('layer', 'channels', 'read by', ''), 'th')+''.join(row(r, 'td') for r in _lines(self))+'</table>'
